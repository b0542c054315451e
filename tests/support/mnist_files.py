"""Files of the idx format, as MNIST has them."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def idx(array: NDArray[np.uint8], shape: tuple[int, ...] | None = None) -> bytes:
    """A file's content, which may declare another shape than it has."""
    declared = array.shape if shape is None else shape
    return bytes([0, 0, 8, len(declared)]) + struct.pack(f">{len(declared)}I", *declared) + array.tobytes()


def save_idx(path: Path, content: bytes) -> None:
    """Packed where the name says so."""
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, images: NDArray[np.uint8], labels: NDArray[Any]) -> None:
    """The four files, with the same images for training and held out."""
    folder.mkdir()
    for fold in ("train", "t10k"):
        save_idx(folder / f"{fold}-images-idx3-ubyte.gz", idx(images))
        save_idx(folder / f"{fold}-labels-idx1-ubyte", idx(labels.astype(np.uint8)))
