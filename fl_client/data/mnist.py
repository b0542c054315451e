"""MNIST from files on disk: the only place that reads the idx format, whose headers are not believed unseen."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from fl_client.data.records import SiteRecords
from fl_client.data.split import deal_images
from fl_client.source_settings import MnistSourceSettings
from fl_contract.errors import RefusalCode, RefusalError

FOLDS = ("train", "t10k")
"""As MNIST calls training and held-out images."""

UNSIGNED_BYTES = 0x08
"""The idx format's code for the type of the values."""

MAX_BYTES = 1024**3
"""Most that a file may hold unpacked, in bytes; MNIST's images are 47 million."""

MAX_RATIO = 200
"""Most that a file may grow when it is unpacked; MNIST's grow fivefold."""


class MnistSource:
    """Parts of MNIST, dealt out over virtual hospitals; its own test images stay held out.

    The files are those that ``torchvision.datasets.MNIST`` keeps in ``MNIST/raw``, packed (``.gz``) or not; nothing is
    downloaded. Nobody knows who wrote which digit: there are no patients.

    Args:
        settings: Folder and parts, from ``site.toml``.
        folder: That a relative path begins at; the one of ``site.toml``.
    """

    def __init__(self, settings: MnistSourceSettings, *, folder: Path) -> None:
        self._settings = settings
        self._folder = folder / settings.folder

    def files(self) -> list[Path]:
        """The four files.

        Raises:
            RefusalError: INVALID_DATA: one is neither there nor there as ``.gz``.
        """
        names = [f"{fold}-{content}" for fold in FOLDS for content in ("images-idx3-ubyte", "labels-idx1-ubyte")]
        found = {}
        for name in names:
            paths = [self._folder / name, self._folder / f"{name}.gz"]
            found[name] = next((path for path in paths if path.is_file()), None)
        if missing := [name for name, path in found.items() if path is None]:
            raise RefusalError(
                RefusalCode.INVALID_DATA,
                f"{self._folder}: files {missing} are missing, with or without .gz; expected the files that "
                "torchvision.datasets.MNIST keeps in its folder MNIST/raw",
            )
        return [path for path in found.values() if path is not None]

    def load(self) -> SiteRecords:
        """The digits of this hospital's parts: uint8 [N, height, width], labels ``0`` to ``9``.

        Raises:
            RefusalError: INVALID_DATA: a file is missing, cannot be read, is cut short or no idx file, would unpack to
                too much, or images and labels do not fit together. The detail stays in the hospital's own log.
        """
        train_images, train_labels, test_images, test_labels = (
            _read_idx(path, num_axes=axes) for path, axes in zip(self.files(), (3, 1, 3, 1), strict=True)
        )
        if train_images.shape[1:] != test_images.shape[1:]:
            raise self._refusal(
                f"images are {list(train_images.shape[1:])} and {list(test_images.shape[1:])}; expected one size"
            )
        for fold, images, digits in zip(FOLDS, (train_images, test_images), (train_labels, test_labels), strict=True):
            if len(images) != len(digits):
                raise self._refusal(f"{fold}: {len(images)} images and {len(digits)} labels; expected one for each")
        labels = np.concatenate([train_labels, test_labels])
        if not len(labels):
            raise self._refusal("holds no images; expected at least one")
        if wrong := int((labels > 9).sum()):
            raise self._refusal(f"{wrong} labels are no digit; expected 0 to 9")
        images = np.concatenate([train_images, test_images])
        return deal_images(images, labels.astype(str), num_held_out=len(test_labels), settings=self._settings)

    def _refusal(self, detail: str) -> RefusalError:
        return _refusal(self._folder, detail)


def _read_idx(path: Path, *, num_axes: int) -> NDArray[np.uint8]:
    """An array of unsigned bytes; room is made only for what the header declares, if a file of that size may."""
    is_packed = path.suffix == ".gz"
    try:
        size = path.stat().st_size
        with gzip.open(path) if is_packed else path.open("rb") as stream:
            shape = _read_header(stream, num_axes, path)
            declared = math.prod(shape)
            if declared > min(MAX_BYTES, (MAX_RATIO if is_packed else 1) * size):
                raise _refusal(
                    path,
                    f"declares {declared} values in a file of {size} bytes; expected at most {MAX_BYTES}, and no more "
                    f"than the file can hold (packed, at most {MAX_RATIO} times its size)",
                )
            content = stream.read(declared + 1)
    except OSError as error:
        detail = "is damaged" if isinstance(error, gzip.BadGzipFile) else f"cannot be read ({error.strerror})"
        raise _refusal(path, f"{detail}; expected a file of MNIST") from error
    except (EOFError, zlib.error) as error:
        raise _refusal(path, "is damaged or cut short; expected a file of MNIST") from error
    if len(content) != declared:
        raise _refusal(path, f"does not hold the {declared} values that its header declares; is it cut short?")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_header(stream: IO[bytes] | gzip.GzipFile, num_axes: int, path: Path) -> tuple[int, ...]:
    """Shape of the array; the format begins with two zeros, the type, the number of axes, and the length of each."""
    start = stream.read(4 + 4 * num_axes)
    if start[:4] != bytes([0, 0, UNSIGNED_BYTES, num_axes]) or len(start) < 4 + 4 * num_axes:
        raise _refusal(path, f"is no idx file of unsigned bytes with {num_axes} axes; expected a file of MNIST")
    return struct.unpack(f">{num_axes}I", start[4:])


def _refusal(path: Path, detail: str) -> RefusalError:
    return RefusalError(RefusalCode.INVALID_DATA, f"{path}: {detail}")
