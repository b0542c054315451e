"""The only place that draws privacy randomness.

Every number comes from the operating system's cryptographic generator. Nothing here takes a seed, and seeding numpy
or torch does not touch it: torch's CPU generator has only 2^32 streams, and whoever knows or guesses the seed could
subtract the noise.
"""

import os

import numpy as np
from numpy.typing import NDArray

from privacy.bounds import require_count
from privacy.errors import PrivacySettingError

LARGEST_BOUND = 2**62
"""Of `secure_below`."""

FOUR_DRAW_COUNT = 1_000_000
"""Up to this many normals per call, each is made of four draws."""


def secure_uniform(count: int) -> NDArray[np.float64]:
    """Draw independent uniforms strictly between 0 and 1, with 53 random bits each.

    Guarantees:
        - A multiple of 2^-53; never 0.0 (which is moved to 2^-53) and never 1.0.
        - For a rate q, ``value < q`` happens with probability q up to 2^-53; always for q = 1.

    Args:
        count: How many, at least 0.

    >>> len(secure_uniform(3))
    3
    """
    require_count("count", count, at_least=0)
    bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
    uniform: NDArray[np.float64] = np.maximum(bits, np.uint64(1)).astype(np.float64) * 2.0**-53
    return uniform


def secure_normal(count: int) -> NDArray[np.float64]:
    """Draw independent standard normals in double precision.

    Up to ``FOUR_DRAW_COUNT`` each is (a + b + c + d) / 2 of four Box-Muller draws, which has standard deviation 1.
    A released ``value + noise`` in floating point can betray the value, because not every float is a possible noise
    (Mironov 2012; arXiv 2107.10138, 2112.05307); with four draws, whoever wants to find out must invert a sum of four
    independent unknowns, which is infeasible. This is a defence, not a proof of exact Gaussian noise.

    Cost, measured on one CPU core: 0.3 s per million with four draws, 0.08 s with one. A model of ten million
    parameters would pay 3 s per step, so larger counts get one draw and rest on the float32 rounding of the release.

    Args:
        count: How many, at least 0.

    >>> len(secure_normal(5))
    5
    """
    require_count("count", count, at_least=0)
    if count > FOUR_DRAW_COUNT:
        return _box_muller(count)
    draws = _box_muller(4 * count).reshape(4, count)
    normal: NDArray[np.float64] = draws.sum(axis=0) / 2
    return normal


def _box_muller(count: int) -> NDArray[np.float64]:
    """Draw normals in pairs from two uniforms: radius sqrt(-2 ln u), angle 2 pi v. The largest is 8.57."""
    pairs = (count + 1) // 2
    uniform = secure_uniform(2 * pairs)
    radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
    angle = 2.0 * np.pi * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


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
