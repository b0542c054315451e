"""What every codec of updates promises, and the randomness that both of its halves share."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_contract.errors import ReplyError
from fl_contract.settings import Settings

Vector = NDArray[np.float32]
"""An update: new weights minus those that were sent, all trained numbers of a model in a row."""

Shapes = tuple[tuple[int, ...], ...]
"""Of the trained arrays, in the order in which they lie in the vector."""


@dataclass(frozen=True, kw_only=True)
class CodecSeed:
    """Of one hospital's reply in one round; nothing of it travels, and a round that is repeated has the same.

    Attributes:
        seed: Of the study.
        site: The hospital.
        server_round: From 1.
    """

    seed: int
    site: str
    server_round: int

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """Numbers in (0, 1) that are the same on every machine and with every version of NumPy."""
        words = np.frombuffer(hashlib.shake_256(self._text("shared")).digest(8 * count), dtype="<u8")
        return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def generator(self) -> np.random.Generator:
        """For draws that the encoder alone needs, such as which way a number is rounded."""
        return np.random.default_rng(list(hashlib.sha256(self._text("hospital")).digest()))

    def _text(self, purpose: str) -> bytes:
        return f"codec/{purpose}/{self.seed}/{self.site}/{self.server_round}".encode()


class Codec(ABC):
    """Both halves of one way to write an update in fewer bytes.

    Guarantees:
        - `encode` gives `num_bytes` bytes, whatever the update holds.
        - `decode` takes any bytes: it gives a vector of the model's length, which may hold NaN or infinity, or raises
          ReplyError.

    Attributes:
        KEEPS_RESIDUAL: Whether the error of a round is added to the hospital's next update (error feedback). It is
            for codecs whose error has a direction; the others' is unbiased or too small to matter.

    Args:
        shapes: Of the trained arrays.
    """

    KEEPS_RESIDUAL: ClassVar[bool] = False

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.size = sum(_size(shape) for shape in shapes)

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Of every coded update of this model."""

    @abstractmethod
    def encode(self, update: Vector, seed: CodecSeed) -> bytes:
        """Write an update; every number in it is finite and at most 1e30.

        Raises:
            ValueError: A number is beyond what the codec can hold.
        """

    @abstractmethod
    def decode(self, payload: bytes, seed: CodecSeed) -> Vector:
        """Read `num_bytes` bytes.

        Raises:
            ReplyError: They are not what an encoder writes.
        """


class CodecSettings(Settings):
    """What all codecs' settings have.

    Attributes:
        codec: Its name.
        zstd: Whether the coded update is compressed without loss on top. It helps where a codec's numbers repeat.
    """

    codec: str
    zstd: bool = False

    @abstractmethod
    def build(self, shapes: Shapes) -> Codec:
        """The codec for a model with these trained arrays."""


def read_numbers(payload: bytes, kind: str, *counts: int) -> list[NDArray[np.generic]]:
    """Cut bytes into as many parts as there are counts, each of numbers of one type.

    >>> [part.tolist() for part in read_numbers(bytes([1, 0, 2, 0, 3, 0]), "<u2", 1, 2)]
    [[1], [2, 3]]

    Raises:
        ReplyError: There are not as many bytes as these numbers take.
    """
    expected = np.dtype(kind).itemsize * sum(counts)
    if len(payload) != expected:
        raise ReplyError(f"the coded update has {len(payload)} bytes; expected {expected}")
    return np.split(np.frombuffer(payload, dtype=kind), np.cumsum(counts, dtype=np.int64))[:-1]


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
