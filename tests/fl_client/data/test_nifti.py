"""A slice of a volume shows the same side up however the file orders its axes, in the units that its header gives."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from fl_client.data import nifti
from fl_client.data.image_stack import ImageEntry
from fl_client.data.nifti import Plane, decode_slice, decode_volume
from fl_contract.errors import RefusalError

REAL = Path(__file__).parents[4] / "shared" / "data" / "dicom_nifti"
needs_real_files = pytest.mark.skipif(not REAL.exists(), reason="the real NIfTI files are not on this machine")

# [left to right, back to front, feet to head] of 2 x 3 x 4 voxels; each value says where it is.
VOLUME = np.array([[[100 * x + 10 * y + z for z in range(4)] for y in range(3)] for x in range(2)], dtype=np.int16)


def save(path: Path, volume: NDArray[Any], affine: NDArray[Any] | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)


def decode(
    path: Path, *, plane: Plane = "axial", slice_number: int | None = None, volume: int | None = None
) -> NDArray[np.float64]:
    entry = ImageEntry(path=path, place="here", label="ill")
    return decode_slice(entry, plane=plane, slice_number=slice_number, volume=volume)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(RefusalError) as caught:
        decode(path, **options)
    return caught.value.detail


@pytest.mark.parametrize(
    ("plane", "expected"),
    [
        # Top is the front, right is the patient's right, at the middle of 4 slices from the feet: z = 2.
        ("axial", [[22, 122], [12, 112], [2, 102]]),
        # Top is the head, right is the patient's right, at the middle of 3 slices from the back: y = 1.
        ("coronal", [[13, 113], [12, 112], [11, 111], [10, 110]]),
        # Top is the head, right is the front, at the upper of the 2 slices in the middle: x = 1.
        ("sagittal", [[103, 113, 123], [102, 112, 122], [101, 111, 121], [100, 110, 120]]),
    ],
)
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_plane_shows_the_patient_the_same_way_up(
    tmp_path: Path, plane: Plane, expected: list[list[int]], suffix: str
) -> None:
    save(tmp_path / f"1.{suffix}", VOLUME)

    assert np.array_equal(decode(tmp_path / f"1.{suffix}", plane=plane), expected)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_the_order_and_direction_of_the_file_s_axes_change_nothing(
    tmp_path: Path, axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    stored = np.transpose(VOLUME[:: flips[0], :: flips[1], :: flips[2]], axes)
    affine = np.zeros((4, 4))
    for column, axis in enumerate(axes):
        affine[axis, column] = flips[axis]
    affine[3, 3] = 1
    save(tmp_path / "canonical.nii", VOLUME)
    save(tmp_path / "turned.nii", stored, affine)

    for plane in nifti.PLANES:
        for number in (0, 1):
            expected = decode(tmp_path / "canonical.nii", plane=plane, slice_number=number)
            assert np.array_equal(decode(tmp_path / "turned.nii", plane=plane, slice_number=number), expected)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_a_whole_volume_is_its_axial_slices_from_the_feet_up(
    tmp_path: Path, axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    affine = np.zeros((4, 4))
    for column, axis in enumerate(axes):
        affine[axis, column] = flips[axis]
    affine[3, 3] = 1
    save(tmp_path / "1.nii", np.transpose(VOLUME[:: flips[0], :: flips[1], :: flips[2]], axes), affine)

    found = decode_volume(ImageEntry(path=tmp_path / "1.nii", place="here", label="ill"), volume=None)

    # Front at the top, the patient's right at the right: y falls and x rises.
    assert found.tolist() == [[[100 * x + 10 * y + z for x in range(2)] for y in (2, 1, 0)] for z in range(4)]


def test_a_whole_volume_of_too_many_voxels_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "1.nii", VOLUME)
    monkeypatch.setattr(nifti, "MAX_WHOLE_VOXELS", 23)

    with pytest.raises(RefusalError) as caught:
        decode_volume(ImageEntry(path=tmp_path / "1.nii", place="here", label="ill"), volume=None)

    assert "of 23 voxels" in caught.value.detail


def test_slices_are_counted_from_the_feet(tmp_path: Path) -> None:
    save(tmp_path / "1.nii", VOLUME)

    assert np.array_equal(decode(tmp_path / "1.nii", slice_number=0), [[20, 120], [10, 110], [0, 100]])
    assert refusal(tmp_path / "1.nii", slice_number=4) == "4 slices; expected more than source.slice-number=4"


def test_the_header_s_rescale_is_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header.set_slope_inter(2.0, -1000.0)
    image.to_filename(tmp_path / "1.nii")

    # 2 * stored - 1000
    assert np.array_equal(decode(tmp_path / "1.nii"), [[-956, -756], [-976, -776], [-996, -796]])


def test_a_series_needs_the_number_of_a_volume(tmp_path: Path) -> None:
    save(tmp_path / "1.nii", np.stack([VOLUME, VOLUME + 1000], axis=3))
    save(tmp_path / "one.nii", VOLUME)

    assert decode(tmp_path / "1.nii", volume=1)[0, 0] == 1022
    assert refusal(tmp_path / "1.nii") == "2 volumes; expected one, or source.volume"
    assert refusal(tmp_path / "1.nii", volume=2) == "2 volumes; expected more than source.volume=2"
    assert refusal(tmp_path / "one.nii", volume=0) == "one volume; source.volume is for a series of them"


def test_a_volume_that_does_not_say_where_left_is_is_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOLUME, None)
    image.to_filename(tmp_path / "1.nii")

    assert "header without an orientation" in refusal(tmp_path / "1.nii")


def test_axes_that_do_not_span_the_patient_are_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOLUME, None)
    image.header["sform_code"], image.header["srow_x"], image.header["srow_y"] = 1, [1, 0, 0, 0], [0, 1, 0, 0]
    image.to_filename(tmp_path / "1.nii")

    assert "an affine of fewer than 3 directions" in refusal(tmp_path / "1.nii")


@pytest.mark.parametrize("shape", [(3, 3), (2, 2, 2, 1, 3)])
def test_other_numbers_of_axes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save(tmp_path / "1.nii", np.zeros(shape, np.int16))

    assert "expected 3 axes, or 4 with source.volume" in refusal(tmp_path / "1.nii")


def test_a_volume_of_too_many_voxels_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "1.nii", VOLUME)
    monkeypatch.setattr(nifti, "MAX_VOXELS", 23)

    assert "a volume of [2, 3, 4]" in refusal(tmp_path / "1.nii")


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_colours_and_complex_values_are_refused(tmp_path: Path, dtype: Any) -> None:
    save(tmp_path / "1.nii", np.zeros((2, 3, 4), dtype))

    assert refusal(tmp_path / "1.nii") == "values in colour or complex; expected numbers"


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.9])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"1.{suffix}"
    save(path, np.random.default_rng(1).integers(0, 30_000, (20, 20, 20), dtype=np.int16))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    assert "cut short" in refusal(path, slice_number=19)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "mgz", "dcm"])
def test_a_file_of_another_format_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"1.{suffix}").write_bytes(b"no volume at all" * 100)

    assert "no NIfTI file" in refusal(tmp_path / f"1.{suffix}")


@needs_real_files
@pytest.mark.parametrize(
    ("name", "volume", "shape"),
    [
        # Heights and widths of the axial slices; SOURCES.md gives the shapes.
        ("anatomical.nii", None, (41, 33)),
        ("functional.nii", 19, (21, 17)),
        ("example4d.nii.gz", 1, (96, 128)),
        ("example_nifti2.nii.gz", 0, (20, 32)),
    ],
)
def test_real_files_are_read(name: str, volume: int | None, shape: tuple[int, int]) -> None:
    slice_ = decode(REAL / name, volume=volume)

    whole: NDArray[np.float64] = nibabel.as_closest_canonical(nibabel.load(REAL / name)).get_fdata()
    middle = whole[:, :, whole.shape[2] // 2] if volume is None else whole[:, :, whole.shape[2] // 2, volume]
    assert slice_.shape == shape
    assert np.array_equal(slice_, middle.T[::-1])
    assert slice_.std() > 0


@needs_real_files
@pytest.mark.parametrize(("name", "volume"), [("anatomical.nii", None), ("example4d.nii.gz", 1)])
def test_real_volumes_are_read_whole(name: str, volume: int | None) -> None:
    found = decode_volume(ImageEntry(path=REAL / name, place="here", label="ill"), volume=volume)

    assert np.array_equal(found[3], decode(REAL / name, slice_number=3, volume=volume))


@needs_real_files
def test_a_real_series_is_refused_without_the_number_of_a_volume() -> None:
    assert refusal(REAL / "functional.nii") == "20 volumes; expected one, or source.volume"
