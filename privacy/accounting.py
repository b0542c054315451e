"""The only place that turns noise, sampling rate and steps into epsilon, and back.

Mechanism: DP-SGD, a Poisson-subsampled Gaussian per step. Neighbouring data sets: one record added or removed.
`compute_epsilon_gaussian` is for noise without sampling, whatever is added or removed.
Every epsilon here is an upper bound for the whole history given; epsilons of parts are never added up, except those of
spends of which nothing but their epsilon is known.

The mathematics is Opacus's. It takes seconds to import, so the three functions that call it import it themselves:
who computes no epsilon does not wait for it.
"""

import functools
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from privacy.bounds import SMALLEST_DELTA, require_count, require_delta, require_positive, require_rate, require_real
from privacy.errors import PrivacySettingError

PRV_ERROR = 0.01
"""How far the reported epsilon may lie above the true one, in epsilon."""

LARGEST_PRV_EPSILON = 100.0
"""Above this the Rényi bound is reported: PRV takes many seconds there, and such an epsilon protects nobody anyway."""

CALIBRATION_TOLERANCE = 1e-3
"""How far, relatively, a calibrated noise multiplier may lie above the smallest one that would do."""

# Opacus's orders, which stop at 63, where a small budget reads 0.03 instead of 0.00, and larger ones. Above order 1024
# its binomials overflow unless the sampling rate is 1; an overflowed order reads infinite or NaN and is passed over.
ORDERS: tuple[float, ...] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *range(12, 64),
    *(64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048, 3072, 4096),
)

FILTER_ORDERS: tuple[float, ...] = (2, 3, 4, 8, 16, 32, 64, 256)
"""The few orders of `compute_epsilon_adaptive`, fixed for ever: each one more costs all others some delta."""

_Group = tuple[float, float, int]


@dataclass(frozen=True, kw_only=True)
class Spend:
    """Optimizer steps that were charged, all with the same noise and sampling rate.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the clip norm; above 0.
        sampling_rate: Probability with which each record is in a batch; above 0, at most 1.
        steps: Number of steps, empty batches included; at least 0.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        """Refuse numbers outside their range."""
        object.__setattr__(self, "noise_multiplier", require_positive("noise_multiplier", self.noise_multiplier))
        object.__setattr__(self, "sampling_rate", require_rate("sampling_rate", self.sampling_rate))
        object.__setattr__(self, "steps", require_count("steps", self.steps, at_least=0))

    @property
    def mechanism(self) -> str:
        """The name under which a ledger keeps it."""
        return "gaussian" if self.sampling_rate == 1 else "subsampled-gaussian"


@dataclass(frozen=True, kw_only=True)
class ExternalSpend:
    """A release of which only its guarantee is known: another tool's, or of another mechanism.

    Attributes:
        epsilon: Above 0.
        delta: Of the same guarantee; at least 0, below 1; 0 is pure differential privacy.
    """

    epsilon: float
    delta: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers outside their range."""
        object.__setattr__(self, "epsilon", require_positive("epsilon", self.epsilon))
        object.__setattr__(self, "delta", require_real("delta", self.delta))
        if not 0 <= self.delta < 1:
            raise PrivacySettingError(f"delta={self.delta!r}; expected at least 0 and below 1")

    @property
    def mechanism(self) -> str:
        """The name under which a ledger keeps it."""
        return "external" if self.delta else "pure"


AnySpend = Spend | ExternalSpend


def compute_epsilon(history: Sequence[AnySpend], delta: float) -> float:
    """Return the epsilon of a whole history, in the tight accounting that is reported and enforced.

    Guarantees:
        - An upper bound; at most about ``PRV_ERROR`` above the true value while that is below ``LARGEST_PRV_EPSILON``.
        - Depends only on the total steps per noise and rate: neither order nor splitting of the history matters.
        - External spends are added as they are, and the Gaussian steps get the delta that they leave; infinite if they
          leave less than 1e-10 of it.
        - No steps give 0.0. The same arguments give the same number, in every process.

    Source: Gopi, Lee, Wutschitz, "Numerical Composition of Differential Privacy", arXiv 2106.02848 (PRV).
    Valid for parameters fixed in advance, as one plan fixes them; not if whoever chose the noise or rate of a later
    spend had seen what earlier ones released: see `compute_epsilon_adaptive`.

    Args:
        history: Every charged spend, in any order.
        delta: Between 1e-10 and 1.

    >>> history = [Spend(noise_multiplier=1.0, sampling_rate=0.01, steps=500)] * 2
    >>> round(compute_epsilon(history, delta=1e-5), 2)
    1.84
    """
    groups, external = _group(history), _external(history)
    return _compose(groups, external, require_delta("delta", delta), _prv_epsilon)


