"""The only place that turns the spend of a record-level plan into the epsilon of a patient with several records."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from privacy.accounting import PRV_ERROR, Spend, compute_epsilon
from privacy.bounds import require_count, require_delta
from privacy.errors import PrivacySettingError

RELATIVE_ERROR = 0.005
"""Error of the composition as a share of epsilon, where that is more than `privacy.accounting.PRV_ERROR`."""

LARGEST_RECORDS = 64
"""Most records of one patient that are accounted for."""

_Floats = NDArray[np.float64]


def compute_patient_epsilon(history: Sequence[Spend], delta: float, *, records_per_patient: int) -> float:
    """Return epsilon for one patient added or removed with up to ``records_per_patient`` records.

    Records are sampled one by one, so a step may hold any number of a patient's records, and each moves the step's sum
    by at most one clip norm. No patient is easier to detect than one whose records all move it the same way: a Gaussian
    whose mean is Binomial(records, rate) clip norms, against a Gaussian with mean 0.

    Guarantees:
        - An upper bound for the whole history, adding and removing alike; above the true value by at most about twice
          the larger of ``PRV_ERROR`` and `RELATIVE_ERROR` of it.
        - One record gives `privacy.accounting.compute_epsilon`.
        - Depends only on the total steps per noise and rate. No steps give 0.0.

    Source: Choquette-Choo et al., arXiv 2310.15526, section 4 (the dominating pair); Gopi, Lee, Wutschitz,
    arXiv 2106.02848, section 5 (composition and its error).

    Args:
        history: Every charged spend, in any order.
        delta: Between 1e-10 and 1; of the patient's guarantee.
        records_per_patient: The most records that one patient has; 1 to `LARGEST_RECORDS`.

    >>> history = [Spend(noise_multiplier=4.0, sampling_rate=0.05, steps=400)]
    >>> [round(compute_patient_epsilon(history, 1e-5, records_per_patient=count), 1) for count in (1, 2)]
    [1.0, 2.1]
    """
    require_delta("delta", delta)
    if require_count("records_per_patient", records_per_patient, at_least=1) > LARGEST_RECORDS:
        raise PrivacySettingError(f"records_per_patient={records_per_patient}; expected at most {LARGEST_RECORDS}")
    if records_per_patient == 1:
        return compute_epsilon(history, delta)
    steps: dict[tuple[float, float], int] = {}
    for spend in history:
        key = spend.noise_multiplier, spend.sampling_rate
        steps[key] = steps.get(key, 0) + spend.steps
    groups = tuple((_Step.of(*key, records_per_patient), total) for key, total in sorted(steps.items()) if total)
    return _epsilon(groups, delta) if groups else 0.0


@dataclass(frozen=True)
class _Step:
    """One step as the dominating pair sees it, in clip norms: N(0, noise^2) without the patient, a mixture with.

    Attributes:
        noise: Standard deviation of the Gaussians.
        means: Of the mixture's parts: how many of the patient's records the batch holds.
        log_weights: Natural logarithm of each part's probability.
    """

    noise: float
    means: tuple[int, ...]
    log_weights: tuple[float, ...]

    @classmethod
    def of(cls, noise: float, rate: float, records: int) -> "_Step":
        if rate == 1:
            return cls(noise, (records,), (0.0,))
        chances = [
            math.log(math.comb(records, count)) + count * math.log(rate) + (records - count) * math.log1p(-rate)
            for count in range(records + 1)
        ]
        return cls(noise, tuple(range(records + 1)), tuple(chances))

    def loss(self, x: _Floats) -> _Floats:
        """Log-likelihood ratio of with over without the patient at an output x; convex and increasing in x."""
        return self._loss_and_slope(x)[0]

    def output_at(self, loss: _Floats) -> _Floats:
        """The output whose loss is the given one; minus infinity below the least loss."""
        spread = self.means[-1] + 12 * self.noise
        low, high = -spread, spread
        while self.loss(np.array([high]))[0] < loss.max():
            high *= 2
        while self.means[0] > 0 and self.loss(np.array([low]))[0] > loss.min():
            low *= 2
        table = np.linspace(low, high, 20_001)
        x = np.interp(loss, self.loss(table), table)
        for _ in range(4):  # Newton's method on a convex function, from a close start
            value, slope = self._loss_and_slope(x)
            x = np.clip(x + (loss - value) / np.maximum(slope, 1e-300), low, high)
        return np.where(loss <= self.log_weights[0], -np.inf, x) if self.means[0] == 0 else x

    def mass_between(self, x: _Floats, *, removing: bool) -> _Floats:
        """Probability between consecutive outputs of an increasing sequence, exact in both tails."""
        mass = np.zeros(len(x) - 1)
        for mean, log_weight in zip(self.means, self.log_weights, strict=True) if removing else [(0, 0.0)]:
            z = (x - mean) / self.noise
            below, above = (torch.special.ndtr(torch.from_numpy(sign * z)).numpy() for sign in (1.0, -1.0))
            mass += math.exp(log_weight) * np.where(z[:-1] > 0, -np.diff(above), np.diff(below))
        return mass

    def _loss_and_slope(self, x: _Floats) -> tuple[_Floats, _Floats]:
        """The loss and its derivative, folded up part by part so that memory does not grow with the parts."""
        total = np.full_like(x, -np.inf)
        slope = np.zeros_like(x)
        for mean, log_weight in zip(self.means, self.log_weights, strict=True):
            part = log_weight + (mean * x - mean**2 / 2) / self.noise**2
            merged = np.logaddexp(total, part)
            share = np.exp(part - merged)
            slope += share * (mean / self.noise**2 - slope)
            total = merged
        return total, slope


_Groups = tuple[tuple[_Step, int], ...]


@functools.lru_cache(maxsize=256)
def _epsilon(groups: _Groups, delta: float) -> float:
    return max(_epsilon_one_way(groups, delta, removing=removing) for removing in (True, False))


def _epsilon_one_way(groups: _Groups, delta: float, *, removing: bool) -> float:
    """Compose the privacy losses of all steps on a grid, and read epsilon off their distribution."""
    delta_error = delta / 1000
    total_steps = sum(steps for _, steps in groups)
    moments = [_LogMoments.of(step, removing=removing) for step, _ in groups]
    counts = [steps for _, steps in groups]
    epsilon_error = max(PRV_ERROR, RELATIVE_ERROR * _largest_loss(moments, counts, delta, upper=True))
    mesh = epsilon_error / math.sqrt(total_steps * math.log(12 / delta_error) / 2)
    reach = max(
        *(_largest_loss(moments, counts, delta_error / 8, upper=upper) for upper in (True, False)),
        *(
            _largest_loss([one], [1], delta_error / (8 * total_steps), upper=upper)
            for one in moments
            for upper in (True, False)
        ),
    )
    size = 2 ** math.ceil(math.log2(2 * (reach / mesh + 1)))
    grid = (np.arange(size) - size // 2) * mesh
    spectrum, shift = np.ones(size // 2 + 1, np.complex128), 0.0
    for step, steps in groups:
        mass, correction = _discretise(step, grid, mesh, removing=removing)
        spectrum *= np.fft.rfft(np.fft.ifftshift(mass)) ** steps
        shift += steps * correction
    composed = np.fft.fftshift(np.fft.irfft(spectrum, size))
    return _read_epsilon(grid + shift, composed, delta - delta_error) + epsilon_error


def _discretise(step: _Step, grid: _Floats, mesh: float, *, removing: bool) -> tuple[_Floats, float]:
    """Round a step's loss to the grid; also what its mean lost by that."""
    edges = np.append(grid - mesh / 2, grid[-1] + mesh / 2)
    if removing:
        mass = step.mass_between(step.output_at(edges), removing=True)
    else:  # the loss is minus the ratio's logarithm, so it falls as the output grows
        mass = step.mass_between(step.output_at(-edges[::-1]), removing=False)[::-1]
    x, log_density = _outputs(step, reach=0.0)
    loss = step.loss(x)
    density = np.exp(log_density + loss) if removing else np.exp(log_density)
    mean = float(np.sum(density * loss) / np.sum(density))
    return mass, (mean if removing else -mean) - float(mass @ grid)


