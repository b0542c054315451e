"""Whole volumes are held in few bytes, stretched only where the hospital asks for it, and never taken for images."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from fl_client.data.image_folder import ImageFolderSource
from fl_client.data.records import Records
from fl_client.source_settings import NiftiSourceSettings
from fl_contract.errors import RefusalError, SettingError
from fl_contract.schema import ImageSchema


def load(folder: Path, *volumes: NDArray[Any], depth: int | None = 4, **changes: Any) -> Records:
    """The training records of volumes given as [depth, height, width]."""
    (folder / "images").mkdir()
    for number, volume in enumerate(volumes):
        stored = np.rot90(np.moveaxis(volume, 0, 2), -1)
        nibabel.save(nibabel.Nifti1Image(stored, np.eye(4)), folder / "images" / f"{number}.nii")
    names = [f"{number}.nii" for number in range(len(volumes))]
    pd.DataFrame({"file": names, "label": "ill", "fold": "train"}).to_csv(folder / "index.csv", index=False)
    raw = {"kind": "nifti", "folder": "images", "index": {"table": "index.csv"}} | changes
    shape = {"height": 6, "width": 8} | ({} if depth is None else {"depth": depth})
    schema = ImageSchema.parse(
        {"kind": "image", "label": "dx", "classes": ["well", "ill"], "maximum": 255.0} | shape, origin="test"
    )
    source = ImageFolderSource(NiftiSourceSettings.parse(raw, origin="test"), folder=folder, schema=schema)
    return source.load().train


def test_volumes_of_the_study_s_size_are_as_they_were_written(tmp_path: Path) -> None:
    volumes = [np.random.default_rng(seed).integers(0, 200, (4, 6, 8), dtype=np.int16) for seed in range(2)]

    records = load(tmp_path, *volumes)

    assert records.features.dtype == np.uint8
    assert np.array_equal(records.features, volumes)


def test_resize_stretches_along_every_axis_and_averages_where_it_shrinks(tmp_path: Path) -> None:
    # Along each axis pairs of equal values: half as many, each the mean of one pair and a bit of its neighbours.
    ramp = np.repeat(np.arange(4.0), 2)[:, None, None] * np.ones((8, 12, 16))

    found = load(tmp_path, ramp.astype(np.float32), resize=True).features

    assert found.shape == (1, 4, 6, 8)
    assert np.allclose(found, found[:, :, :1, :1])
    # Pillow's bilinear filter spans two input steps on each side: weights 1, 3, 3, 1 of 8 on 0,1,1,2 are a mean of 1.
    assert np.allclose(found[0, 1:3, 0, 0], [1.0, 2.0])


def test_a_constant_volume_stays_constant_when_it_grows(tmp_path: Path) -> None:
    found = load(tmp_path, np.full((2, 3, 4), 7, np.int16), resize=True).features

    assert found.shape == (1, 4, 6, 8)
    assert (found == 7).all()


def test_slices_are_no_volumes_and_volumes_no_images(tmp_path: Path) -> None:
    volume = np.zeros((4, 6, 8), np.int16)

    with pytest.raises(RefusalError, match="the study needs volumes; expected"):
        load(tmp_path, volume, plane="axial")


def test_an_image_study_needs_a_plane(tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match=r"source\.plane is missing; the study needs images"):
        load(tmp_path, np.zeros((4, 6, 8), np.int16), depth=None)


def test_a_slice_number_needs_a_plane() -> None:
    raw = {"kind": "nifti", "folder": "images", "index": {"table": "index.csv"}, "slice-number": 3}

    with pytest.raises(SettingError, match="slice-number=3; expected none without plane"):
        NiftiSourceSettings.parse(raw, origin="test")
