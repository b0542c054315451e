"""One case for each kind of source: what is written for it, and how its files can be spoiled.

A new source joins the contract suite by one entry in ``CASES``.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from dicom_files import save_dicom
from mnist_files import idx, save_idx
from numpy.typing import NDArray
from PIL import Image
from schemas import numbers
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sql_case import FILE, save_sqlite, sql_case

from fl_client.data.builtin import BuiltInSource
from fl_client.data.image_folder import ImageFolderSource
from fl_client.data.medmnist import MedMnistSource
from fl_client.data.mnist import MnistSource
from fl_client.data.records import Source
from fl_client.data.series import SeriesSource
from fl_client.data.table_file import TableFileSource
from fl_client.source_settings import (
    DicomSourceSettings,
    ImageFolderSourceSettings,
    MedMnistSourceSettings,
    MnistSourceSettings,
    NiftiSourceSettings,
    SeriesSourceSettings,
    SourceSettings,
    TableSourceSettings,
)
from fl_contract.schema import ImageSchema, SeriesSchema

Fault = Callable[[Path], None]
"""Spoils what a case wrote into its folder."""

PERSON = "ada-lovelace"
"""In every patient's number, in the name of every file that is one patient's, and in no message."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A source, and what it must give back.

    Attributes:
        source: Reads what was written.
        features: [N, ...] of all records, in any order.
        labels: [N] in the same order.
        held_out: How many of them are held out; None where the source decides.
        feature_names: Columns; empty for all but tables.
        is_image: Whether records are images or volumes.
        patients: [N] whose record it is; None if the source does not say.
    """

    source: Source
    features: NDArray[Any]
    labels: NDArray[np.str_]
    held_out: int | None = None
    feature_names: tuple[str, ...] = ()
    is_image: bool = False
    patients: NDArray[np.str_] | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of source.

    Attributes:
        write: Writes files into an empty folder and gives the source that reads them.
        faults: Ways to spoil what was written, by name, and a piece of the refusal that must follow.
    """

    write: Callable[[Path], Written]
    faults: Mapping[str, tuple[Fault, str]] = field(default_factory=dict)


def _write_built_in(dataset: str) -> Written:
    raw = {"kind": "built-in", "dataset": dataset, "parts": [0, 1], "num-parts": 2, "alpha": 2.0}
    source = BuiltInSource(SourceSettings.parse(raw | {"test-fraction": 0.3, "seed": 5}, origin="test"))
    if dataset == "digits":
        digits = load_digits()
        return Written(source=source, features=digits.images, labels=digits.target.astype(str), is_image=True)
    is_regression = dataset == "diabetes"
    data = load_diabetes(scaled=False) if is_regression else load_breast_cancer()
    names = tuple(str(name) for name in data.feature_names)
    labels = np.full(len(data.target), "") if is_regression else data.target_names[data.target].astype(str)
    patients = np.arange(len(labels)).astype(str)
    return Written(source=source, features=data.data, labels=labels, feature_names=names, patients=patients)


TABLE = pd.DataFrame(
    {
        "age": [70.5, 61.0, 55.0, 48.0, 66.0, 59.0],
        "weight": [81.0, 62.0, 90.5, 77.0, 58.0, 71.0],
        "outcome": ["ill", "well", "ill", "well", "well", "ill"],
        "person": [f"{PERSON}-{number}" for number in (1, 2, 2, 3, 4, 5)],
        "fold": ["train", "train", "train", "test", "train", "test"],
    }
)


def _save_table(table: pd.DataFrame, path: Path) -> None:
    if path.name == FILE:
        save_sqlite(table, path)
    elif path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False)


def _write_table(folder: Path, name: str) -> Written:
    _save_table(TABLE, folder / name)
    raw = {"kind": "table", "train": name, "fold": "fold", "label": "outcome", "patient": "person"}
    settings = TableSourceSettings.parse(raw, origin="test")
    source = TableFileSource(settings, folder=folder, features=numbers("weight", "age"))
    return Written(
        source=sql_case(folder, TABLE, ["weight", "age"]) if name == FILE else source,
        features=TABLE[["weight", "age"]].to_numpy(),
        labels=TABLE["outcome"].to_numpy(dtype=str),
        held_out=2,
        feature_names=("weight", "age"),
        patients=TABLE["person"].to_numpy(dtype=str),
    )