def compute_epsilon_rdp(history: Sequence[AnySpend], delta: float) -> float:
    """Return a looser epsilon of the same history, about a hundred times faster once a noise and rate were seen.

    Guarantees:
        - An upper bound, by Rényi differential privacy over `ORDERS`; above the exact epsilon by a tenth or so.
        - No steps give 0.0; depends only on the total steps per noise and rate.
        - External spends count as in `compute_epsilon`.

    Source: Mironov, Talwar, Zhang, arXiv 1908.10530; conversion of Balle et al., arXiv 1905.09982, Theorem 21.

    >>> round(compute_epsilon_rdp([Spend(noise_multiplier=1.0, sampling_rate=0.01, steps=1000)], delta=1e-5), 2)
    2.1
    """
    return _compose(_group(history), _external(history), require_delta("delta", delta), _rdp_epsilon)


def compute_epsilon_adaptive(history: Sequence[AnySpend], delta: float) -> float:
    """Return an epsilon that also limits a history whose later plans were chosen after seeing earlier outputs.

    Guarantees:
        - With one noise and rate in the history, where only the number of steps was left to choose: `compute_epsilon`.
        - With several, or with external spends beside them: a Rényi bound; above `compute_epsilon` by a fifth or so, at
          a large delta by up to a half.
        - Refusing every spend that would take it above a limit fixed in advance keeps (limit, ``delta``) privacy among
          outcomes with one noise and rate, and again among those with several: (limit, 2 ``delta``) at worst for a
          coordinator that decides between the two as it goes along, and (limit, ``delta``) if that was fixed.

    Source: Feldman, Zrnic, arXiv 2008.11193: at one order fixed in advance, the sum of Rényi divergences is such a
    filter. The best of `FILTER_ORDERS` is not fixed in advance, so each gets an equal share of ``delta``: an outcome is
    granted by one of them at least, and their failures add up to ``delta``. An external spend raises the divergence of
    every order by its epsilon at most, except with the probability of its delta, which is set aside first.

    >>> one = Spend(noise_multiplier=4.0, sampling_rate=0.05, steps=1000)
    >>> other = Spend(noise_multiplier=5.0, sampling_rate=0.05, steps=1000)
    >>> [round(compute_epsilon_adaptive(history, delta=1e-5), 1) for history in ([one], [one, other])]
    [1.6, 2.6]
    """
    groups, external = _group(history), _external(history)
    if not groups or (len(groups) == 1 and external is None):
        return compute_epsilon(history, delta)
    return _compose(groups, external, require_delta("delta", delta), _filter_epsilon)


def compute_epsilon_gaussian(mu: float, delta: float) -> float:
    """Return the exact epsilon of Gaussian noise without sampling.

    Guarantees:
        - The least epsilon that holds, rounded up by at most a millionth or so.
        - Holds for releases that were chosen after seeing earlier ones, too. 0 costs 0.0.

    Source: Balle, Wang, arXiv 1805.06530, theorem 8: delta is P(mu / 2 - epsilon / mu) - e^epsilon *
    P(-mu / 2 - epsilon / mu), with P the normal distribution function. Dong, Roth, Su, arXiv 1905.02383, corollary 2:
    the squares of mu add up over releases.

    Args:
        mu: Sensitivity over the noise's standard deviation; over several releases the root of the sum of its squares.
        delta: At least 1e-12, below 1.

    >>> round(compute_epsilon_gaussian(1.0, delta=1e-5), 3)
    4.377
    """
    if not 1e-12 <= delta < 1:
        raise PrivacySettingError(f"delta={delta!r}; expected at least 1e-12 and below 1")
    target = delta - 1e-15  # what rounding can hide in the difference below
    if mu == 0:
        return 0.0
    low, high = 0.0, require_positive("mu", mu) * (mu / 2 + 8)  # there the first term is 6e-16
    for _ in range(60):
        epsilon = (low + high) / 2
        points = torch.tensor([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu], dtype=torch.float64)
        one, other = torch.special.log_ndtr(points).tolist()
        if math.exp(one) - math.exp(epsilon + other) <= target:
            high = epsilon
        else:
            low = epsilon
    return high


