"""1, 2 or 4 bits a number after a random rotation.

Sources: DRIVE (Vargaftik et al. 2021, arXiv 2105.08339) for 1 bit, EDEN (2022, arXiv 2108.08842) for more.

Each block of 256 numbers is turned by an orthogonal matrix R that both halves draw from the round's public seed; its
turned numbers are nearly Gaussian whatever the update looks like, so a fixed set of levels Q fits all of them
(Lloyd-Max). One scale a block travels with them, S = |x|² / <Rx, Q(Rx)>, and x̂ = S Rᵀ Q(Rx).

x̂ is unbiased: its part along x is x itself by the choice of S, and the rest has mean zero because R is uniform over all
rotations (DRIVE, theorem 3). For that R is drawn uniformly, not as a Hadamard matrix with random signs: with the
latter, (1, a, 0, 0) comes back as (1 + a², 0, 0, 0) for every choice of signs. A product with 256 × 256 numbers costs the
same for both, as does the matrix in bytes: none.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from fl_contract.codecs.codec import Codec, CodecSeed, CodecSettings, Shapes, Vector, read_numbers

BLOCK = 256
"""Numbers that are turned together and share a scale."""

_CHUNK = 2**12
"""Blocks that are worked on at a time, for the processor's cache."""

_POSITIVE_LEVELS = {
    1: [0.7979],
    2: [0.4528, 1.5104],
    4: [0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326],
}
"""That lose least of a Gaussian number of variance 1 (Max 1960, table I)."""

_CELLS, _CELLS_A_UNIT = 256, 32
"""The line from -4 to 4 is cut into cells; a number takes the level that is next to the middle of its cell."""


class Rotation(Codec):
    """See the module.

    Args:
        shapes: Of the trained arrays.
        bits: A number: 1, 2 or 4.
    """

    def __init__(self, shapes: Shapes, bits: int) -> None:
        super().__init__(shapes)
        self._bits = bits
        positive = np.array(_POSITIVE_LEVELS[bits], dtype=np.float32)
        self._levels = np.concatenate([-positive[::-1], positive])
        middles = (np.arange(_CELLS) + 0.5 - _CELLS / 2) / _CELLS_A_UNIT
        self._code_of_cell = np.abs(middles[:, np.newaxis] - self._levels).argmin(axis=1).astype(np.uint8)

    @property
    def num_bytes(self) -> int:
        """The bits of all numbers, and four bytes a block."""
        return 4 * self._num_blocks + self._num_code_bytes

    @property
    def _num_blocks(self) -> int:
        return -(-self.size // BLOCK)

    @property
    def _num_code_bytes(self) -> int:
        return -(-self.size * self._bits // 8)

    def encode(self, update: Vector, seed: CodecSeed) -> bytes:
        """See `Codec.encode`."""
        scales, codes = [], []
        for place, rotation in self._chunks(seed):
            turned = update[place].reshape(-1, len(rotation)) @ rotation.T
            squares = np.einsum("ij,ij->i", turned, turned, dtype=np.float64)
            deviations = np.sqrt(squares / len(rotation)).astype(np.float32)
            cells = turned / np.where(deviations > 0, deviations, np.float32(1))[:, np.newaxis]
            cells *= _CELLS_A_UNIT
            cells += _CELLS // 2
            chosen = self._code_of_cell.take(np.clip(cells, 0, _CELLS - 1, out=cells).astype(np.uint8))
            products = np.einsum("ij,ij->i", turned, self._levels.take(chosen), dtype=np.float64)
            scales.append(np.divide(squares, products, out=np.zeros_like(squares), where=products > 0))
            codes.append(self._pack(chosen.ravel()))
        return b"".join([*(each.astype("<f4").tobytes() for each in scales), *(each.tobytes() for each in codes)])

    def decode(self, payload: bytes, seed: CodecSeed) -> Vector:
        """See `Codec.decode`."""
        head = 4 * self._num_blocks
        (scales,) = read_numbers(payload[:head], "<f4", self._num_blocks)
        (codes,) = read_numbers(payload[head:], "<u1", self._num_code_bytes)
        update, table = np.empty(self.size, dtype=np.float32), self._levels_of_bytes()
        first = 0
        for place, rotation in self._chunks(seed):
            length = place.stop - place.start
            start, stop = place.start * self._bits // 8, -(-place.stop * self._bits // 8)
            levels = table.take(codes[start:stop], axis=0).ravel()[:length].reshape(-1, len(rotation))
            own = scales[first : first + len(levels), np.newaxis].astype(np.float32)
            first += len(levels)
            with np.errstate(over="ignore", invalid="ignore"):
                update[place] = ((levels @ rotation) * own).ravel()
        return update

    def _chunks(self, seed: CodecSeed) -> Iterator[tuple[slice, Vector]]:
        """Where whole blocks lie and what turns them, then the same for what is left after the last whole one."""
        whole = self.size - self.size % BLOCK
        for length, begin, end in ((BLOCK, 0, whole), (self.size - whole, whole, self.size)):
            if begin < end:
                rotation = draw_rotation(length, seed)
                for start in range(begin, end, _CHUNK * BLOCK):
                    yield slice(start, min(start + _CHUNK * BLOCK, end)), rotation

    def _pack(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Several codes a byte, the first in its lowest bits."""
        a_byte = 8 // self._bits
        rows = np.pad(codes, (0, -len(codes) % a_byte)).reshape(-1, a_byte)
        packed = rows[:, 0].copy()
        for position in range(1, a_byte):
            packed |= rows[:, position] << np.uint8(position * self._bits)
        return packed

    def _levels_of_bytes(self) -> Vector:
        """[256, codes a byte]."""
        shifts = np.arange(0, 8, self._bits)
        return self._levels[(np.arange(256)[:, np.newaxis] >> shifts) & (2**self._bits - 1)]


class RotationSettings(CodecSettings):
    """See `Rotation`.

    Attributes:
        bits: A number of the update: 1, 2 or 4.
    """

    codec: Literal["rotation"]
    bits: Literal[1, 2, 4] = 1

    def build(self, shapes: Shapes) -> Codec:
        """See `CodecSettings.build`."""
        return Rotation(shapes, self.bits)


def draw_rotation(size: int, seed: CodecSeed) -> Vector:
    """An orthogonal matrix, [size, size], uniform over all of them (Mezzadri 2007, arXiv math-ph/0609050)."""
    gaussian = ndtri(seed.uniforms(size * size)).reshape(size, size)
    orthogonal, triangular = np.linalg.qr(gaussian)
    return (orthogonal * np.sign(np.diag(triangular))).astype(np.float32)
