"""The only place that draws privacy randomness.

Every call asks the operating system's cryptographic generator for a fresh key of 256 bits, stretches it by ChaCha20 and
forgets it; the kernel's generator is the same cipher, and reading all numbers from it takes eight times as long.
Nothing here takes a seed, and seeding numpy or torch does not touch it: torch's CPU generator has only 2^32 streams,
and whoever knows or guesses the seed could subtract the noise.
"""

import os
from typing import Literal

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from privacy.bounds import require_count
from privacy.errors import PrivacySettingError

LARGEST_BOUND = 2**62
"""Of `secure_below`."""

FOUR_DRAW_COUNT = 1_000_000
"""Models of up to this many parameters get noise of which each value is made of four uniforms.

A model of ten million would pay 0.4 s a step for that, on one CPU core, so larger models get two values of two
uniforms, which costs a third, and rest on the float32 rounding of the release.
"""

_BLOCK = 1 << 16
"""Draws that are made at a time, so that the work stays in the processor's cache."""

_BITS_OF_ONE = np.float64(1.0).view(np.uint64)

_ZEROS = memoryview(bytes(8 * _BLOCK))


def secure_words(count: int) -> NDArray[np.uint64]:
    """Draw independent words of 64 random bits.

    Args:
        count: How many, at least 0.

    >>> secure_words(2).dtype
    dtype('uint64')
    """
    require_count("count", count, at_least=0)
    return np.frombuffer(_secure_bytes(8 * count), dtype=np.uint64)


def secure_uniform(count: int) -> NDArray[np.float64]:
    """Draw independent uniforms strictly between 0 and 1, with 52 random bits each.

    Guarantees:
        - An odd multiple of 2^-53: the middle of one of 2^52 equal parts, so never 0.0 and never 1.0.
        - For a rate q, ``value < q`` happens with probability q up to 2^-53; always for q = 1.

    Args:
        count: How many, at least 0.

    >>> len(secure_uniform(3))
    3
    """
    bits = secure_words(count) >> np.uint64(12)
    bits |= _BITS_OF_ONE  # the bits of a float64 from 1 to below 2, which is faster than to convert whole numbers
    uniform: NDArray[np.float64] = bits.view(np.float64)
    uniform -= 1.0 - 2.0**-53
    return uniform


def secure_normal(count: int, *, num_draws: Literal[1, 4] = 4) -> NDArray[np.float64]:
    """Draw independent standard normals in double precision, by Box and Muller (1958).

    A released ``value + noise`` in floating point can betray the value, because not every float is a possible noise
    (Mironov 2012; arXiv 2107.10138, 2112.05307). With ``num_draws=4`` each value is the mean of two normals, times
    the root of 2, and four uniforms that no other value has go into it: whoever wants to find out must invert a sum of
    four independent unknowns, which is infeasible. This is a defence, not a proof of exact Gaussian noise.

    Args:
        count: How many, at least 0.
        num_draws: Uniforms for each; with 1, two values share their two.

    >>> len(secure_normal(5))
    5
    """
    require_count("count", count, at_least=0)
    draw = _sum_of_two if num_draws == 4 else _box_muller
    length = _BLOCK // num_draws
    normal = np.empty(count)
    for start in range(0, count, length):
        block = normal[start : start + length]
        block[:] = draw(len(block))
    return normal


class NormalSource:
    """Arrays of standard normals, one after the other; short ones are drawn several at a time, which is faster.

    >>> len(NormalSource(3, num_draws=4).draw())
    3
    """

    def __init__(self, count: int, *, num_draws: Literal[1, 4]) -> None:
        self._count, self._num_draws = count, num_draws
        self._left: list[NDArray[np.float64]] = []

    def draw(self) -> NDArray[np.float64]:
        """Give ``count`` normals that nobody else gets; see `secure_normal`."""
        if not self._left:
            rows = max(_BLOCK // (self._num_draws * self._count), 1)
            self._left = list(secure_normal(rows * self._count, num_draws=self._num_draws).reshape(rows, self._count))
        return self._left.pop()


def _secure_bytes(count: int) -> bytes:
    """Stretch a fresh key; it encrypts nothing else, so the nonce may be zero."""
    cipher = Cipher(algorithms.ChaCha20(os.urandom(32), nonce=bytes(16)), mode=None)
    return cipher.encryptor().update(_ZEROS[:count] if count <= len(_ZEROS) else bytes(count))


def _sum_of_two(count: int) -> NDArray[np.float64]:
    """Draw normals (r sin a + s sin b) / sqrt(2) with r = sqrt(-2 ln u), a = 2 pi v, and likewise s and b."""
    uniform = torch.from_numpy(secure_uniform(4 * count))
    radius, angle = uniform[: 2 * count], uniform[2 * count :]
    radius.log_().neg_().sqrt_()
    angle.mul_(2.0 * torch.pi).sin_().mul_(radius)
    return angle[:count].add_(angle[count:]).numpy()


def _box_muller(count: int) -> NDArray[np.float64]:
    """Draw normals in pairs from two uniforms: radius sqrt(-2 ln u), angle 2 pi v. The largest is 8.57."""
    pairs = (count + 1) // 2
    normal = torch.from_numpy(secure_uniform(2 * pairs))  # torch's sine and cosine are vectorised, numpy's are not
    radius, angle = normal[:pairs], normal[pairs:]
    radius.log_().mul_(-2.0).sqrt_()
    cosine = angle.mul_(2.0 * torch.pi).cos()
    angle.sin_().mul_(radius)
    radius.mul_(cosine)
    return normal.numpy()[:count]


def secure_below(bound: int, count: int) -> NDArray[np.int64]:
    """Draw independent whole numbers from 0 to ``bound - 1``, each with exactly the same probability.

    Guarantees:
        - No bias: random words that would favour small numbers are drawn again.

    Args:
        bound: 1 to 2^62.
        count: How many, at least 0.

    >>> secure_below(1, 3).tolist()
    [0, 0, 0]
    """
    if require_count("bound", bound, at_least=1) > LARGEST_BOUND:
        raise PrivacySettingError(f"bound={bound!r}; expected at most {LARGEST_BOUND}")
    require_count("count", count, at_least=0)
    width = next(width for width in (1, 2, 4, 8) if bound <= 2 ** (8 * width - 2))  # at most a quarter is drawn again
    words = np.frombuffer(os.urandom(width * count), dtype=f"u{width}")
    if bound & (bound - 1) == 0:
        masked: NDArray[np.int64] = (words & words.dtype.type(bound - 1)).astype(np.int64)
        return masked
    largest_fair = words.dtype.type(2 ** (8 * width) - 2 ** (8 * width) % bound - 1)
    # Of as many words for each number below the bound; the rest would come up once more for the small ones.
    fair = words[words <= largest_fair] % words.dtype.type(bound)
    drawn: NDArray[np.int64] = fair.astype(np.int64)
    return np.concatenate([drawn, secure_below(bound, count - len(drawn))]) if len(drawn) < count else drawn
