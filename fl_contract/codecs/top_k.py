"""The largest numbers of an update only, with error feedback (Stich et al. 2018, algorithm 1; arXiv 1809.07599)."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fl_contract.codecs.codec import Codec, CodecSeed, CodecSettings, Shapes, Vector, read_numbers
from fl_contract.codecs.float16 import LARGEST
from fl_contract.errors import ReplyError


class TopK(Codec):
    """Sends a share of the numbers as float16; what is not sent, and what is rounded off, comes with later rounds.

    Their places travel in Elias-Fano's code (Elias 1974): the low bits of each, and one bit set for each in a row that
    counts up the high parts. That is within .1 bits a sent number of the least possible.

    Args:
        shapes: Of the trained arrays.
        fraction: Of the numbers that are sent, rounded up.
    """

    KEEPS_RESIDUAL = True

    def __init__(self, shapes: Shapes, fraction: float) -> None:
        super().__init__(shapes)
        self._count = min(self.size, int(np.ceil(fraction * self.size)))
        self._low_bits = (self.size // self._count).bit_length() - 1 if self._count else 0
        self._high_bits = self._count + (self.size >> self._low_bits)

    @property
    def num_bytes(self) -> int:
        """Two a sent number, and its place."""
        return 2 * self._count + self._num_low_bytes + -(-self._high_bits // 8)

    @property
    def _num_low_bytes(self) -> int:
        return -(-self._count * self._low_bits // 8)

    def encode(self, update: Vector, seed: CodecSeed) -> bytes:
        """See `Codec.encode`."""
        del seed
        if not self._count:
            return b""
        largest = np.argpartition(np.abs(update), self.size - self._count)[self.size - self._count :]
        places = np.sort(largest)
        values = np.clip(update[places], -LARGEST, LARGEST).astype("<f2")
        return values.tobytes() + self._write_places(places)

    def decode(self, payload: bytes, seed: CodecSeed) -> Vector:
        """See `Codec.decode`."""
        del seed
        (values,) = read_numbers(payload[: 2 * self._count], "<f2", self._count)
        low, high = read_numbers(
            payload[2 * self._count :],
            "<u1",
            self._num_low_bytes,
            self.num_bytes - 2 * self._count - self._num_low_bytes,
        )
        update = np.zeros(self.size, dtype=np.float32)
        update[self._read_places(low.astype(np.uint8), high.astype(np.uint8))] = values
        return update

    def _write_places(self, places: NDArray[np.int64]) -> bytes:
        low = (places[:, np.newaxis] >> np.arange(self._low_bits)) & 1
        high = np.zeros(self._high_bits, dtype=bool)
        high[(places >> self._low_bits) + np.arange(self._count)] = True
        return np.packbits(low.astype(bool)).tobytes() + np.packbits(high).tobytes()

    def _read_places(self, low: NDArray[np.uint8], high: NDArray[np.uint8]) -> NDArray[np.int64]:
        ones = np.flatnonzero(np.unpackbits(high, count=self._high_bits))
        if len(ones) != self._count:
            raise ReplyError(f"the coded update names {len(ones)} places; expected {self._count}")
        bits = np.unpackbits(low, count=self._count * self._low_bits).reshape(self._count, self._low_bits)
        places = ((ones - np.arange(self._count)) << self._low_bits) + bits @ (1 << np.arange(self._low_bits))
        if (np.diff(places) <= 0).any() or (places >= self.size).any():
            raise ReplyError("the coded update names a place twice, out of order or beyond the model")
        return places


class TopKSettings(CodecSettings):
    """See `TopK`.

    Attributes:
        fraction: Of the numbers that are sent, above 0 and at most 1.
    """

    codec: Literal["top-k"]
    fraction: float = Field(default=0.1, gt=0, le=1)

    def build(self, shapes: Shapes) -> Codec:
        """See `CodecSettings.build`."""
        return TopK(shapes, self.fraction)
