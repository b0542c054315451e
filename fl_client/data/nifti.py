"""NIfTI volumes: the only place that decodes them, and that knows which way up a patient lies in them."""

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from fl_client.data.image_stack import ImageEntry
from fl_contract.errors import RefusalCode, RefusalError

Plane = Literal["sagittal", "coronal", "axial"]
PLANES: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
"""By the axis that a slice stands on: to the patient's right, front, and head."""

SUFFIXES = (".nii", ".nii.gz")
MAX_VOXELS = 2**30
"""Of a volume that a slice is cut from; a CT of 512 x 512 pixels with 4,096 slices has as many."""

MAX_WHOLE_VOXELS = 2**27
"""Of a volume that is read whole: 512 x 512 x 512."""

_BROKEN = (EOFError, HeaderDataError, ImageFileError, OSError, OverflowError, ValueError, struct.error, zlib.error)


def decode_slice(
    entry: ImageEntry, *, plane: Plane, slice_number: int | None, volume: int | None
) -> NDArray[np.float64]:
    """One slice of a volume, rescaled by its header, in the canonical orientation (right, anterior, superior).

    Guarantees:
        - The picture's top is the patient's front (axial) or head; its right is the patient's right (axial, coronal) or
          front (sagittal), however the file orders its axes.

    Args:
        entry: Which file.
        plane: Which way the volume is cut.
        slice_number: From 0 at the patient's left, back or feet; None for the middle one, the upper of two.
        volume: Which volume of a series, from 0; None for a file of one.

    Returns:
        [height, width].

    Raises:
        OSError: The file cannot be opened.
        RefusalError: INVALID_DATA: no NIfTI file, cut short or damaged, not 3-D, in colour, of unknown orientation, or
            without that slice or volume.
    """
    with _opened(entry) as image:
        return _cut(_choose_volume(image, volume, MAX_VOXELS), PLANES.index(plane), slice_number)


def decode_volume(entry: ImageEntry, *, volume: int | None) -> NDArray[np.float64]:
    """A whole volume, rescaled by its header, in the canonical orientation: a stack of axial slices from the feet up.

    Each slice is as `decode_slice` gives it. Voxels are not resampled to equal spacing.

    Args:
        entry: Which file.
        volume: Which volume of a series, from 0; None for a file of one.

    Returns:
        [depth, height, width].

    Raises:
        OSError: The file cannot be opened.
        RefusalError: INVALID_DATA, as for a slice, or more voxels than `MAX_WHOLE_VOXELS`.
    """
    with _opened(entry) as image:
        chosen = _choose_volume(image, volume, MAX_WHOLE_VOXELS)
        _check_directions(chosen)
        values = nibabel.as_closest_canonical(chosen).get_fdata()
        return np.moveaxis(np.rot90(values), 2, 0)


@contextmanager
def _opened(entry: ImageEntry) -> Iterator[nibabel.Nifti1Image]:
    """The file; nibabel reads its voxels when they are asked for, so that inside too they may prove damaged."""
    entry.path.open("rb").close()  # a file that cannot be opened is told apart from a damaged one
    if not entry.path.name.lower().endswith(SUFFIXES):
        raise _refusal("no NIfTI file; expected .nii or .nii.gz")
    try:
        image = nibabel.load(entry.path)
        if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a subclass
            raise _refusal("no NIfTI file")
        yield image
    except _BROKEN as error:
        raise _refusal("no NIfTI file, cut short or damaged") from error


def _choose_volume(image: nibabel.Nifti1Image, volume: int | None, most: int) -> nibabel.Nifti1Image:
    shape = image.shape
    if image.get_data_dtype().kind not in "iuf":
        raise _refusal("values in colour or complex; expected numbers")
    if image.header["qform_code"] == 0 and image.header["sform_code"] == 0:
        raise _refusal("header without an orientation; expected qform or sform, which say where left is")
    if len(shape) not in (3, 4) or 0 in shape or math.prod(shape[:3]) > most:
        raise _refusal(f"a volume of {list(shape)}; expected 3 axes, or 4 with source.volume, of {most} voxels")
    if len(shape) == 3:
        if volume is not None:
            raise _refusal("one volume; source.volume is for a series of them")
        return image
    if volume is None:
        raise _refusal(f"{shape[3]} volumes; expected one, or source.volume")
    if volume >= shape[3]:
        raise _refusal(f"{shape[3]} volumes; expected more than source.volume={volume}")
    return image.slicer[..., volume]


def _cut(image: nibabel.Nifti1Image, axis: int, slice_number: int | None) -> NDArray[np.float64]:
    """Cut before turning, so that a slice is all that is read of a volume."""
    orientation = _check_directions(image)
    stored = int(np.flatnonzero(orientation[:, 0] == axis)[0])
    size = image.shape[stored]
    number = size // 2 if slice_number is None else slice_number
    if number >= size:
        raise _refusal(f"{size} slices; expected more than source.slice-number={number}")
    position = number if orientation[stored, 1] > 0 else size - 1 - number
    cut = [slice(None)] * 3
    cut[stored] = slice(position, position + 1)
    values = nibabel.as_closest_canonical(image.slicer[tuple(cut)]).get_fdata()
    return np.rot90(np.squeeze(values, axis=axis))


def _check_directions(image: nibabel.Nifti1Image) -> NDArray[np.float64]:
    """The patient's axis and direction of each of the file's axes, [3, 2]."""
    orientation: NDArray[np.float64] = io_orientation(image.affine)
    if not np.isfinite(orientation).all():
        raise _refusal("an affine of fewer than 3 directions; expected one that says where left is")
    return orientation


def _refusal(detail: str) -> RefusalError:
    return RefusalError(RefusalCode.INVALID_DATA, detail)
