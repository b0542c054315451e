"""The only place where files of masks become classes of pixels.

Worker processes import this file: it may not bring in the settings, and with them torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_client.data.image_stack import Decode, ImageEntry, decode_all
from fl_client.data.nifti import SUFFIXES
from fl_client.data.picture import decode_picture
from fl_contract.errors import RefusalCode, RefusalError


def load_masks(
    entries: Sequence[ImageEntry],
    shape: tuple[int, ...],
    values: Mapping[float, int],
    *,
    decode_volume: Decode | None,
    resize: bool,
) -> NDArray[np.uint8]:
    """Positions of the pixels' classes, [N, *shape], in the order of the entries.

    Args:
        entries: Images with their masks.
        shape: Of one mask, as the study's images have it.
        values: Position of the class for each value of a pixel.
        decode_volume: Reads a mask in a NIfTI file as its image is read; None where images are none.
        resize: Take the nearest pixel of a mask of another size, instead of refusing it.

    Raises:
        RefusalError: INVALID_DATA: some masks cannot be decoded, are of another size, or hold a value without a class.
            The detail says how many, which rule and where, and names no file and no value.
    """
    masks = np.empty((len(entries), *shape), dtype=np.uint8)
    decode = partial(_decode_mask, decode_volume=decode_volume)
    classify = partial(_classify, decode=decode, shape=shape, values=dict(values), resize=resize)
    decode_all(entries, classify, put=masks.__setitem__)
    return masks


def _decode_mask(entry: ImageEntry, *, decode_volume: Decode | None) -> NDArray[Any]:
    if entry.mask is None:
        raise _refusal("no mask; expected one for each image")
    mask = replace(entry, path=entry.mask)
    is_volume = decode_volume is not None and entry.mask.name.lower().endswith(SUFFIXES)
    return decode_volume(mask) if decode_volume is not None and is_volume else decode_picture(mask)


def _classify(
    entry: ImageEntry, *, decode: Decode, shape: tuple[int, ...], values: dict[float, int], resize: bool
) -> NDArray[np.uint8]:
    try:
        mask = decode(entry)
    except RefusalError as error:
        raise _refusal(f"mask: {error.detail}") from error
    if mask.ndim != len(shape):
        raise _refusal("mask: in colour, or of another number of axes than the image; expected one value a pixel")
    if mask.shape != shape:
        if not resize:
            found, expected = (" x ".join(map(str, each)) for each in (mask.shape, shape))
            raise _refusal(f"mask: {found} pixels; expected {expected}, or resize = true")
        nearest = [(np.arange(new) * 2 + 1) * old // (2 * new) for old, new in zip(mask.shape, shape, strict=True)]
        mask = mask[np.ix_(*nearest)]
    distinct, positions = np.unique(mask, return_inverse=True)
    if any(float(value) not in values for value in distinct):
        raise _refusal(
            "mask: holds values of no class; expected those of source.index.mask-values, or classes' numbers"
        )
    classes = np.array([values[float(value)] for value in distinct], dtype=np.uint8)
    return classes[positions].reshape(shape)


def _refusal(detail: str) -> RefusalError:
    return RefusalError(RefusalCode.INVALID_DATA, detail)
