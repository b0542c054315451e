"""int8: a quarter of the bytes, by stochastic rounding (QSGD: Alistarh et al. 2017, section 3.1; arXiv 1610.02132)."""

from typing import Literal

import numpy as np

from fl_contract.codecs.codec import Codec, CodecSeed, CodecSettings, Shapes, Vector, read_numbers

BLOCK = 256
"""Numbers that share a scale."""

LEVELS = 127

_CHUNK = 2**8
"""Blocks that are worked on at a time, for the processor's cache."""


class Int8(Codec):
    """Unbiased: a number between two levels of its block takes either, with chances that make its mean itself.

    A block of 256 numbers is divided by its largest over 127; its scale travels as a float32.
    """

    @property
    def num_bytes(self) -> int:
        """One a number and four a block."""
        return self.size + 4 * self._num_blocks

    @property
    def _num_blocks(self) -> int:
        return -(-self.size // BLOCK)

    def encode(self, update: Vector, seed: CodecSeed) -> bytes:
        """See `Codec.encode`."""
        generator = seed.generator()
        blocks = _in_blocks(update)
        scales = np.abs(blocks).max(axis=1, initial=0.0) / np.float32(LEVELS)
        levels = np.empty(blocks.shape, dtype=np.int8)
        for start in range(0, len(blocks), _CHUNK):
            place = slice(start, start + _CHUNK)
            divisor = np.where(scales[place] > 0, scales[place], np.float32(1))[:, np.newaxis]
            chosen = blocks[place] / divisor
            chosen += generator.random(chosen.shape, dtype=np.float32)
            levels[place] = np.clip(np.floor(chosen, out=chosen), -LEVELS, LEVELS, out=chosen)
        payload: bytes = scales.astype("<f4").tobytes() + levels.ravel()[: self.size].tobytes()
        return payload

    def decode(self, payload: bytes, seed: CodecSeed) -> Vector:
        """See `Codec.decode`."""
        del seed
        head = 4 * self._num_blocks
        (scales,) = read_numbers(payload[:head], "<f4", self._num_blocks)
        (levels,) = read_numbers(payload[head:], "<i1", self.size)
        blocks = _in_blocks(levels.astype(np.float32))
        with np.errstate(over="ignore", invalid="ignore"):
            blocks = blocks * scales[:, np.newaxis].astype(np.float32)
        return blocks.ravel()[: self.size]


class Int8Settings(CodecSettings):
    """See `Int8`."""

    codec: Literal["int8"]

    def build(self, shapes: Shapes) -> Codec:
        """See `CodecSettings.build`."""
        return Int8(shapes)


def _in_blocks(vector: Vector) -> Vector:
    """[blocks, 256], with zeros after the last number."""
    return np.pad(vector, (0, -len(vector) % BLOCK)).reshape(-1, BLOCK)
