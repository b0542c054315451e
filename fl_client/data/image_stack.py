"""The only place where files of images become one array of the study's geometry, many of them in worker processes.

Worker processes import this file and one decoder: neither may bring in the settings, and with them torch.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fl_client.data.pixels import PixelStack, shrink
from fl_client.data.records import Records, SiteRecords
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.schema import ImageSchema

MIN_IMAGES_FOR_WORKERS = 4000
"""Fewer images are decoded sooner than worker processes start."""

IMAGES_A_TASK = 32
SHOWN_PLACES = 5
"""Images that a refusal points at, for each broken rule."""


@dataclass(frozen=True, kw_only=True)
class ImageEntry:
    """One image of a hospital.

    Attributes:
        path: Its file. A file's name may be a patient's: it is never in a message.
        place: Where the hospital finds it without the name: a line of its index, a number in a folder.
        label: Name of its class, or its event; empty where numbers or a mask say all.
        patient: Whose image it is; None if nobody says.
        frame: Which image of the file, from 1; None for a file of one.
        numbers: Findings, target or time, as the study's outcome has them.
        mask: File of its mask.
    """

    path: Path
    place: str
    label: str
    patient: str | None = None
    frame: int | None = None
    numbers: tuple[float, ...] = ()
    mask: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ImageFolds:
    """A hospital's images: those it trains on and those it holds out."""

    train: tuple[ImageEntry, ...]
    test: tuple[ImageEntry, ...]


Decode = Callable[[ImageEntry], NDArray[Any]]
"""Pixels of an image, [height, width] or [height, width, channels], or of a volume, [depth, height, width]; a refusal
names the rule that it breaks."""


def load_images(folds: ImageFolds, decode: Decode, schema: ImageSchema, *, resize: bool) -> SiteRecords:
    """Decode all images of a hospital, in the order of the entries.

    Args:
        folds: Which images.
        decode: Reads one; may run in another process.
        schema: Their geometry.
        resize: Stretch images of another size (linear along each axis, averaged where they shrink) instead of refusing
            them.

    Returns:
        [N, height, width, channels], for volumes [N, depth, height, width], in as few bytes as hold them.

    Raises:
        RefusalError: INVALID_DATA: some images cannot be decoded or are of another geometry. The detail says how many,
            which rule and where, and names no file.
    """
    entries = folds.train + folds.test
    stack = PixelStack(len(entries), schema.pixel_shape if schema.depth else (*schema.pixel_shape, schema.channels))
    decode_all(entries, partial(_decode_image, decode=decode, schema=schema, resize=resize), put=stack.put)
    first, pixels = len(folds.train), stack.array
    return SiteRecords(train=_records(folds.train, pixels[:first]), test=_records(folds.test, pixels[first:]))


def decode_all(entries: Sequence[ImageEntry], decode: Decode, *, put: Callable[[int, NDArray[Any]], object]) -> None:
    """Decode every entry and hand it on with its row, many of them in worker processes.

    Raises:
        RefusalError: INVALID_DATA: ``decode`` refuses some, or their files cannot be opened. All are counted, by rule.
    """
    faults: dict[str, list[str]] = {}
    for row, result in enumerate(_map(partial(_attempt, decode=decode), entries)):
        if isinstance(result, str):
            faults.setdefault(result, []).append(entries[row].place)
        else:
            put(row, result)
    if faults:
        raise RefusalError(RefusalCode.INVALID_DATA, _describe(faults, len(entries)))


def _map(
    attempt: Callable[[ImageEntry], NDArray[Any] | str], entries: Sequence[ImageEntry]
) -> Iterator[NDArray[Any] | str]:
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(entries) < MIN_IMAGES_FOR_WORKERS or workers == 1:
        yield from map(attempt, entries)
        return
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield from pool.map(attempt, entries, chunksize=IMAGES_A_TASK)
    except BrokenProcessPool as error:
        detail = "a worker process died while it decoded images; expected enough memory for all of them"
        raise RefusalError(RefusalCode.INTERNAL, detail) from error


def _attempt(entry: ImageEntry, *, decode: Decode) -> NDArray[Any] | str:
    """The image, or the rule that it breaks: every broken image is counted, not the first one only."""
    try:
        return decode(entry)
    except RefusalError as error:
        return error.detail
    except OSError as error:
        return f"cannot be opened ({error.strerror})"


def _decode_image(entry: ImageEntry, *, decode: Decode, schema: ImageSchema, resize: bool) -> NDArray[Any]:
    fit = _fit_plane if schema.depth is None else _fit_volume
    return shrink(fit(decode(entry), schema, resize=resize))


def _fit_plane(pixels: NDArray[Any], schema: ImageSchema, *, resize: bool) -> NDArray[Any]:
    """[height, width, channels] of the study."""
    image = pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
    height, width, channels = image.shape
    if channels != schema.channels:
        raise RefusalError(RefusalCode.INVALID_DATA, f"{channels} channels; expected {schema.channels}")
    if (height, width) == (schema.height, schema.width):
        return image
    if not resize:
        raise RefusalError(
            RefusalCode.INVALID_DATA,
            f"{height} x {width} pixels, height x width; expected {schema.height} x {schema.width}, or resize = true",
        )
    return np.stack([_stretch(image[..., channel], *schema.pixel_shape) for channel in range(channels)], axis=2)


def _fit_volume(pixels: NDArray[Any], schema: ImageSchema, *, resize: bool) -> NDArray[Any]:
    """[depth, height, width] of the study."""
    if pixels.shape == schema.pixel_shape:
        return pixels
    if not resize:
        found, expected = (" x ".join(map(str, shape)) for shape in (pixels.shape, schema.pixel_shape))
        raise RefusalError(
            RefusalCode.INVALID_DATA, f"{found} voxels, depth x height x width; expected {expected}, or resize = true"
        )
    slices = np.stack([_stretch(each, schema.height, schema.width) for each in pixels])
    columns = slices.reshape(len(slices), -1)
    return _stretch(columns, schema.pixel_shape[0], columns.shape[1]).reshape(schema.pixel_shape)


def _stretch(plane: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _records(entries: Sequence[ImageEntry], pixels: NDArray[Any]) -> Records:
    patients = [entry.patient for entry in entries if entry.patient is not None]
    return Records(
        features=pixels,
        feature_names=(),
        labels=np.array([entry.label for entry in entries], dtype=np.str_),
        patients=np.array(patients, dtype=np.str_) if patients else None,
        outcomes=_outcomes(entries),
    )


def _outcomes(entries: Sequence[ImageEntry]) -> NDArray[np.float64] | None:
    """[N, numbers]; None where entries have none."""
    return np.array([entry.numbers for entry in entries]) if entries and entries[0].numbers else None


def _describe(faults: dict[str, list[str]], count: int) -> str:
    lines = []
    for rule, places in faults.items():
        shown = ", ".join(places[:SHOWN_PLACES]) + (", ..." if len(places) > SHOWN_PLACES else "")
        lines.append(f"{len(places)} of {count} images: {rule} ({shown})")
    return "; ".join(lines)
