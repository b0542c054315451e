"""How an error becomes an interval: 95 % intervals of shares, areas and means, and what noise adds to them."""

import math

Z = 1.959963984540054
"""Standard errors to either side of a normal value that hold it with a chance of 95 %."""

Interval = tuple[float, float]
"""Lower and upper end; two NaN where the patients say nothing about the error."""

UNKNOWN: Interval = (math.nan, math.nan)


def wilson(successes: int, total: int) -> Interval:
    """Interval of a share, after Wilson (1927, J. Am. Stat. Assoc. 22); defined for 0 and for all of them too.

    >>> [round(end, 4) for end in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if total == 0:
        return UNKNOWN
    share = successes / total
    middle = share + Z**2 / (2 * total)
    half = Z * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    low, high = ((middle + side * half) / (1 + Z**2 / total) for side in (-1, 1))
    return max(0.0, low), min(1.0, high)


def around(value: float, error: float, *, most: float = 1.0) -> Interval:
    """Interval of a figure from its standard error by the delta method: of its log-odds, or of its logarithm.

    On these scales a figure near an end of its range has the longer arm towards the middle, as it should, and the
    interval does not leave the range.

    Args:
        value: From 0 to ``most``.
        error: Its standard error, at least 0.
        most: The largest possible value; infinite for one that is only known to be at least 0.

    Returns:
        The interval; unknown at the ends of the range, where the error says nothing, and without an error.

    >>> [round(end, 4) for end in around(0.9, 0.03)]
    [0.824, 0.9453]
    """
    if not (0 < value < most and error > 0 and math.isfinite(error)):
        return UNKNOWN
    if math.isinf(most):
        factor = math.exp(min(Z * error / value, 700.0))
        return value / factor, value * factor
    odds = value / (most - value)
    factor = math.exp(min(Z * error * most / (value * (most - value)), 700.0))
    low, high = (most * (scaled / (1 + scaled)) for scaled in (odds / factor, odds * factor))
    return low, high


def widen(interval: Interval, value: float, error: float, *, most: float = 1.0) -> Interval:
    """An interval that holds a second, independent error too: each arm is the root of the squares of both.

    Source: Zou & Donner (2008, Stat. Med. 27), who recover variances from intervals this way.

    >>> [round(end, 4) for end in widen((0.2, 0.6), 0.5, 0.2)]
    [0.0064, 0.9045]
    """
    low, high = (value + side * math.hypot(end - value, Z * error) for side, end in zip((-1, 1), interval, strict=True))
    return max(0.0, low) if low == low else low, min(most, high) if high == high else high
