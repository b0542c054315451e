"""The only place that decides which single numbers privacy code accepts.

Every function returns the value it was given in its canonical type, or raises `PrivacySettingError` with name, value
and rule. Booleans, strings, NaN and infinity are never numbers here.
"""

import math

from privacy.errors import PrivacySettingError

SMALLEST_DELTA = 1e-10
SMALLEST_CLIP_NORM, LARGEST_CLIP_NORM = 1e-6, 1e6
LARGEST_TOTAL_STEPS = 100_000


def require_real(name: str, value: object) -> float:
    """Return a finite real number as float.

    >>> require_real("epsilon", 3)
    3.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PrivacySettingError(f"{name}={value!r}; expected a number")
    if not _is_finite(value):
        raise PrivacySettingError(f"{name}={value!r}; expected a finite number")
    return float(value)


def _is_finite(value: float) -> bool:
    """Whether a float can hold the number: an integer of 400 digits is finite, but no float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def require_positive(name: str, value: object) -> float:
    """Return a finite number above 0.

    >>> require_positive("clip_norm", 0.5)
    0.5
    """
    number = require_real(name, value)
    if number <= 0:
        raise PrivacySettingError(f"{name}={value!r}; expected more than 0")
    return number


def require_rate(name: str, value: object) -> float:
    """Return a sampling rate: above 0, at most 1.

    >>> require_rate("sampling_rate", 1)
    1.0
    """
    number = require_real(name, value)
    if not 0 < number <= 1:
        raise PrivacySettingError(f"{name}={value!r}; expected more than 0 and at most 1")
    return number


def require_delta(name: str, value: object) -> float:
    """Return a delta: at least 1e-10, below 1.

    Below 1e-10 float arithmetic reaches the size of delta itself, and the accountant would stop being an upper bound.

    >>> require_delta("delta", 1e-5)
    1e-05
    """
    number = require_real(name, value)
    if not SMALLEST_DELTA <= number < 1:
        raise PrivacySettingError(f"{name}={value!r}; expected at least {SMALLEST_DELTA} and below 1")
    return number


def require_clip_norm(name: str, value: object) -> float:
    """Return a clip norm: at least 1e-6, at most 1e6.

    Far below, scaling a gradient in single precision underflows and its norm is no longer bounded; far above, sums
    overflow.

    >>> require_clip_norm("clip_norm", 1)
    1.0
    """
    number = require_real(name, value)
    if not SMALLEST_CLIP_NORM <= number <= LARGEST_CLIP_NORM:
        raise PrivacySettingError(
            f"{name}={value!r}; expected at least {SMALLEST_CLIP_NORM} and at most {LARGEST_CLIP_NORM:.0f}"
        )
    return number


def require_total_steps(steps_per_round: object, num_rounds: object) -> int:
    """Return the steps of all rounds together: each number at least 1, their product at most 100,000.

    More steps would let whoever proposes them keep the accountant busy, and serve no study of this size.

    >>> require_total_steps(steps_per_round=4, num_rounds=20)
    80
    """
    total = require_count("steps_per_round", steps_per_round, at_least=1)
    total *= require_count("num_rounds", num_rounds, at_least=1)
    if total > LARGEST_TOTAL_STEPS:
        raise PrivacySettingError(
            f"steps_per_round={steps_per_round!r}, num_rounds={num_rounds!r}; expected at most "
            f"{LARGEST_TOTAL_STEPS} steps over all rounds together"
        )
    return total


def require_count(name: str, value: object, *, at_least: int) -> int:
    """Return an integer of at least ``at_least``.

    >>> require_count("steps", 0, at_least=0)
    0
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise PrivacySettingError(f"{name}={value!r}; expected an integer")
    if value < at_least:
        raise PrivacySettingError(f"{name}={value!r}; expected at least {at_least}")
    return value


def require_label(name: str, value: object) -> str:
    """Return a name that is not blank.

    >>> require_label("run", "7")
    '7'
    """
    if not isinstance(value, str) or not value.strip():
        raise PrivacySettingError(f"{name}={value!r}; expected a name that is not blank")
    return value
