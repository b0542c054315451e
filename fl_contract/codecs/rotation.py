"""1, 2 or 4 bits a number after a random rotation.

Sources: DRIVE (Vargaftik et al. 2021, arXiv 2105.08339) for 1 bit, EDEN (2022, arXiv 2108.08842) for more.

Each block of 128 numbers is turned by an orthogonal matrix R that both halves draw from the round's public seed; its
turned numbers are nearly Gaussian whatever the update looks like, so a fixed set of levels Q fits all of them
(Lloyd-Max). One scale a block travels with them, S = |x|² / <Rx, Q(Rx)>, and x̂ = S Rᵀ Q(Rx).

x̂ is unbiased: its part along x is x itself by the choice of S, and the rest has mean zero because R is uniform over all
rotations (DRIVE, theorem 3). For that R is drawn uniformly, not as a Hadamard matrix with random signs: with the
latter, (1, a, 0, 0) with a < 1 comes back as (1 + a², 0, 0, 0) for every choice of signs. Written as a product with a
128 × 128 matrix, which is how either is fast, the two cost the same, and neither matrix travels.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fl_contract.codecs.codec import Codec, CodecSeed, CodecSettings, Shapes, Vector, read_numbers

BLOCK = 128
"""Numbers that are turned together and share a scale."""

_CHUNK = 2**9
"""Blocks that are worked on at a time, for the processor's cache."""

_DEVIATION_OF_MEAN = np.float32(np.sqrt(np.pi / 2))
"""Standard deviation of a Gaussian number over the mean of its absolute."""

_SMALLEST = 1e-30
"""Standard deviation below which a block counts as zero."""

_POSITIVE_LEVELS = {
    1: [0.7979],
    2: [0.4528, 1.5104],
    4: [0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326],
}
"""That lose least of a Gaussian number of variance 1 (Max 1960, table I)."""


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
        self._borders = (self._levels[1:] + self._levels[:-1]) / 2
        shifts = np.arange(0, 8, bits)
        self._levels_of_byte = self._levels[(np.arange(256)[:, np.newaxis] >> shifts) & (2**bits - 1)]

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
            turned = _multiply(update[place].reshape(-1, len(rotation)), rotation.T)
            deviations = np.abs(turned).mean(axis=1) * _DEVIATION_OF_MEAN
            deviations[deviations < _SMALLEST] = 0
            is_zero = deviations == 0
            turned /= np.where(is_zero, np.float32(1), deviations)[:, np.newaxis]
            packed = self._pack(turned)
            products = np.einsum("ij,ij->i", turned, self._unpack(packed, turned.shape))
            squares = np.einsum("ij,ij->i", turned, turned)
            scales.append(deviations * squares / np.where(is_zero, np.float32(1), products))
            codes.append(packed)
        return b"".join([*(each.astype("<f4").tobytes() for each in scales), *(each.tobytes() for each in codes)])

    def decode(self, payload: bytes, seed: CodecSeed) -> Vector:
        """See `Codec.decode`."""
        head = 4 * self._num_blocks
        (read,) = read_numbers(payload[:head], "<f4", self._num_blocks)
        scales = read.astype(np.float32)
        (codes,) = read_numbers(payload[head:], "<u1", self._num_code_bytes)
        update = np.empty(self.size, dtype=np.float32)
        first = 0
        for place, rotation in self._chunks(seed):
            shape = (place.stop - place.start) // len(rotation), len(rotation)
            own = codes[place.start * self._bits // 8 : -(-place.stop * self._bits // 8)]
            turned_back = _multiply(self._unpack(own, shape), rotation)
            with np.errstate(over="ignore", invalid="ignore"):
                turned_back *= scales[first : first + shape[0], np.newaxis]
            update[place] = turned_back.ravel()
            first += shape[0]
        return update

    def _chunks(self, seed: CodecSeed) -> Iterator[tuple[slice, Vector]]:
        """Where whole blocks lie and what turns them, then the same for what is left after the last whole one."""
        whole = self.size - self.size % BLOCK
        for length, begin, end in ((BLOCK, 0, whole), (self.size - whole, whole, self.size)):
            if begin < end:
                rotation = draw_rotation(length, seed)
                for start in range(begin, end, _CHUNK * BLOCK):
                    yield slice(start, min(start + _CHUNK * BLOCK, end)), rotation

    def _pack(self, numbers: Vector) -> NDArray[np.uint8]:
        """Which level is next to each number: several a byte, the first in its lowest bits."""
        codes = (numbers > self._borders[0]).view(np.uint8)
        for border in self._borders[1:]:
            codes += (numbers > border).view(np.uint8)
        packed: NDArray[np.uint8] = codes.ravel()
        if missing := -packed.size % (8 // self._bits):
            packed = np.pad(packed, (0, missing))
        bits = self._bits
        while bits < 8:  # two neighbours into one
            pairs = packed.view("<u2")
            packed, bits = (pairs | pairs >> (8 - bits)).astype(np.uint8), 2 * bits
        return packed

    def _unpack(self, packed: NDArray[np.generic], shape: tuple[int, int]) -> Vector:
        """The levels that `_pack` chose."""
        levels: Vector = self._levels_of_byte.take(packed, axis=0).ravel()
        return levels[: shape[0] * shape[1]].reshape(shape)


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


def _multiply(left: Vector, right: Vector) -> Vector:
    """The matrix product; PyTorch's is faster than NumPy's."""
    return (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()


def draw_rotation(size: int, seed: CodecSeed) -> Vector:
    """An orthogonal matrix, [size, size], uniform over all of them (Mezzadri 2007, arXiv math-ph/0609050)."""
    from scipy.special import ndtri  # a slow import, which no study without this codec waits for

    gaussian = ndtri(seed.uniforms(size * size)).reshape(size, size)
    orthogonal, triangular = np.linalg.qr(gaussian)
    return (orthogonal * np.sign(np.diag(triangular))).astype(np.float32)
