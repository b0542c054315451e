"""Models that have to wait, in a file in place of memory."""

import os
import tempfile
from contextlib import ExitStack
from functools import cached_property
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_contract.array_record import ArrayViews


class Spool:
    """A file without a name, which is gone with the process, for models that are read back block by block.

    Guarantees:
        - In memory are only the blocks that are being read.
        - A model comes back to the last bit.
        - Where nothing has to wait there is no file.
    """

    def __init__(self) -> None:
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """Models can be put in."""
        return self

    def __exit__(self, *_: object) -> None:
        """They are gone."""
        self._open.close()

    def put(self, arrays: ArrayViews) -> "SpooledModel":
        """Keep a model."""
        offsets = {}
        for name, array in arrays.items():
            offsets[name] = self._file.tell()
            self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._file.flush()
        return SpooledModel(self._file.fileno(), offsets, {name: array.dtype for name, array in arrays.items()})

    @cached_property
    def _file(self) -> IO[bytes]:
        return self._open.enter_context(tempfile.TemporaryFile())


class SpooledModel:
    """A model in a spool, as `strategies.blocks.Blocks`; of use while the spool is open."""

    def __init__(self, file: int, offsets: dict[str, int], types: dict[str, np.dtype[Any]]) -> None:
        self._file, self._offsets, self._types = file, offsets, types

    def block(self, name: str, place: slice) -> NDArray[Any]:
        """Read from the file.

        Raises:
            OSError: The file is shorter than what was put in.
        """
        numbers = np.empty(place.stop - place.start, self._types[name])
        start = self._offsets[name] + place.start * numbers.itemsize
        if os.preadv(self._file, [numbers.view(np.uint8).data], start) != numbers.nbytes:
            raise OSError("the file of waiting models is shorter than what was put into it")
        return numbers
