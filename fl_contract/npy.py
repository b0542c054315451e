"""The only place that reads and writes arrays in NumPy's own format without copying their numbers."""

import io
import math
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

_MAGIC = npy_format.magic(1, 0)
_START = len(_MAGIC) + 2
"""Where the header is, after two bytes with its length."""


def view_npy(data: bytes) -> NDArray[Any]:
    """The array in these bytes, read-only and without a copy; never unpickles.

    Raises:
        ValueError: They are not one whole array in version 1 of NumPy's format; what else NumPy raises for a damaged
            header is not caught.

    >>> buffer = NpyBuffer((2,), np.dtype(np.float64))
    >>> buffer.array[:] = 1.0, 2.0
    >>> view_npy(buffer.close())
    array([1., 2.])
    """
    if not data.startswith(_MAGIC) or len(data) < _START:
        raise ValueError("not an array in NumPy's format")
    offset = _START + int.from_bytes(data[len(_MAGIC) : _START], "little")
    shape, order, dtype, num_bytes = _read_header(data[len(_MAGIC) : offset])
    if len(data) - offset != num_bytes:
        raise ValueError("the header does not fit the bytes")
    return np.ndarray(shape, dtype, data, offset, order=order)


@lru_cache(maxsize=1024)
def npy_head(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What NumPy writes before the numbers of such an array in C order."""
    head = io.BytesIO()
    header = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(head, header)
    return head.getvalue()


class NpyBuffer:
    """An array that is filled where its bytes will be sent from, so that it is in memory once.

    Attributes:
        array: To be filled; zeros.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        head, num_bytes = npy_head(shape, dtype), math.prod(shape) * dtype.itemsize
        self._file = io.BytesIO(bytes(len(head) + num_bytes))  # takes the bytes over, since nobody else holds them
        self._file.write(head)
        filled = self._file.getbuffer()[len(head) :]
        self.array: NDArray[Any] = (np.frombuffer(filled, dtype) if num_bytes else np.empty(0, dtype)).reshape(shape)

    def close(self) -> bytes:
        """The bytes; not copied where no view of the array is held any more."""
        del self.array
        return self._file.getvalue()


@lru_cache(maxsize=1024)
def _read_header(header: bytes) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any], int]:
    """Shape, order, type and bytes; a model's headers come again with every reply, and NumPy reads one in 30 µs."""
    shape, is_fortran, dtype = npy_format.read_array_header_1_0(io.BytesIO(header))
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("an array of objects, or of a size below 0")
    return shape, "F" if is_fortran else "C", dtype, math.prod(shape) * dtype.itemsize
