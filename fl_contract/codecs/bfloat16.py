"""bfloat16: half the bytes, each number rounded to 8 significant bits, with the range of float32."""

from typing import Literal

import numpy as np

from fl_contract.codecs.codec import Codec, CodecSeed, CodecSettings, Shapes, Vector, read_numbers


class Bfloat16(Codec):
    """Rounds to the nearest, to the even one of two; the upper half of a float32's bits is what travels."""

    @property
    def num_bytes(self) -> int:
        """Two a number."""
        return 2 * self.size

    def encode(self, update: Vector, seed: CodecSeed) -> bytes:
        """See `Codec.encode`."""
        del seed
        bits = update.view(np.uint32)
        is_odd = (bits >> np.uint32(16)) & np.uint32(1)
        return ((bits + np.uint32(0x7FFF) + is_odd) >> np.uint32(16)).astype("<u2").tobytes()

    def decode(self, payload: bytes, seed: CodecSeed) -> Vector:
        """See `Codec.decode`."""
        del seed
        (halves,) = read_numbers(payload, "<u2", self.size)
        return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


class Bfloat16Settings(CodecSettings):
    """See `Bfloat16`."""

    codec: Literal["bfloat16"]

    def build(self, shapes: Shapes) -> Codec:
        """See `CodecSettings.build`."""
        return Bfloat16(shapes)
