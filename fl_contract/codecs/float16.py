"""float16: half the bytes, each number rounded to 11 significant bits (IEEE 754 binary16)."""

from typing import Literal

import numpy as np

from fl_contract.codecs.codec import Codec, CodecSeed, CodecSettings, Shapes, Vector, read_numbers

LARGEST = 65504.0


class Float16(Codec):
    """Rounds to the nearest; numbers below 6e-8 become zero."""

    @property
    def num_bytes(self) -> int:
        """Two a number."""
        return 2 * self.size

    def encode(self, update: Vector, seed: CodecSeed) -> bytes:
        """See `Codec.encode`."""
        del seed
        if np.abs(update).max(initial=0.0) > LARGEST:
            raise ValueError(f"a number of the update is beyond {LARGEST:g}, the largest of float16; choose bfloat16")
        return update.astype("<f2").tobytes()

    def decode(self, payload: bytes, seed: CodecSeed) -> Vector:
        """See `Codec.decode`."""
        del seed
        (numbers,) = read_numbers(payload, "<f2", self.size)
        return numbers.astype(np.float32)


class Float16Settings(CodecSettings):
    """See `Float16`."""

    codec: Literal["float16"]

    def build(self, shapes: Shapes) -> Codec:
        """See `CodecSettings.build`."""
        return Float16(shapes)
