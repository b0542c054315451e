"""Findings, numbers, times and masks of images are those of the index, and none is guessed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from fl_client.data.image_folder import ImageFolderSource
from fl_client.data.medmnist import MedMnistSource
from fl_client.data.records import Records, SiteRecords
from fl_client.source_settings import ImageFolderSourceSettings, MedMnistSourceSettings, NiftiSourceSettings
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.schema import ImageSchema

PERSON = "mueller"
MULTI = {"task": "multi-label", "classes": ["oedema", "effusion"]}
AGE = {"task": "regression", "target": {"minimum": 0.0, "maximum": 120.0}}
SURVIVAL = {"task": "survival", "time-unit": "days"}
LESION = {"task": "segmentation", "classes": ["background", "lesion", "vessel"]}
VALUES = {"0": "background", "255": "lesion", "128": "vessel"}


def schema_of(**outcome: Any) -> ImageSchema:
    raw = {"kind": "image", "label": "finding", "height": 4, "width": 5, "maximum": 255.0}
    return ImageSchema.parse(raw | outcome, origin="test")


def save(path: Path, pixels: NDArray[Any]) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def masks() -> NDArray[np.uint8]:
    """Three masks as positions of classes."""
    return np.random.default_rng(4).integers(0, 3, (3, 4, 5), dtype=np.uint8)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., SiteRecords]:
    """Loads three images with an index of all outcomes, some columns of which are changed."""

    def run(
        outcome: dict[str, Any], *, index: dict[str, Any] | None = None, resize: bool = False, **columns: Any
    ) -> SiteRecords:
        for number, mask in enumerate(masks()):
            save(tmp_path / f"{PERSON}-{number}.png", np.full((4, 5), 10 * number))
            if not (tmp_path / f"mask-{number}.png").exists():
                save(tmp_path / f"mask-{number}.png", np.array([0, 255, 128])[mask])
        table = {
            "file": [f"{PERSON}-{number}.png" for number in range(3)],
            "mask": [f"mask-{number}.png" for number in range(3)],
            "fold": ["train", "test", "train"],
            "label": ["1", "0", "1"],
            "oedema": [0, 1, 1],
            "pleura": [1, 0, 1],
            "age": [61.5, 70, 82],
            "days": [10, 20, 30],
        }
        pd.DataFrame(table | columns).to_csv(tmp_path / "index.csv", index=False)
        raw = {"kind": "image-folder", "folder": ".", "resize": resize}
        raw["index"] = {"table": "index.csv", "mask": "mask", "mask-values": VALUES} | (index or {})
        settings = ImageFolderSourceSettings.parse(raw, origin="test")
        return ImageFolderSource(settings, folder=tmp_path, schema=schema_of(**outcome)).load()

    return run


def outcomes(records: Records) -> list[list[float]]:
    assert records.outcomes is not None
    found: list[list[float]] = records.outcomes.tolist()
    return found


def masks_of(records: Records) -> NDArray[np.uint8]:
    assert records.masks is not None
    return records.masks


def test_findings_are_in_the_studys_order_and_the_label_is_not_read(load: Callable[..., SiteRecords]) -> None:
    site = load(MULTI, index={"findings": {"effusion": "pleura"}, "label": "absent"})

    assert outcomes(site.train) == [[0, 1], [1, 1]]
    assert outcomes(site.test) == [[1, 0]]
    assert site.train.labels.tolist() == ["", ""]


def test_the_target_and_the_time_are_numbers_of_the_index(load: Callable[..., SiteRecords]) -> None:
    ages, times = load(AGE, index={"label": "age"}), load(SURVIVAL, index={"time": "days"})

    assert (outcomes(ages.train), outcomes(ages.test)) == ([[61.5], [82.0]], [[70.0]])
    assert (outcomes(times.train), times.train.labels.tolist()) == ([[10.0], [30.0]], ["1", "1"])


def test_masks_are_the_classes_of_their_values(load: Callable[..., SiteRecords]) -> None:
    site = load(LESION)

    assert (str(masks_of(site.train).dtype), site.train.labels.tolist()) == ("uint8", ["", ""])
    assert np.array_equal(masks_of(site.train), masks()[[0, 2]])
    assert np.array_equal(masks_of(site.test), masks()[[1]])


def test_without_values_a_mask_holds_positions_of_classes(load: Callable[..., SiteRecords], tmp_path: Path) -> None:
    for number, mask in enumerate(masks()):
        save(tmp_path / f"mask-{number}.png", mask)

    site = load(LESION, index={"mask-values": {}})

    assert np.array_equal(masks_of(site.train), masks()[[0, 2]])


def test_a_mask_is_stretched_by_its_nearest_pixels(load: Callable[..., SiteRecords], tmp_path: Path) -> None:
    for number, mask in enumerate(masks()):
        save(tmp_path / f"mask-{number}.png", np.array([0, 255, 128])[mask].repeat(3, axis=0).repeat(2, axis=1))

    site = load(LESION, resize=True)

    assert np.array_equal(masks_of(site.train), masks()[[0, 2]])


@pytest.mark.parametrize(
    ("outcome", "changes", "detail"),
    [
        (MULTI, {"index": {"findings": {"effusion": "absent"}}}, "columns ['absent'] are missing"),
        (MULTI, {"index": {"findings": {"cyst": "pleura"}}}, "source.index.findings=['cyst']; expected findings"),
        (MULTI, {"effusion": [0, "", 1]}, "column 'effusion' is empty in 1 rows"),
        (MULTI, {"effusion": [0, PERSON, 1]}, "column 'effusion': 1 rows hold no number"),
        (AGE, {"index": {"label": "age"}, "age": [1, "nan", "inf"]}, "column 'age': 2 rows hold no number"),
        (LESION, {"mask": ["mask-0.png", "", "mask-2.png"]}, "column 'mask' is empty in 1 rows"),
        (LESION, {"mask": ["mask-0.png", f"../{PERSON}.png", "mask-2.png"]}, "'mask': 1 rows name a file outside"),
        (LESION, {"mask": ["mask-0.png", f"{PERSON}-9.png", "mask-2.png"]}, "cannot be opened (No such file"),
        (LESION, {"mask": [f"{PERSON}-1.png"] * 3}, "3 of 3 images: mask: holds values of no class"),
        (LESION, {"index": {"mask-values": VALUES | {"7": "cyst"}}}, "mask-values gives ['cyst']"),
        (LESION, {"index": {"mask-values": VALUES | {"red": "lesion"}}}, "mask-values='red'; expected numbers"),
    ],
)
def test_an_index_that_breaks_a_rule_is_refused_with_a_count(
    load: Callable[..., SiteRecords], outcome: dict[str, Any], changes: dict[str, Any], detail: str
) -> None:
    with pytest.raises(RefusalError) as caught:
        load(outcome, **changes)

    assert caught.value.code is RefusalCode.INVALID_DATA
    assert detail in caught.value.detail
    assert PERSON not in caught.value.detail


@pytest.mark.parametrize(
    ("pixels", "detail"),
    [
        (np.zeros((5, 4)), "1 of 3 images: mask: 5 x 4 pixels; expected 4 x 5, or resize = true (line 3)"),
        (np.zeros((4, 5, 3)), "1 of 3 images: mask: in colour"),
        (np.full((4, 5), 7), "1 of 3 images: mask: holds values of no class"),
    ],
    ids=["another size", "colour", "a value without a class"],
)
def test_a_mask_that_breaks_a_rule_is_refused_with_its_line(
    load: Callable[..., SiteRecords], tmp_path: Path, pixels: NDArray[Any], detail: str
) -> None:
    save(tmp_path / "mask-1.png", pixels)

    with pytest.raises(RefusalError) as caught:
        load(LESION)

    # Test images come after those for training.
    assert detail in caught.value.detail


def test_a_mask_in_a_volume_is_cut_as_its_image(tmp_path: Path) -> None:
    mask = masks()[0]
    for name, middle in (("image", mask * 100), ("mask", mask)):
        stored = np.rot90(middle.astype(np.int16), -1)
        nibabel.save(nibabel.Nifti1Image(np.stack([0 * stored, stored, 0 * stored], axis=2), np.eye(4)),
                     tmp_path / f"{name}.nii.gz")  # fmt: skip
    pd.DataFrame({"file": ["image.nii.gz"], "mask": ["mask.nii.gz"], "fold": ["train"]}).to_csv(tmp_path / "index.csv")
    raw = {"kind": "nifti", "folder": ".", "plane": "axial", "index": {"table": "index.csv", "mask": "mask"}}
    source = ImageFolderSource(
        NiftiSourceSettings.parse(raw, origin="test"), folder=tmp_path, schema=schema_of(**LESION)
    )

    records = source.load().train

    assert np.array_equal(records.features[0, ..., 0], mask * 100)
    assert np.array_equal(masks_of(records), mask[np.newaxis])


def chest(tmp_path: Path, findings: list[str], labels: NDArray[np.integer] | None = None) -> SiteRecords:
    """Twelve images of three findings in a MedMNIST file."""
    found = np.arange(36).reshape(12, 3) % 2 if labels is None else labels
    arrays: dict[str, Any] = {}
    for fold, rows in (("train", slice(0, 6)), ("val", slice(6, 8)), ("test", slice(8, 12))):
        arrays[f"{fold}_images"] = np.arange(12, dtype=np.uint8)[rows, None, None] * np.ones((1, 4, 5), np.uint8)
        arrays[f"{fold}_labels"] = found[rows].astype(np.uint8)
    np.savez(tmp_path / "chest.npz", **arrays)
    raw = {"kind": "medmnist", "file": "chest.npz", "classes": ["oedema", "effusion", "hernia"]}
    settings = MedMnistSourceSettings.parse(
        raw | {"parts": [0, 1], "num-parts": 2, "alpha": 1.0, "seed": 4}, origin="test"
    )
    return MedMnistSource(settings, folder=tmp_path, findings=findings).load()


def test_findings_of_medmnist_are_those_of_the_study_in_its_order(tmp_path: Path) -> None:
    site = chest(tmp_path, ["hernia", "oedema"])

    for records in (site.train, site.test):
        numbers = records.features[:, 0, 0].astype(int)
        expected = (np.arange(36).reshape(12, 3) % 2)[numbers][:, [2, 0]]
        assert outcomes(records) == expected.tolist()
        assert set(records.labels) == {""}
    assert (len(site.train), len(site.test)) == (8, 4)


@pytest.mark.parametrize(
    ("findings", "labels", "detail"),
    [
        (["hernia", "cyst"], None, "findings ['cyst'] have no column"),
        (["hernia"], np.zeros((12, 1), int), "expected whole numbers [6, 3]"),
    ],
)
def test_findings_that_medmnist_does_not_have_are_refused(
    tmp_path: Path, findings: list[str], labels: NDArray[np.integer] | None, detail: str
) -> None:
    with pytest.raises(RefusalError) as caught:
        chest(tmp_path, findings, labels)

    assert detail in caught.value.detail
