"""Each matrix of an update as a product of two thin ones, with error feedback (PowerSGD: Vogels et al. 2019).

Source: arXiv 1905.13727.

Algorithm 1 adds up the first factor over all workers before it makes the second. Here a hospital codes its own update,
so it needs no second exchange; two turns from a random start take the place of the start that algorithm 1 keeps.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from fl_contract.codecs.codec import Codec, CodecSeed, CodecSettings, Shapes, Vector, read_numbers

_TURNS = 2


class PowerSgd(Codec):
    """An array is a matrix of its first axis by all others; one that its factors would not make smaller goes as it is.

    Args:
        shapes: Of the trained arrays.
        rank: Of the factors.
    """

    KEEPS_RESIDUAL = True

    def __init__(self, shapes: Shapes, rank: int) -> None:
        super().__init__(shapes)
        self._rank = rank

    @property
    def num_bytes(self) -> int:
        """Four for each number of the factors, and of the arrays without."""
        return 4 * sum(length for _, length, _ in self._parts())

    def encode(self, update: Vector, seed: CodecSeed) -> bytes:
        """See `Codec.encode`."""
        generator = seed.generator()
        pieces = []
        for place, _, shape in self._parts():
            if shape is None:
                pieces.append(update[place])
                continue
            left, right = self._factor(update[place].reshape(shape), generator)
            pieces += [left.ravel(), right.ravel()]
        return b"".join(piece.astype("<f4").tobytes() for piece in pieces)

    def _factor(self, matrix: Vector, generator: np.random.Generator) -> tuple[Vector, Vector]:
        """An orthonormal basis [rows, rank] of most of the matrix, and the matrix in it, [columns, rank]."""
        right = generator.standard_normal((matrix.shape[1], self._rank), dtype=np.float32)
        for _ in range(_TURNS - 1):
            right = matrix.T @ np.linalg.qr(matrix @ np.linalg.qr(right)[0])[0]
        left = np.linalg.qr(matrix @ np.linalg.qr(right)[0])[0]
        return left, matrix.T @ left

    def decode(self, payload: bytes, seed: CodecSeed) -> Vector:
        """See `Codec.decode`."""
        del seed
        update = np.empty(self.size, dtype=np.float32)
        parts = list(self._parts())
        for (place, _, shape), piece in zip(
            parts, read_numbers(payload, "<f4", *(each[1] for each in parts)), strict=True
        ):
            if shape is None:
                update[place] = piece
                continue
            left, right = np.split(piece.astype(np.float32), [shape[0] * self._rank])
            with np.errstate(over="ignore", invalid="ignore"):
                update[place] = (left.reshape(shape[0], -1) @ right.reshape(shape[1], -1).T).ravel()
        return update

    def _parts(self) -> Iterator[tuple[slice, int, tuple[int, int] | None]]:
        """Where each array lies, how many numbers it sends, and its shape as a matrix; None where it goes as it is."""
        start = 0
        for shape in self.shapes:
            size = int(np.prod(shape, dtype=np.int64))
            place, start = slice(start, start + size), start + size
            rows = shape[0] if shape else 1
            columns = size // rows if rows else 0
            factored = self._rank * (rows + columns)
            is_smaller = self._rank <= min(rows, columns) and factored < size
            yield place, factored if is_smaller else size, (rows, columns) if is_smaller else None


class PowerSgdSettings(CodecSettings):
    """See `PowerSgd`.

    Attributes:
        rank: Of the factors.
    """

    codec: Literal["powersgd"]
    rank: int = Field(default=4, ge=1, le=1024)

    def build(self, shapes: Shapes) -> Codec:
        """See `CodecSettings.build`."""
        return PowerSgd(shapes, self.rank)
