"""Replies that a rule must see together, kept in a file and read back some coordinates at a time."""

import tempfile
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_contract.messages import Arrays

BLOCK_BYTES = 1 << 24
"""Of all replies together that are in memory at a time."""


class Spool:
    """Models as rows of flat numbers: 32-bit floats and smaller ones as float32, all others as float64.

    Guarantees:
        - Memory: `BLOCK_BYTES` and one model, however many rows there are; the rows are in a file without a name, which
          is gone with the process.
        - The order of rows is that of the names of their hospitals, whoever replied first.

    Args:
        like: A model with the names, shapes and types that every row has.
    """

    def __init__(self, like: Arrays) -> None:
        self._like = like
        self._names = {
            kind: [name for name, array in like.items() if _row_type(array) == kind]
            for kind in (np.dtype(np.float32), np.dtype(np.float64))
        }
        self._sizes = {kind: sum(like[name].size for name in names) for kind, names in self._names.items()}
        self._files = {kind: tempfile.TemporaryFile() for kind in self._names}  # noqa: SIM115  closed by close
        self.sites: list[str] = []

    def __enter__(self) -> Self:
        """Rows can be added."""
        return self

    def __exit__(self, *_: object) -> None:
        """The rows are gone."""
        for file in self._files.values():
            file.close()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.sites)

    def add(self, site: str, arrays: Arrays) -> None:
        """Add a hospital's model, whose names and shapes were checked before."""
        for kind, names in self._names.items():
            for name in names:
                self._files[kind].write(np.ascontiguousarray(arrays[name], dtype=kind).data)
        self.sites.append(site)

    def blocks(self, kind: np.dtype[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Some coordinates of all rows at a time, [rows, coordinates], with their place in the flat row."""
        file, size, count = self._files[kind], self._sizes[kind], len(self)
        if not size or not count:
            return
        file.flush()
        rows = np.memmap(file, dtype=kind, mode="r", shape=(count, size))
        order = np.argsort(self.sites)
        width = max(1, BLOCK_BYTES // (count * kind.itemsize))
        for start in range(0, size, width):
            place = slice(start, min(start + width, size))
            yield place, rows[:, place][order]

    def flatten(self, arrays: Arrays, kind: np.dtype[Any]) -> NDArray[Any]:
        """The numbers of one model that are of a kind, as in its row."""
        parts = [np.asarray(arrays[name], dtype=kind).ravel() for name in self._names[kind]]
        return np.concatenate(parts) if parts else np.empty(0, kind)

    def restore(self, flat: dict[np.dtype[Any], NDArray[Any]]) -> Arrays:
        """The model of a row of each kind, floats in float64 and whole numbers rounded to their type."""
        model: Arrays = {}
        for kind, names in self._names.items():
            position = 0
            for name in names:
                array = self._like[name]
                part = flat[kind][position : position + array.size].reshape(array.shape)
                position += array.size
                model[name] = part.astype(np.float64) if array.dtype.kind == "f" else np.rint(part).astype(array.dtype)
        return {name: model[name] for name in self._like}

    @property
    def kinds(self) -> tuple[np.dtype[Any], ...]:
        """Types of rows."""
        return tuple(self._names)


def _row_type(array: NDArray[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32 if array.dtype.kind == "f" and array.dtype.itemsize <= 4 else np.float64)
