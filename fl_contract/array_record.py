"""How arrays travel: the only place where Flower's records become NumPy arrays, and the other way round.

Nothing is unpickled; what is read from a network is checked before it is used.
"""

import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fl_contract.errors import MessageError
from fl_contract.npy import NpyBuffer, npy_head, view_npy

Arrays = dict[str, NDArray[Any]]
"""A model's state, or an update: one array per name."""

ArrayViews = Mapping[str, NDArray[Any]]
"""As `Arrays`, to be read only."""

_UNREADABLE = (
    ValueError, TypeError, OSError, EOFError, OverflowError, MemoryError, RecursionError, SyntaxError,
    tokenize.TokenError,
)  # fmt: skip
"""What NumPy raises for bytes that are not, or not quite, an array of its own format."""


def to_array_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Arrays as Flower carries them; names, shapes, types and order are kept."""
    return ArrayRecord({name: Array(np.asarray(array, order="C")) for name, array in arrays.items()})


def from_array_record(record: ArrayRecord) -> Arrays:
    """The arrays that Flower carried; never unpickles.

    Raises:
        MessageError: An array is not in NumPy's own format, or its bytes are damaged.
    """
    return {name: np.array(array) for name, array in view_array_record(record).items()}


def view_array_record(record: ArrayRecord) -> Arrays:
    """As `from_array_record`, read-only and without a copy: the bytes stay the record's.

    Raises:
        MessageError: An array is not in NumPy's own format, or its bytes are damaged.
    """
    return {name: view_array(name, array) for name, array in record.items()}


def view_array(name: str, array: Array) -> NDArray[Any]:
    """As `view_array_record`, of one array.

    Raises:
        MessageError: As there.
    """
    if array.stype != "numpy.ndarray":
        raise MessageError(f"array {name!r} has serialisation {array.stype!r}; expected 'numpy.ndarray'")
    try:
        return view_npy(array.data)
    except _UNREADABLE as error:
        raise MessageError(f"array {name!r} cannot be read; its bytes are not a NumPy array") from error


def is_like(array: Array, like: NDArray[Any]) -> bool:
    """Whether its bytes are, to their number and the whole head, those of an array like this one in C order."""
    head = npy_head(like.shape, like.dtype)
    data = array.data
    return array.stype == "numpy.ndarray" and len(data) == len(head) + like.nbytes and data.startswith(head)


class RecordViews(ArrayViews):
    """The arrays of a record, each viewed anew when it is asked for: kept views of a hundred models take memory.

    Args:
        record: Whose bytes are read, for as long as it holds them.
        like: Arrays in the order wanted; `is_like` holds for each.
    """

    def __init__(self, record: ArrayRecord, like: Arrays) -> None:
        self._record, self._like = record, like

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read-only."""
        like, data = self._like[name], self._record[name].data
        return np.ndarray(like.shape, like.dtype, data, len(data) - like.nbytes)

    def block(self, name: str, place: slice) -> NDArray[Any]:
        """Some numbers of one array, flat; at least one."""
        like, data = self._like[name], self._record[name].data
        start = len(data) - like.nbytes + place.start * like.itemsize
        return np.frombuffer(data, like.dtype, place.stop - place.start, start)

    def __iter__(self) -> Iterator[str]:
        """Names, in order."""
        return iter(self._like)

    def __len__(self) -> int:
        """How many arrays."""
        return len(self._like)


def take_array_record(buffers: Mapping[str, NpyBuffer]) -> ArrayRecord:
    """Filled arrays as Flower carries them, without a copy; the buffers are used up."""
    record = ArrayRecord()
    for name, buffer in buffers.items():
        dtype, shape = str(buffer.array.dtype), buffer.array.shape
        record[name] = Array(dtype=dtype, shape=shape, stype="numpy.ndarray", data=buffer.close())
    return record
