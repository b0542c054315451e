"""The only place that releases sums over people with noise: one Gaussian release, charged like one training step."""

import numpy as np
from numpy.typing import NDArray

from privacy.errors import PrivacySettingError
from privacy.noise import secure_normal
from privacy.plan import PrivacyPlan


def release_noised_sum(contributions: NDArray[np.floating], plan: PrivacyPlan) -> NDArray[np.int64]:
    """Add up what each unit contributes, with noise: one release of the Gaussian mechanism.

    Guarantees:
        - Costs one step of ``plan``, whose sampling rate is 1: nobody is left out by chance.
        - A row longer than ``plan.clip_norm`` is scaled down to it; one that is not finite counts as zeros.
        - Whole numbers: rounding after the noise leaves no trace of how floats are spaced (Mironov 2012).
        - Neither the number of rows nor any row leaves otherwise.

    Charge the plan's ``round_spend`` to the ledger before the call.

    Args:
        contributions: [U, C], a row for each unit of the plan; U may be 0.
        plan: Clip norm, in units of the contributions, and noise.

    Returns:
        [C] sums, in units of the contributions; the noise has standard deviation ``noise_scale(plan)``.
    """
    if plan.sampling_rate != 1 or plan.steps_per_round != 1:
        raise PrivacySettingError(
            f"sampling_rate={plan.sampling_rate!r}, steps_per_round={plan.steps_per_round!r}; expected 1 and 1: a sum "
            "over all units is one release"
        )
    rows = np.where(np.isfinite(contributions).all(axis=1, keepdims=True), contributions, 0.0).astype(np.float64)
    with np.errstate(over="ignore"):  # a row whose norm overflows counts as zeros
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
    total = (rows * (plan.clip_norm / np.maximum(norms, plan.clip_norm))).sum(axis=0)
    noised: NDArray[np.int64] = np.rint(total + noise_scale(plan) * secure_normal(len(total))).astype(np.int64)
    return noised


def noise_scale(plan: PrivacyPlan) -> float:
    """Standard deviation of the noise in each number of a release, in units of the contributions."""
    return plan.noise_multiplier * plan.clip_norm
