"""A MedMNIST file is dealt out whole, keeps its own test images apart, and is not unpacked where it would not fit."""

import io
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_client.data import medmnist
from fl_client.data.medmnist import MedMnistSource
from fl_client.data.records import SiteRecords
from fl_client.source_settings import MedMnistSourceSettings
from fl_contract.errors import RefusalCode, RefusalError, SettingError

BREAST = Path(__file__).parents[4] / "shared" / "data" / "breastmnist" / "breastmnist.npz"
CLASSES = ["malignant", "benign"]


def arrays(*, shape: tuple[int, ...] = (5, 4)) -> dict[str, Any]:
    """30, 6 and 12 random images, every third of them of class 0."""
    generator = np.random.default_rng(7)
    made: dict[str, Any] = {}
    for fold, count in (("train", 30), ("val", 6), ("test", 12)):
        made[f"{fold}_images"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        made[f"{fold}_labels"] = (np.arange(count, dtype=np.uint8) % 3 > 0).astype(np.uint8).reshape(-1, 1)
    return made


def load(folder: Path, **changes: Any) -> SiteRecords:
    raw: dict[str, Any] = {"kind": "medmnist", "file": "images.npz", "classes": CLASSES}
    raw |= {"parts": [0], "num-parts": 1, "alpha": 1.0, "seed": 3} | changes
    return MedMnistSource(MedMnistSourceSettings.parse(raw, origin="test"), folder=folder).load()


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(RefusalError) as caught:
        load(folder, **changes)
    assert caught.value.code is RefusalCode.INVALID_DATA
    return caught.value.detail


def held(images: NDArray[Any]) -> Counter[bytes]:
    return Counter(image.astype(np.uint8).tobytes() for image in images)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
def test_training_and_validation_images_are_trained_on_and_test_images_held_out(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    written = arrays(shape=shape)
    np.savez_compressed(tmp_path / "images.npz", **written)

    site = load(tmp_path)

    assert site.train.features.shape == (36, *shape)
    assert held(site.train.features) == held(written["train_images"]) + held(written["val_images"])
    assert held(site.test.features) == held(written["test_images"])
    assert site.train.patients is None


def test_each_image_keeps_its_label_by_the_name_that_the_hospital_s_file_gives(tmp_path: Path) -> None:
    written = arrays()
    np.savez_compressed(tmp_path / "images.npz", **written)
    names = {
        image.tobytes(): CLASSES[int(label[0])]
        for image, label in zip(written["test_images"], written["test_labels"], strict=True)
    }

    test = load(tmp_path).test

    images = test.features.astype(np.uint8)
    assert [names[image.tobytes()] for image in images] == test.labels.tolist()


def test_the_parts_share_out_all_images_and_never_mix_the_folds(tmp_path: Path) -> None:
    written = arrays()
    np.savez_compressed(tmp_path / "images.npz", **written)

    sites = [load(tmp_path, **{"parts": [part], "num-parts": 3}) for part in range(3)]

    train = sum((held(site.train.features) for site in sites), Counter())
    test = sum((held(site.test.features) for site in sites), Counter())
    assert train == held(written["train_images"]) + held(written["val_images"])
    assert test == held(written["test_images"])


def test_several_parts_are_their_union(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "images.npz", **arrays())

    both = load(tmp_path, **{"parts": [0, 2], "num-parts": 3})

    apart = [load(tmp_path, **{"parts": [part], "num-parts": 3}) for part in (0, 2)]
    assert held(both.train.features) == held(apart[0].train.features) + held(apart[1].train.features)


def test_labels_of_one_dimension_are_read_too(tmp_path: Path) -> None:
    written = arrays()
    np.savez(tmp_path / "images.npz", **{name: a.reshape(-1) if "labels" in name else a for name, a in written.items()})

    assert len(load(tmp_path).train) == 36


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"val_labels": None}, "arrays ['val_labels.npy'] are missing"),
        ({"test_images": np.zeros((12, 5, 4))}, "'test_images' is float64 [12, 5, 4]; expected uint8"),
        ({"test_images": np.zeros((12, 6, 4), np.uint8)}, "of one size in all folds"),
        ({"train_images": np.zeros((30, 5, 4, 4), np.uint8)}, "expected uint8, grey [N, height, width]"),
        ({"train_labels": np.zeros((30, 14), np.uint8)}, "'train_labels' is uint8 [30, 14]; expected one whole number"),
        ({"train_labels": np.zeros((29, 1), np.uint8)}, "for each of 30 images"),
        ({"train_labels": np.full((30, 1), np.nan)}, "expected one whole number"),
        ({"train_labels": np.full((30, 1), 2, np.uint8)}, "30 labels have no name; source.classes names 0 to 1"),
        ({"train_labels": np.full((30, 1), -1)}, "30 labels have no name"),
        ({"train_labels": np.full((30, 1), None)}, "'train_labels' is damaged or holds Python objects"),
    ],
)
def test_what_is_wrong_with_an_array_is_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    changed = {name: array for name, array in (arrays() | change).items() if array is not None}
    np.savez(tmp_path / "images.npz", **changed)

    assert named in refusal(tmp_path)


def test_an_archive_that_grows_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = {"train_images": np.zeros((1000, 100, 100), np.uint8)}  # 10 MB of zeros, packed to some 10 kB
    np.savez_compressed(tmp_path / "images.npz", **(arrays() | bomb))
    monkeypatch.delattr(zipfile.ZipFile, "open")

    found = refusal(tmp_path)

    assert "would unpack from" in found
    assert "at most 200 times its size" in found


def test_an_archive_that_declares_more_than_fits_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "images.npz", **arrays())
    monkeypatch.setattr(medmnist, "MAX_BYTES", 1000)
    monkeypatch.delattr(zipfile.ZipFile, "open")

    assert "expected at most 1000" in refusal(tmp_path)


def test_a_header_that_declares_more_than_its_member_holds_reserves_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 10**3)}
    )
    np.savez(tmp_path / "images.npz", **{name: a for name, a in arrays().items() if name != "train_images"})
    with zipfile.ZipFile(tmp_path / "images.npz", "a") as archive:
        archive.writestr("train_images.npy", header.getvalue() + bytes(100))

    assert "'train_images' is damaged" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x80\x04N."])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images.npz").write_bytes(content)

    assert "is damaged or no .npz archive" in refusal(tmp_path)


def test_an_archive_with_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", **arrays())
    content = bytearray((tmp_path / "images.npz").read_bytes())
    content[300] ^= 0xFF
    (tmp_path / "images.npz").write_bytes(content)

    assert "is damaged" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"parts": [3], "num-parts": 3}, "parts=[3]; expected different numbers from 0 to num-parts - 1"),
        ({"classes": ["one"]}, "classes=['one']; expected a list of length 2 or more"),
        ({"file": ""}, "file=''; expected a text of length 1 or more"),
    ],
)
def test_settings_that_break_a_rule_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError) as caught:
        load(Path(), **change)

    assert named in str(caught.value)


@pytest.mark.skipif(not BREAST.exists(), reason="the official BreastMNIST file is not on this machine")
def test_the_official_breastmnist_file_is_read_whole() -> None:
    site = load(BREAST.parent, file=BREAST.name)

    # Published: 546, 78 and 156 images, of which 147, 21 and 42 malignant.
    assert Counter(site.train.labels.tolist()) == {"malignant": 168, "benign": 456}
    assert Counter(site.test.labels.tolist()) == {"malignant": 42, "benign": 114}
    assert site.train.features.shape == (624, 28, 28)
