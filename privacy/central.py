"""The only place where clip norm, weights, grid and noise of hospital-level privacy come together, as one plan."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from privacy.accounting import compute_epsilon_gaussian
from privacy.bounds import require_clip_norm, require_count, require_delta, require_label, require_positive
from privacy.discrete_noise import draw_discrete_gaussian, log_ratio_to_gaussian, share_std
from privacy.errors import PrivacySettingError

NOISE_STEPS = 2**22
"""Standard deviation of the noise in steps of the grid: so many that whole numbers cost next to nothing."""

CLIP_SLACK = 1e-9
"""Share by which updates are clipped shorter than agreed, far above what float64 arithmetic can round up."""

LARGEST_COORDINATES = 10**9
"""Trained numbers of a model; more would have no room for noise on the grid."""

_Integers = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CentralPlan:
    """What protects a whole hospital in one run: every public number of it and nothing private.

    The promise: all models that the run releases, together, are (``epsilon``, ``delta``)-differentially private for
    the contribution of one hospital, against everybody who sees models but not the single updates. Neighbouring runs
    have the same hospitals and weights; in one of them a hospital's updates are replaced by zeros.

    Why zeros, and why the weights are fixed: a weight is a hospital's declared number over the sum for *all* expected
    hospitals, whether they reply or not. If the sum ran over those that replied, one hospital more or less would change
    the weight of every other, and the release by up to twice the largest weight, not once. Who takes part, and
    what each declares, is public and not protected. Every hospital is asked in every round, because who is asked is no
    secret; nothing is won by sampling.

    A hospital moves the weighted sum by at most ``clip_norm`` times its weight, and ``sqrt(coordinates) / 2`` steps of
    rounding; the noise is ``noise_multiplier`` times that of the heaviest. It is a discrete Gaussian, added once to a
    sum of whole numbers, and on this grid a rounded Gaussian up to a factor of 1 + 1e-11; the difference is charged.
    Under secure aggregation each hospital adds a share of the noise. A sum of discrete Gaussians is no discrete
    Gaussian, but on this grid as close to one as floats can tell; that is charged too. Skellam noise would be closed
    under summation, but what is known of its epsilon is looser, and it cannot be sampled exactly in whole numbers.

    Attributes:
        unit: What is protected; one hospital.
        neighbouring: The neighbouring relation of every number here.
        epsilon: Target for all rounds together; above 0.
        delta: At least 1e-10, below 1.
        clip_norm: Largest L2 norm of one hospital's update over all trained arrays; 1e-6 to 1e6, in weight units.
        weights: Each expected hospital's share of the weighted sum; they add up to 1.
        num_rounds: Noised rounds that are allowed; at least 1.
        num_coordinates: Trained numbers of the model.
        noise_multiplier: Standard deviation of the noise over the largest contribution.

    Source: DP-FedAvg with flat clipping, McMahan et al., arXiv 1710.06963; distributed discrete Gaussian, Kairouz, Liu,
    Steinke, arXiv 2102.06387.
    """

    unit: Literal["hospital"] = "hospital"
    neighbouring: Literal["zero-out-one"] = "zero-out-one"
    epsilon: float
    delta: float
    clip_norm: float
    weights: Mapping[str, float] = field(hash=False)
    num_rounds: int
    num_coordinates: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        """Check every number, then that the noise keeps the promised epsilon."""
        for name in ("epsilon", "noise_multiplier"):
            object.__setattr__(self, name, require_positive(name, getattr(self, name)))
        object.__setattr__(self, "delta", require_delta("delta", self.delta))
        object.__setattr__(self, "clip_norm", require_clip_norm("clip_norm", self.clip_norm))
        object.__setattr__(self, "weights", MappingProxyType(_checked(self.weights)))
        require_count("num_rounds", self.num_rounds, at_least=1)
        if require_count("num_coordinates", self.num_coordinates, at_least=1) > LARGEST_COORDINATES:
            raise PrivacySettingError(f"num_coordinates={self.num_coordinates}; expected at most {LARGEST_COORDINATES}")
        if (total := math.fsum(self.weights.values())) > 1 + 1e-9:
            raise PrivacySettingError(f"weights add up to {total!r}; expected 1; build the plan with calibrate")
        if self._noise_of_rounding > NOISE_STEPS / 2:
            raise PrivacySettingError(
                f"noise_multiplier={self.noise_multiplier:.4g}, num_coordinates={self.num_coordinates}; rounding would "
                "cost half of the noise; expected a smaller model or a larger epsilon"
            )
        if (reached := self.epsilon_after(self.num_rounds)) > self.epsilon:
            raise PrivacySettingError(
                f"noise_multiplier={self.noise_multiplier!r}; {self.num_rounds} rounds with it reach epsilon "
                f"{reached:.4f}; expected at most {self.epsilon!r}; build the plan with CentralPlan.calibrate"
            )

    @classmethod
    def calibrate(
        cls,
        *,
        epsilon: float,
        delta: float,
        clip_norm: float,
        declared: Mapping[str, float],
        num_rounds: int,
        num_coordinates: int,
    ) -> "CentralPlan":
        """Build the plan with the least noise that keeps ``epsilon`` over all rounds.

        Args:
            epsilon: See the class.
            delta: See the class.
            clip_norm: See the class.
            declared: What each expected hospital counts by, such as its declared number of records; above 0.
            num_rounds: See the class.
            num_coordinates: See the class.

        >>> plan = CentralPlan.calibrate(
        ...     epsilon=8, delta=1e-3, clip_norm=1, declared={"a": 300, "b": 100}, num_rounds=20, num_coordinates=61
        ... )
        >>> round(plan.noise_multiplier, 2), plan.weights["a"], round(plan.noise_std, 2)
        (2.15, 0.75, 1.61)
        """
        rounds = require_count("num_rounds", num_rounds, at_least=1)
        coordinates = require_count("num_coordinates", num_coordinates, at_least=1)
        numbers = _checked(declared)
        total = math.fsum(numbers.values())
        ratio = log_ratio_to_gaussian(NOISE_STEPS) * coordinates * rounds
        mu = _largest_mu(require_positive("epsilon", epsilon), require_delta("delta", delta), ratio)
        return cls(
            epsilon=epsilon,
            delta=delta,
            clip_norm=clip_norm,
            weights={site: number / total for site, number in numbers.items()},
            num_rounds=num_rounds,
            num_coordinates=num_coordinates,
            noise_multiplier=math.sqrt(rounds) / mu * (1 + 1e-12),
        )

    @property
    def step(self) -> float:
        """Distance of two points of the grid, in weight units.

        Of ``NOISE_STEPS`` steps of noise, ``noise_multiplier * sqrt(num_coordinates) / 2`` cover rounding; the rest
        covers ``noise_multiplier * clip_norm * max(weights)``.
        """
        largest = self.clip_norm * max(self.weights.values())
        return self.noise_multiplier * largest / (NOISE_STEPS - self._noise_of_rounding)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on the weighted mean, at each coordinate, in weight units."""
        return NOISE_STEPS * self.step

    @property
    def sensitivity_steps(self) -> float:
        """Largest L2 norm of what `quantise` returns, in steps; the noise is ``noise_multiplier`` times this."""
        return NOISE_STEPS / self.noise_multiplier

    @property
    def _noise_of_rounding(self) -> float:
        return self.noise_multiplier * math.sqrt(self.num_coordinates) / 2

    def epsilon_after(self, num_rounds: int, *, num_shares: int = 1) -> float:
        """Epsilon of this many noised rounds; a round that was run twice counts twice.

        Args:
            num_rounds: At least 0.
            num_shares: Hospitals that each added a share of the noise; 1 if the coordinator added all of it.
        """
        rounds = require_count("num_rounds", num_rounds, at_least=0)
        ratio = log_ratio_to_gaussian(NOISE_STEPS, num_shares=num_shares) * self.num_coordinates * rounds
        return _epsilon(math.sqrt(rounds) / self.noise_multiplier, self.delta, ratio)

    def quantise(self, site: str, update: _Floats) -> _Integers:
        """Clip a hospital's update, weigh it, and round it to the grid.

        Guarantees:
            - The L2 norm of the result is at most `sensitivity_steps`, whatever the update, if it is finite.
            - Deterministic; an update inside the clip norm is moved by at most half a step at each coordinate, and by
              `CLIP_SLACK` of the clip norm.

        Args:
            site: One of ``weights``.
            update: New weights minus old, all trained arrays in one row; finite.

        Raises:
            PrivacySettingError: The hospital has no weight, or the update is of another length or not finite.
        """
        if site not in self.weights:
            raise PrivacySettingError(f"site={site!r}; expected one of {sorted(self.weights)}, whose weights are fixed")
        if update.shape != (self.num_coordinates,) or not np.isfinite(update).all():
            raise PrivacySettingError(f"update of shape {update.shape}; expected {self.num_coordinates} finite numbers")
        largest = float(np.abs(update).max()) or 1.0
        unit = update / largest  # squares can no longer overflow
        norm = float(np.linalg.norm(unit)) * (1 + CLIP_SLACK)
        scale = min(largest, self.clip_norm / norm) if norm else 0.0
        return np.rint(unit * (scale * (1 - CLIP_SLACK) * self.weights[site] / self.step)).astype(np.int64)

    def draw_noise(self) -> _Integers:
        """All of a round's noise, in steps, for a coordinator that adds it itself."""
        return draw_discrete_gaussian(NOISE_STEPS, self.num_coordinates)

    def draw_noise_share(self, num_shares: int) -> _Integers:
        """One hospital's share of a round's noise, in steps, for a sum that nobody sees in parts.

        Args:
            num_shares: Hospitals that are sure to add theirs, counted cautiously; with fewer the promise fails.
        """
        return draw_discrete_gaussian(share_std(NOISE_STEPS, num_shares), self.num_coordinates)

    def restore(self, total: _Integers) -> _Floats:
        """The weighted mean update, in weight units, of a sum of quantised updates and noise."""
        return total.astype(np.float64) * self.step


def _checked(numbers: Mapping[str, float]) -> dict[str, float]:
    if not numbers:
        raise PrivacySettingError("weights={}; expected one for every hospital")
    return {require_label("site", site): require_positive(f"weight of {site}", numbers[site]) for site in numbers}


def _epsilon(mu: float, delta: float, ratio: float) -> float:
    """Epsilon of noise that differs from a Gaussian's by a factor of at most e^ratio, or never within e^-500."""
    return compute_epsilon_gaussian(mu, delta * (1 - 1e-9) * math.exp(-ratio)) + 2 * ratio


@functools.lru_cache(maxsize=256)
def _largest_mu(epsilon: float, delta: float, ratio: float) -> float:
    """The largest mu whose epsilon is at most the given one, by bisection from below."""
    if 2 * ratio >= epsilon:
        raise PrivacySettingError(f"epsilon={epsilon!r}; expected more than {2 * ratio:.3g}, or a smaller model")
    low, high = 0.0, math.sqrt(2 * epsilon) + 10  # beyond the answer
    for _ in range(60):
        middle = (low + high) / 2
        if _epsilon(middle, delta, ratio) <= epsilon:
            low = middle
        else:
            high = middle
    return low