@functools.lru_cache(maxsize=256)
def calibrate_noise_multiplier(*, epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Return the least noise multiplier with which ``steps`` steps cost at most ``epsilon``.

    Guarantees:
        - `compute_epsilon` of the result is at most ``epsilon``, never above.
        - At most `CALIBRATION_TOLERANCE` (relative) above the least that would do.
        - Deterministic: every process gets the same number.

    Args:
        epsilon: The target for all steps together; at least twice `PRV_ERROR`, or no noise would be enough.
        delta: Between 1e-10 and 1.
        sampling_rate: Above 0, at most 1.
        steps: All steps of all rounds; at least 1.
    """
    target = require_positive("epsilon", epsilon)
    if target < 2 * PRV_ERROR:
        raise PrivacySettingError(f"epsilon={epsilon!r}; expected at least {2 * PRV_ERROR}, what accounting resolves")
    require_delta("delta", delta)
    require_rate("sampling_rate", sampling_rate)
    require_count("steps", steps, at_least=1)

    too_little, enough = 0.0, math.inf  # the answer lies between
    epsilon_at: dict[float, float] = {}
    # The Gaussian mechanism's classic formula, q*sqrt(T)*sqrt(2*ln(1.25/delta))/epsilon, only says where to start.
    guess = max(0.3, sampling_rate * math.sqrt(steps) * math.sqrt(2 * math.log(1.25 / delta)) / target)
    while enough > too_little * (1 + CALIBRATION_TOLERANCE):
        spend = Spend(noise_multiplier=guess, sampling_rate=sampling_rate, steps=steps)
        epsilon_at[guess] = max(compute_epsilon([spend], delta), 1e-6)
        if epsilon_at[guess] <= target:
            enough = guess
        else:
            too_little = guess
        guess = _next_guess(too_little, enough, epsilon_at, target)
    return enough


def _next_guess(too_little: float, enough: float, epsilon_at: dict[float, float], target: float) -> float:
    """Propose a noise inside the bracket: log(epsilon) is close to a straight line over log(noise).

    The line is aimed a quarter of the tolerance past the answer, to the side whose bracket end is further away, so
    that both ends close in. Every sixth proposal bisects instead, which bounds their number.
    """
    if too_little == 0.0:
        return enough * max(0.25, epsilon_at[enough] / target * 0.95)
    if enough == math.inf:
        return too_little * min(4.0, epsilon_at[too_little] / target * 1.05)
    if len(epsilon_at) % 6 == 0:
        return math.sqrt(too_little * enough)
    left, right = math.log(too_little), math.log(enough)
    top, bottom = math.log(epsilon_at[too_little]), math.log(epsilon_at[enough])
    crossing = left + (right - left) * (top - math.log(target)) / (top - bottom)
    margin = CALIBRATION_TOLERANCE / 4
    aimed = crossing + margin if right - crossing > crossing - left else crossing - margin
    return math.exp(min(max(aimed, left + margin), right - margin))


def _group(history: Sequence[AnySpend]) -> tuple[_Group, ...]:
    """Total steps per (noise, rate), sorted, without entries of zero steps."""
    steps: defaultdict[tuple[float, float], int] = defaultdict(int)
    for spend in history:
        if isinstance(spend, Spend):
            steps[spend.noise_multiplier, spend.sampling_rate] += spend.steps
    return tuple(sorted((noise, rate, total) for (noise, rate), total in steps.items() if total))


def _external(history: Sequence[AnySpend]) -> ExternalSpend | None:
    """Basic composition of the external spends: their epsilons and their deltas add up, in any order to the bit."""
    spends = [spend for spend in history if isinstance(spend, ExternalSpend)]
    if not spends:
        return None
    delta = min(math.fsum(spend.delta for spend in spends), 1 - 2**-53)
    return ExternalSpend(epsilon=math.fsum(spend.epsilon for spend in spends), delta=delta)


def _compose(
    groups: tuple[_Group, ...],
    external: ExternalSpend | None,
    delta: float,
    epsilon_of: Callable[[tuple[_Group, ...], float], float],
) -> float:
    """Epsilon of Gaussian steps, at the delta that the external spends leave, and of those on top."""
    if external is None:
        return epsilon_of(groups, delta)
    left = delta - external.delta
    if left < (SMALLEST_DELTA if groups else 0):
        return math.inf
    return external.epsilon + (epsilon_of(groups, left) if groups else 0.0)


def _filter_epsilon(groups: tuple[_Group, ...], delta: float) -> float:
    return _rdp_epsilon(groups, delta / len(FILTER_ORDERS), FILTER_ORDERS)


@functools.lru_cache(maxsize=1024)
def _prv_epsilon(groups: tuple[_Group, ...], delta: float) -> float:
    bound = _rdp_epsilon(groups, delta)
    if not groups or bound > LARGEST_PRV_EPSILON:
        return bound
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(groups)
    with _without_irrelevant_warnings():
        return max(0.0, float(accountant.get_epsilon(delta, eps_error=PRV_ERROR)))


@functools.lru_cache(maxsize=1024)
def _rdp_epsilon(groups: tuple[_Group, ...], delta: float, orders: tuple[float, ...] = ORDERS) -> float:
    if not groups:
        return 0.0
    from opacus.accountants.analysis.rdp import get_privacy_spent

    rdp = sum(steps * _rdp_per_step(noise, rate, orders) for noise, rate, steps in groups)
    with _without_irrelevant_warnings():
        epsilon, _ = get_privacy_spent(orders=np.array(orders), rdp=rdp, delta=delta)
    return max(0.0, float(epsilon))


@functools.lru_cache(maxsize=1024)
def _rdp_per_step(noise_multiplier: float, sampling_rate: float, orders: tuple[float, ...]) -> np.ndarray:
    from opacus.accountants.analysis.rdp import compute_rdp

    curve = compute_rdp(q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=orders)
    return np.asarray(curve, dtype=np.float64)


@contextmanager
def _without_irrelevant_warnings() -> Iterator[None]:
    """Silence what Opacus says while it works as intended.

    Its search for a domain uses its short list of orders and says so, and with a rate of 1 it takes log(0), whose
    infinity it then handles.
    """
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        yield