@dataclass(frozen=True)
class _LogMoments:
    """Logarithms of the mean of e^(order * loss), and of e^(-order * loss), of one step at several orders."""

    orders: _Floats
    upper: _Floats
    lower: _Floats

    @classmethod
    def of(cls, step: _Step, *, removing: bool) -> "_LogMoments":
        orders = np.geomspace(1e-3, 64 / step.means[-1], 48)
        x, log_density = _outputs(step, reach=orders[-1] * step.means[-1])
        loss = step.loss(x)
        log_mass = log_density + (loss if removing else 0.0) + math.log(x[1] - x[0])
        signed = loss if removing else -loss
        upper, lower = (
            np.array([np.logaddexp.reduce(log_mass + sign * order * signed) for order in orders]) for sign in (1, -1)
        )
        return cls(orders, upper, lower)


def _largest_loss(moments: Sequence[_LogMoments], counts: Sequence[int], chance: float, *, upper: bool) -> float:
    """What the composed loss (upper), or minus it, exceeds with at most this chance (Chernoff's bound)."""
    total = sum(steps * (one.upper if upper else one.lower) for one, steps in zip(moments, counts, strict=True))
    return float(np.min((total - math.log(chance)) / moments[0].orders))


def _outputs(step: _Step, *, reach: float) -> tuple[_Floats, _Floats]:
    """Evenly spaced outputs that hold all mass that matters, and the log-density there without the patient."""
    low, high = -reach - 14 * step.noise, reach + step.means[-1] + 14 * step.noise
    spacing = min(step.noise, step.noise**2) / 12
    x = np.linspace(low, high, math.ceil((high - low) / spacing))
    return x, -((x / step.noise) ** 2) / 2 - math.log(step.noise * math.sqrt(2 * math.pi))


def _read_epsilon(losses: _Floats, mass: _Floats, delta: float) -> float:
    """The least epsilon from 0 whose delta, the mean of max(0, 1 - e^(epsilon - loss)), is at most the given one."""
    losses, mass = losses[losses > 0], mass[losses > 0].clip(min=0)
    low, high = 0.0, float(losses[-1])
    for _ in range(40):
        middle = (low + high) / 2
        beyond = np.searchsorted(losses, middle)
        if mass[beyond:] @ -np.expm1(middle - losses[beyond:]) <= delta:
            high = middle
        else:
            low = middle
    return high
