"""The only place that reads and writes arrays in NumPy's own format without copying their numbers."""

import io
import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

_MAGIC = npy_format.magic(1, 0)
_LENGTH_BYTES = 2


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
    start = len(_MAGIC) + _LENGTH_BYTES
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
        raise ValueError("not an array in NumPy's format")
    offset = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    shape, is_fortran, dtype = _read_header(data[len(_MAGIC) : offset])
    size = math.prod(shape)
    if dtype.hasobject or min(shape, default=0) < 0 or len(data) - offset != size * dtype.itemsize:
        raise ValueError("the header does not fit the bytes")
    flat = np.frombuffer(data, dtype, count=size, offset=offset) if size else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if is_fortran else "C")


class NpyBuffer:
    """An array that is filled where its bytes will be sent from, so that it is in memory once.

    Attributes:
        array: To be filled; zeros.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        head = io.BytesIO()
        header = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        npy_format.write_array_header_1_0(head, header)
        offset, num_bytes = head.tell(), math.prod(shape) * dtype.itemsize
        self._file = io.BytesIO(bytes(offset + num_bytes))  # takes the bytes over, since nobody else holds them
        self._file.write(head.getvalue())
        filled = self._file.getbuffer()[offset:]
        self.array: NDArray[Any] = (np.frombuffer(filled, dtype) if num_bytes else np.empty(0, dtype)).reshape(shape)

    def close(self) -> bytes:
        """The bytes; not copied where no view of the array is held any more."""
        del self.array
        return self._file.getvalue()


@lru_cache(maxsize=1024)
def _read_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type; a model's headers come again with every reply, and NumPy reads one in 30 µs."""
    return npy_format.read_array_header_1_0(io.BytesIO(header))