def _change_table(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Fault:
    return lambda folder: _save_table(change(TABLE), folder / name)


def _table_case(name: str) -> Case:
    return Case(
        write=lambda folder: _write_table(folder, name),
        faults={
            **_file_faults(name),
            "empty": (_change_table(name, lambda table: table[:0]), "rows"),
            "wrong column": (_change_table(name, lambda table: table.rename(columns={"age": "years"})), "'age'"),
            "a text": (_change_table(name, lambda table: table.assign(age=table["person"])), "'age'"),
            "no label": (
                _change_table(name, lambda table: table.assign(outcome=table["outcome"].mask(table["age"] > 0))),
                "'outcome'",
            ),
            "no fold": (_change_table(name, lambda table: table.assign(fold=table["person"])), "'fold'"),
            "a patient in both folds": (
                _change_table(name, lambda table: table.assign(fold=["train", "test"] * 3)),
                "1 patients",
            ),
        },
    )


def _medmnist_arrays() -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for fold, count in (("train", 8), ("val", 2), ("test", 4)):
        arrays[f"{fold}_images"] = np.random.default_rng(count).integers(0, 256, (count, 6, 5), dtype=np.uint8)
        arrays[f"{fold}_labels"] = np.arange(count, dtype=np.uint8).reshape(-1, 1) % 2
    return arrays


def _write_medmnist(folder: Path) -> Written:
    arrays = _medmnist_arrays()
    np.savez_compressed(folder / "images.npz", **arrays)
    raw = {"kind": "medmnist", "file": "images.npz", "classes": ["ill", "well"]}
    settings = MedMnistSourceSettings.parse(
        raw | {"parts": [1, 0], "num-parts": 2, "alpha": 1.0, "seed": 4}, origin="test"
    )
    labels = np.concatenate([arrays[f"{fold}_labels"].reshape(-1) for fold in ("train", "val", "test")])
    return Written(
        source=MedMnistSource(settings, folder=folder),
        features=np.concatenate([arrays[f"{fold}_images"] for fold in ("train", "val", "test")]),
        labels=np.array(["ill", "well"])[labels],
        held_out=4,
        is_image=True,
    )


MNIST = {
    "train-images-idx3-ubyte.gz": np.random.default_rng(3).integers(0, 256, (8, 6, 5), dtype=np.uint8),
    "train-labels-idx1-ubyte.gz": np.arange(8, dtype=np.uint8) % 2,
    "t10k-images-idx3-ubyte": np.random.default_rng(4).integers(0, 256, (4, 6, 5), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": np.array([0, 1, 9, 1], np.uint8),
}
MNIST_IMAGES, MNIST_LABELS, MNIST_TEST, MNIST_TEST_LABELS = MNIST
"""File names; two are packed."""


def _write_mnist(folder: Path) -> Written:
    for name, array in MNIST.items():
        save_idx(folder / name, idx(array))
    raw = {"kind": "mnist", "folder": ".", "parts": [1, 0], "num-parts": 2, "alpha": 1.0, "seed": 4}
    images, labels, test_images, test_labels = MNIST.values()
    return Written(
        source=MnistSource(MnistSourceSettings.parse(raw, origin="test"), folder=folder),
        features=np.concatenate([images, test_images]),
        labels=np.concatenate([labels, test_labels]).astype(str),
        held_out=4,
        is_image=True,
    )


def _change_mnist(**changes: bytes) -> Fault:
    """Files by the names of this module, with other content."""

    def change(folder: Path) -> None:
        for name, content in changes.items():
            save_idx(folder / globals()[name], content)

    return change


def _empty_mnist(folder: Path) -> None:
    for name, array in MNIST.items():
        save_idx(folder / name, idx(array[:0]))


def _change_medmnist(**changes: Any) -> Fault:
    def change(folder: Path) -> None:
        arrays = _medmnist_arrays() | changes
        np.savez(folder / "images.npz", **{name: array for name, array in arrays.items() if array is not None})

    return change


_MEDMNIST_EMPTY = {name: array[:0] for name, array in _medmnist_arrays().items()}


IMAGE_SCHEMA = ImageSchema.parse(
    {"kind": "image", "label": "finding", "classes": ["well", "ill"], "height": 6, "width": 5, "maximum": 255.0},
    origin="test",
)
VOLUME_SCHEMA = ImageSchema.parse(
    {**IMAGE_SCHEMA.model_dump(by_alias=True), "depth": 4, "classes": ["well", "ill"]}, origin="test"
)
INDEX = pd.DataFrame(
    {
        "file": [f"{PERSON}-{number}.png" for number in range(6)],
        "label": TABLE["outcome"],
        "fold": TABLE["fold"],
        "person": TABLE["person"],
    }
)
FIRST_IN_CLASS = f"images/train/ill/{PERSON}-0.png"
FIRST_DICOM = f"images/{PERSON}-0.dcm"
FIRST_VOLUME = f"images/{PERSON}-0.nii.gz"
FIRST_IMAGE = f"images/{PERSON}-0.png"


def _pictures() -> NDArray[np.uint8]:
    return np.random.default_rng(11).integers(0, 256, (6, 6, 5), dtype=np.uint8)


def _save_picture(pixels: NDArray[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _write_indexed_pictures(folder: Path) -> Written:
    for pixels, name in zip(_pictures(), INDEX["file"], strict=True):
        _save_picture(pixels, folder / "images" / name)
    INDEX.to_csv(folder / "index.csv", index=False)
    raw = {"kind": "image-folder", "folder": "images", "index": {"table": "index.csv", "patient": "person"}}
    settings = ImageFolderSourceSettings.parse(raw, origin="test")
    return Written(
        source=ImageFolderSource(settings, folder=folder, schema=IMAGE_SCHEMA),
        features=_pictures()[..., np.newaxis],
        labels=INDEX["label"].to_numpy(dtype=str),
        held_out=2,
        is_image=True,
        patients=INDEX["person"].to_numpy(dtype=str),
    )


def _write_class_folders(folder: Path) -> Written:
    for pixels, name, fold, label in zip(_pictures(), INDEX["file"], INDEX["fold"], INDEX["label"], strict=True):
        _save_picture(pixels, folder / "images" / fold / label / name)
    settings = ImageFolderSourceSettings.parse({"kind": "image-folder", "folder": "images"}, origin="test")
    return Written(
        source=ImageFolderSource(settings, folder=folder, schema=IMAGE_SCHEMA),
        features=_pictures()[..., np.newaxis],
        labels=INDEX["label"].to_numpy(dtype=str),
        held_out=2,
        is_image=True,
    )


def _images_of_16_bits() -> NDArray[np.int16]:
    return np.random.default_rng(12).integers(-1000, 1000, (6, 6, 5), dtype=np.int16)


def _write_indexed_files(folder: Path, suffix: str) -> pd.DataFrame:
    """The index of `INDEX`, for files of another format."""
    index = INDEX.assign(file=[f"{PERSON}-{number}{suffix}" for number in range(6)])
    index.to_csv(folder / "index.csv", index=False)
    return index


def _write_dicom(folder: Path) -> Written:
    index = _write_indexed_files(folder, ".dcm")
    for pixels, name in zip(_images_of_16_bits(), index["file"], strict=True):
        save_dicom(folder / "images" / name, pixels, RescaleSlope="2", RescaleIntercept="-24", PatientName=PERSON)
    raw = {"kind": "dicom", "folder": "images", "index": {"table": "index.csv", "patient": "person"}}
    settings = DicomSourceSettings.parse(raw, origin="test")
    return Written(
        source=ImageFolderSource(settings, folder=folder, schema=IMAGE_SCHEMA),
        features=_images_of_16_bits()[..., np.newaxis] * 2.0 - 24,
        labels=index["label"].to_numpy(dtype=str),
        held_out=2,
        is_image=True,
        patients=index["person"].to_numpy(dtype=str),
    )


def _save_volume(slice_: NDArray[Any], path: Path) -> None:
    """A volume of four axial slices, the upper one in the middle of which looks like this."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.rot90(slice_, -1)
    nibabel.save(nibabel.Nifti1Image(np.stack([stored - 2, stored - 1, stored, stored + 1], axis=2), np.eye(4)), path)


def _write_nifti(folder: Path, *, is_whole: bool = False) -> Written:
    index = _write_indexed_files(folder, ".nii.gz")
    for pixels, name in zip(_images_of_16_bits(), index["file"], strict=True):
        _save_volume(pixels, folder / "images" / name)
    raw = {"kind": "nifti", "folder": "images", "index": {"table": "index.csv", "patient": "person"}}
    settings = NiftiSourceSettings.parse(raw if is_whole else raw | {"plane": "axial"}, origin="test")
    slices = _images_of_16_bits()
    return Written(
        source=ImageFolderSource(settings, folder=folder, schema=VOLUME_SCHEMA if is_whole else IMAGE_SCHEMA),
        features=np.stack([slices - 2, slices - 1, slices, slices + 1], axis=1)
        if is_whole
        else slices[..., np.newaxis],
        labels=index["label"].to_numpy(dtype=str),
        held_out=2,
        is_image=True,
        patients=index["person"].to_numpy(dtype=str),
    )


SERIES_SCHEMA = SeriesSchema.parse(
    {
        "kind": "series",
        "label": "outcome",
        "classes": ["well", "ill"],
        "channels": [{"name": name, "minimum": 0.0, "maximum": 300.0} for name in ("pulse", "pressure")],
        "length": 3,
        "step-unit": "hours",
    },
    origin="test",
)
STAYS = pd.DataFrame(
    {
        "person": [f"{PERSON}-{number}" for number in range(4)],
        "outcome": ["ill", "well", "ill", "well"],
        "fold": ["train", "train", "train", "test"],
    }
)
SERIES = pd.DataFrame(
    [
        (f"{PERSON}-{person}", step + 0.25, channel, 50.0 + 10 * person + step + 100 * (channel == "pressure"))
        for person in range(4)
        for step in range(3)
        for channel in ("pulse", "pressure")
    ],
    columns=["person", "hour", "what", "value"],
)


def _write_series(folder: Path, name: str) -> Written:
    _save_table(SERIES, folder / name)
    STAYS.to_csv(folder / "stays.csv", index=False)
    table = {"kind": "table", "train": "stays.csv", "fold": "fold", "label": "outcome", "patient": "person"}
    raw = {"kind": "series", "file": name, "patient": "person", "time": "hour", "channel": "what", "outcomes": table}
    settings = SeriesSourceSettings.parse(raw, origin="test")
    return Written(
        source=SeriesSource(settings, folder=folder, schema=SERIES_SCHEMA),
        features=SERIES["value"].to_numpy().reshape(4, 3, 2).transpose(0, 2, 1),
        labels=STAYS["outcome"].to_numpy(dtype=str),
        held_out=1,
        patients=STAYS["person"].to_numpy(dtype=str),
    )


def _series_case(name: str) -> Case:
    def change(**columns: Any) -> Fault:
        return lambda folder: _save_table(SERIES.assign(**columns), folder / name)

    def change_stays(stays: pd.DataFrame) -> Fault:
        return lambda folder: stays.to_csv(folder / "stays.csv", index=False)

    gap = SERIES.index > 0
    return Case(
        write=lambda folder: _write_series(folder, name),
        faults={
            **_file_faults(name),
            **{f"outcomes: {fault}": case for fault, case in _file_faults("stays.csv").items()},
            "wrong column": (lambda folder: _save_table(SERIES.rename(columns={"hour": "t"}), folder / name), "'hour'"),
            "a text as value": (change(value=SERIES["person"]), "column 'value', channel 'pulse': 12 rows hold a text"),
            "an infinite value": (change(value=SERIES["value"].where(gap, np.inf)), "'value': 1 rows are infinite"),
            "a text as time": (change(hour=SERIES["person"]), "column 'hour': 24 rows hold no number"),
            "an infinite time": (
                change(hour=SERIES["hour"].where(gap, np.inf)),
                "column 'hour': 1 rows hold no number",
            ),
            "no time": (change(hour=SERIES["hour"].where(gap)), "column 'hour' is empty in 1 rows"),
            "no patient": (change(person=SERIES["person"].where(gap)), "column 'person' is empty in 1 rows"),
            "no channel": (change(what=SERIES["what"].where(gap)), "column 'what' is empty in 1 rows"),
            "another channel": (change(what=SERIES["person"]), "24 rows are of channels that the study does not name"),
            "no label": (change_stays(STAYS.assign(outcome=None)), "'outcome' is empty in 4 rows"),
            "two outcomes": (
                change_stays(pd.concat([STAYS, STAYS[:1]])),
                "1 rows are of a patient with an earlier row",
            ),
            "a patient in both folds": (
                change_stays(pd.concat([STAYS, STAYS[:1].assign(fold="test")])),
                "1 patients are in training and held-out rows",
            ),
            "no outcomes": (change_stays(STAYS[:0]), "no rows"),
        },
    )


def _empty_class_folders(folder: Path) -> None:
    for path in (folder / "images").rglob("*.png"):
        path.unlink()


def _change_index(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Fault:
    def spoil(folder: Path) -> None:
        index = pd.read_csv(folder / "index.csv", dtype=str)
        change(index).to_csv(folder / "index.csv", index=False)

    return spoil


def _index_faults() -> dict[str, tuple[Fault, str]]:
    """What can be wrong with the index of an image source."""
    faults = {f"index: {fault}": spoiled for fault, spoiled in _file_faults("index.csv").items()}
    return faults | {
        "empty": (_change_index(lambda index: index[:0]), "holds no rows"),
        "wrong column": (_change_index(lambda index: index.rename(columns={"label": "class"})), "'label'"),
        "no label": (_change_index(lambda index: index.assign(label="")), "column 'label' is empty in 6 rows"),
        "no fold": (_change_index(lambda index: index.assign(fold=index["person"])), "6 rows hold no fold"),
        "no patient": (_change_index(lambda index: index.assign(person="")), "column 'person' is empty in 6 rows"),
        "a patient in both folds": (
            _change_index(lambda index: index.assign(fold=["train", "test"] * 3)),
            "1 patients are in training and held-out rows",
        ),
        "an image twice": (_change_index(lambda index: pd.concat([index, index[:2]])), "2 images are named more than"),
        "a file elsewhere": (
            _change_index(lambda index: index.assign(file=f"../{PERSON}.png")),
            "6 rows name a file outside",
        ),
    }


def _image_faults(name: str, place: str) -> dict[str, tuple[Fault, str]]:
    """What can happen to one image of several; the refusal counts it and says where it is."""
    return {
        "a folder in an image's place": (
            _make_folder(name),
            f"1 of 6 images: cannot be opened (Is a directory) ({place})",
        ),
        "an image cut short": (_cut(name), f"({place})"),
        "an image of another format": (_overwrite(name, b"no image"), f"({place})"),
        "an image without content": (_overwrite(name, b""), f"({place})"),
    }


def _cut(name: str) -> Fault:
    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return spoil


def _remove(name: str) -> Fault:
    return lambda folder: (folder / name).unlink()


def _make_folder(name: str) -> Fault:
    """A folder in a file's place: unreadable for everybody, an administrator too."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def _overwrite(name: str, content: bytes) -> Fault:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return spoil


def _file_faults(name: str) -> dict[str, tuple[Fault, str]]:
    """What can happen to the one file that a whole source is in; the refusal names it."""
    return {
        "missing file": (_remove(name), name),
        "a folder in its place": (_make_folder(name), name),
        "another format": (_overwrite(name, b"\xff\xfe\x00no\x00such\x00format\n\xff"), name),
        "no content": (_overwrite(name, b""), name),
    }


CASES: Mapping[str, Case] = {
    "built-in breast-cancer": Case(write=lambda _: _write_built_in("breast-cancer")),
    "built-in diabetes": Case(write=lambda _: _write_built_in("diabetes")),
    "built-in digits": Case(write=lambda _: _write_built_in("digits")),
    "table csv": _table_case("patients.csv"),
    "table parquet": _table_case("patients.parquet"),
    "sql": _table_case(FILE),
    "medmnist": Case(
        write=_write_medmnist,
        faults={
            **_file_faults("images.npz"),
            "empty": (_change_medmnist(**_MEDMNIST_EMPTY), "no images"),
            "wrong array": (_change_medmnist(test_labels=None, test_classes=np.zeros(4)), "'test_labels.npy'"),
            "a label without a name": (_change_medmnist(val_labels=np.array([[0], [2]])), "1 labels"),
        },
    ),
    "mnist": Case(
        write=_write_mnist,
        faults={
            **{
                f"{name}: {fault}": (spoil, name.removesuffix(".gz"))
                for name in MNIST
                for fault, (spoil, _) in _file_faults(name).items()
            },
            "cut short": (_cut(MNIST_TEST), "declares 120 values in a file of 68 bytes"),
            "packed and cut short": (_cut(MNIST_IMAGES), "is damaged or cut short"),
            "empty": (_empty_mnist, "holds no images"),
            "a header of gigabytes": (
                _change_mnist(MNIST_TEST=idx(MNIST[MNIST_TEST], (60_000, 28_000, 28_000))),
                "declares 47040000000000 values",
            ),
            "a packed header of gigabytes": (
                _change_mnist(MNIST_IMAGES=idx(MNIST[MNIST_IMAGES], (60_000, 280, 28))),
                "declares 470400000 values",
            ),
            "more than declared": (_change_mnist(MNIST_LABELS=idx(np.zeros(10**7, np.uint8), (8,))), "the 8 values"),
            "labels in the images' place": (_change_mnist(MNIST_IMAGES=idx(MNIST[MNIST_LABELS])), "with 3 axes"),
            "images of another size": (
                _change_mnist(MNIST_TEST=idx(np.zeros((4, 5, 6), np.uint8))),
                "[6, 5] and [5, 6]; expected one size",
            ),
            "a label too few": (_change_mnist(MNIST_LABELS=idx(np.zeros(7, np.uint8))), "8 images and 7 labels"),
            "no digit": (_change_mnist(MNIST_LABELS=idx(np.arange(8, dtype=np.uint8) + 5)), "3 labels are no digit"),
        },
    ),
    "image folder with an index": Case(
        write=_write_indexed_pictures,
        faults={
            **_index_faults(),
            **_image_faults(FIRST_IMAGE, "line 2"),
            "missing image": (
                _remove(FIRST_IMAGE),
                "1 of 6 images: cannot be opened (No such file or directory) (line 2)",
            ),
            "another size": (lambda folder: _save_picture(_pictures()[0].T, folder / FIRST_IMAGE), "5 x 6 pixels"),
            "in colour": (
                lambda folder: _save_picture(np.zeros((6, 5, 3), np.uint8), folder / FIRST_IMAGE),
                "3 channels; expected 1",
            ),
        },
    ),
    "image folder with class folders": Case(
        write=_write_class_folders,
        faults={
            **_image_faults(FIRST_IN_CLASS, "train, folder 1, file 1"),
            "no folders": (lambda folder: shutil.rmtree(folder / "images"), "'train' and 'test'"),
            "no fold": (lambda folder: shutil.rmtree(folder / "images/test"), "'train' and 'test'"),
            "empty": (_empty_class_folders, "holds no images"),
            "another file": (_overwrite(f"images/train/ill/{PERSON}.txt", b"a note"), "1 entries are neither"),
            "an image beside the classes": (_overwrite(f"images/train/{PERSON}.png", b""), "1 entries are neither"),
        },
    ),
    "dicom": Case(
        write=_write_dicom,
        faults={
            **_index_faults(),
            **_image_faults(FIRST_DICOM, "line 2"),
            "missing image": (
                _remove(FIRST_DICOM),
                "1 of 6 images: cannot be opened (No such file or directory) (line 2)",
            ),
            "several frames": (
                lambda folder: save_dicom(folder / FIRST_DICOM, _images_of_16_bits()),
                "1 of 6 images: 6 frames; expected one",
            ),
            "no pixels": (
                lambda folder: save_dicom(folder / FIRST_DICOM, _images_of_16_bits()[0], PixelData=None),
                "(line 2)",
            ),
        },
    ),
    "nifti": Case(
        write=_write_nifti,
        faults={
            **_index_faults(),
            **_image_faults(FIRST_VOLUME, "line 2"),
            "missing image": (
                _remove(FIRST_VOLUME),
                "1 of 6 images: cannot be opened (No such file or directory) (line 2)",
            ),
            "another size": (
                lambda folder: _save_volume(np.zeros((7, 5), np.int16), folder / FIRST_VOLUME),
                "7 x 5 pixels",
            ),
        },
    ),
    "nifti volumes": Case(
        write=lambda folder: _write_nifti(folder, is_whole=True),
        faults={
            **_image_faults(FIRST_VOLUME, "line 2"),
            "another size": (
                lambda folder: _save_volume(np.zeros((7, 5), np.int16), folder / FIRST_VOLUME),
                "4 x 7 x 5 voxels, depth x height x width; expected 4 x 6 x 5",
            ),
        },
    ),
    "series csv": _series_case("monitor.csv"),
    "series parquet": _series_case("monitor.parquet"),
}
