"""The only place that decides which units enter a private batch."""

import numpy as np
from numpy.typing import NDArray

from privacy.bounds import require_count, require_rate
from privacy.noise import secure_words


def sample_poisson(num_units: int, sampling_rate: float) -> NDArray[np.int64]:
    """Draw a Poisson batch: every unit joins independently with probability ``sampling_rate``.

    The accountant's epsilon holds for this sampling only: not for shuffled epochs, not for batches of a fixed size,
    and not if anyone learns who was in a batch.

    Args:
        num_units: Units at hand, at least 0; private, so the result's size must not be released either.
        sampling_rate: Above 0, at most 1.

    Returns:
        The chosen indices, ascending, without repeats; often fewer or more than the mean, possibly none.

    >>> sample_poisson(4, 1.0)
    array([0, 1, 2, 3])
    """
    require_count("num_units", num_units, at_least=0)
    if require_rate("sampling_rate", sampling_rate) == 1.0:
        return np.arange(num_units)
    return np.flatnonzero(secure_words(num_units) < np.uint64(sampling_rate * 2.0**64))
