"""The only place that holds private training against its own plan, by an attack and by measuring the mechanism.

An auditor who planted canaries knows what the accountant takes on trust: who was in which batch, what the noise alone
looks like, how far one record moves the weights. Each check has a p-value under "the training does what the plan says";
one that is below `ERROR_RATE` contradicts the plan. The checks are two-sided: training that adds more noise than the
plan says is private, but it is not what was agreed.

Shape legend: M = canaries, T = steps, I = canaries that are in.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privacy.accounting import compute_epsilon
from privacy.canaries import Transcript, train_on_canaries
from privacy.lower_bounds import Guesses, bound_from_guesses, probability_of_guesses
from privacy.plan import PrivacyPlan

ERROR_RATE = 1e-5
"""Of each check, so that correct training fails one of the eight in at most 1 of 10,000 audits."""

CONFIDENCE = 0.95
"""Of the reported lower bound; whether it contradicts the claim is decided at `ERROR_RATE`."""

SHARE_GUESSED = 0.4
"""Of the canaries: the attacker calls the most conspicuous half of them in, the least conspicuous half out."""

LARGEST_AUDIT_DELTA = 1e-9
"""A bound from one run needs a delta far below 1 / canaries. The accountant claims an epsilon there too."""

SMALLEST_SPREAD, FEWEST_COUNTS = 10.0, 30
"""Variance of a count of coins, and number of counts, from which their spread is close enough to a gamma variable."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One number that the plan fixes, and what was measured.

    Attributes:
        name: What is checked.
        claimed: By the plan.
        measured: In the audit.
        p_value: Chance of a measurement at least as far away, if training does what the plan says.
    """

    name: str
    claimed: float
    measured: float
    p_value: float

    @property
    def contradicts(self) -> bool:
        """Whether the measurement refutes the plan."""
        return not self.p_value >= ERROR_RATE


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit of private training found.

    Attributes:
        plan: What was audited; of a long run its first steps, see `audit_training`.
        claimed_epsilon: Of the audited steps, at the plan's delta.
        audit_delta: At which the attack is judged.
        claimed_at_audit_delta: Epsilon of the same steps at ``audit_delta``.
        lower_bound: What the attack shows epsilon to be at least, at ``audit_delta``, with `CONFIDENCE`.
        guesses: Of the attack.
        checks: One for each number; those that the plan leaves no room for are absent.
    """

    plan: PrivacyPlan
    claimed_epsilon: float
    audit_delta: float
    claimed_at_audit_delta: float
    lower_bound: float
    guesses: Guesses
    checks: tuple[Check, ...]

    @property
    def contradictions(self) -> tuple[Check, ...]:
        """Checks that refute the plan; empty if nothing does."""
        return tuple(check for check in self.checks if check.contradicts)


def audit_training(
    plan: PrivacyPlan, *, num_canaries: int = 1000, on_round: Callable[[], None] = lambda: None
) -> Audit:
    """Run the plan's training on canaries and say what contradicts it.

    Guarantees:
        - Correct training is contradicted in at most 1 of 10,000 audits.
        - Finds missing noise, missing clipping, noise of half the size, noise that repeats over steps or weights,
          another sampling rate, batches of a fixed size, and shuffled passes in place of Poisson sampling.

    The lower bound is blunt: it saturates near 5 for 1,000 canaries, and noise of half the size rarely lifts it above a
    claim. The other checks measure what the accountant was told; together with its arithmetic they carry the claim.

    Args:
        plan: To be run in full; shorten a long one with `shorten`.
        num_canaries: More find smaller deviations.
        on_round: Called after each round, to show progress.

    >>> plan = PrivacyPlan.calibrate(
    ...     epsilon=1, delta=1e-3, clip_norm=1, sampling_rate=0.5, steps_per_round=2, num_rounds=3, nominal_units=1
    ... )
    >>> audit_training(plan).contradictions
    ()
    """
    transcript = train_on_canaries(plan, num_canaries, on_round)
    guesses = _guess(transcript, plan)
    audit_delta = min(plan.delta, LARGEST_AUDIT_DELTA)
    claimed = compute_epsilon([plan.total_spend], audit_delta)
    lower_bound = bound_from_guesses(guesses, delta=audit_delta, confidence=CONFIDENCE)
    chance = probability_of_guesses(guesses, epsilon=claimed, delta=audit_delta)
    attack = Check(name="epsilon", claimed=claimed, measured=lower_bound, p_value=min(1.0, chance))
    return Audit(
        plan=plan,
        claimed_epsilon=compute_epsilon([plan.total_spend], plan.delta),
        audit_delta=audit_delta,
        claimed_at_audit_delta=claimed,
        lower_bound=lower_bound,
        guesses=guesses,
        checks=(
            attack,
            _check_mu(transcript, plan),
            *_check_noise(transcript, plan),
            *_check_batches(transcript, plan),
        ),
    )


def shorten(plan: PrivacyPlan, *, at_most: int) -> PrivacyPlan:
    """Return the same plan with as many whole rounds as make at most so many steps, or the start of one round.

    >>> plan = PrivacyPlan.calibrate(
    ...     epsilon=1, delta=1e-3, clip_norm=1, sampling_rate=0.5, steps_per_round=2, num_rounds=3, nominal_units=1
    ... )
    >>> [shorten(plan, at_most=steps).total_spend.steps for steps in (1, 5, 9)]
    [1, 4, 6]
    """
    if plan.steps_per_round > at_most:
        return replace(plan, steps_per_round=at_most, num_rounds=1)
    return replace(plan, num_rounds=min(plan.num_rounds, at_most // plan.steps_per_round))


def _guess(transcript: Transcript, plan: PrivacyPlan) -> Guesses:
    """Call canaries in or out by the exact likelihood ratio of all that was released: no score can do better."""
    rate, variance = plan.sampling_rate, plan.noise_multiplier**2
    if_in_batch = np.log(rate) + (transcript.sums - 0.5) / variance
    if_left_out = np.log1p(-rate) if rate < 1 else -np.inf
    ranking = np.argsort(np.logaddexp(if_left_out, if_in_batch).sum(axis=0))
    half = round(SHARE_GUESSED * len(ranking)) // 2
    is_in = transcript.is_in
    num_right = int(is_in[ranking[-half:]].sum() + (~is_in[ranking[:half]]).sum())
    return Guesses(num_canaries=len(is_in), num_guesses=2 * half, num_right=num_right)


def _check_mu(transcript: Transcript, plan: PrivacyPlan) -> Check:
    """Compare how far apart the released weights of canaries in and out lie, in standard deviations of those out.

    The plan claims q sqrt(T) / sigma. The estimate is a t statistic: distributed as a noncentral t, exactly for q = 1
    and up to the normal approximation of the number of canaries in batches below.
    """
    steps, rate, sigma = len(transcript.sums), plan.sampling_rate, plan.noise_multiplier
    inside, outside = transcript.moved[transcript.is_in], transcript.moved[~transcript.is_in]
    claimed = rate * math.sqrt(steps) / sigma
    error = math.sqrt((1 + rate * (1 - rate) / sigma**2) / len(inside) + 1 / len(outside))
    with np.errstate(divide="ignore", invalid="ignore"):
        measured = float((inside.mean() - outside.mean()) / outside.std(ddof=1))
    p_value = _two_sided(stats.nct(df=len(outside) - 1, nc=claimed / error), measured / error)
    return Check(name="mu", claimed=claimed, measured=measured, p_value=p_value)


def _check_noise(transcript: Transcript, plan: PrivacyPlan) -> Iterator[Check]:
    """Measure the noise where nothing else is: in the weights of canaries that are out."""
    noise_TO = transcript.sums[:, ~transcript.is_in]
    energy = float((noise_TO**2).sum())
    p_value = _two_sided(stats.chi2(df=noise_TO.size), energy / plan.noise_multiplier**2)
    size = math.sqrt(energy / noise_TO.size)
    yield Check(name="noise per step", claimed=plan.noise_multiplier, measured=size, p_value=p_value)
    if len(noise_TO) > 1:
        yield _check_fresh("noise alike over steps", noise_TO)
    yield _check_fresh("noise alike over weights", noise_TO.T)


def _check_fresh(name: str, noise_KL: NDArray[np.float64]) -> Check:
    """Measure the mean correlation of the K rows: 0 for independent noise, 1 where one draw serves for all.

    The share of the energy along the mean row is distributed as Beta(L / 2, L (K - 1) / 2), exactly.
    """
    rows, columns = noise_KL.shape
    energy = (noise_KL**2).sum()
    share = float((noise_KL.sum(axis=0) ** 2).sum() / rows / energy) if energy > 0 else 1.0
    p_value = _two_sided(stats.beta(columns / 2, columns * (rows - 1) / 2), share)
    return Check(name=name, claimed=0.0, measured=(share * rows - 1) / (rows - 1), p_value=p_value)


def _check_batches(transcript: Transcript, plan: PrivacyPlan) -> Iterator[Check]:
    """Compare who was in which batch with coins of the plan's rate."""
    batches, rate = transcript.batches, plan.sampling_rate
    p_value = _two_sided(stats.binom(batches.size, rate), int(batches.sum()), step=1)
    yield Check(name="sampling rate", claimed=rate, measured=float(batches.mean()), p_value=p_value)
    for name, counts, trials in (
        ("spread of batch sizes", batches.sum(axis=1), batches.shape[1]),
        ("spread of uses of a record", batches.sum(axis=0), batches.shape[0]),
    ):
        if trials * rate * (1 - rate) >= SMALLEST_SPREAD and len(counts) >= FEWEST_COUNTS:
            yield _check_spread(name, counts, trials, rate)


def _check_spread(name: str, counts: NDArray[np.int64], trials: int, rate: float) -> Check:
    """Compare the standard deviation of counts with a binomial's.

    The sum of squared deviations is taken as a gamma variable with its exact mean and variance.
    """
    variance = trials * rate * (1 - rate)
    fourth_moment = variance * (1 + 3 * (trials - 2) * rate * (1 - rate))
    mean_of_squares = float(((counts - trials * rate) ** 2).mean())
    shape = len(counts) * variance**2 / (fourth_moment - variance**2)
    p_value = _two_sided(stats.gamma(shape, scale=variance / shape), mean_of_squares)
    return Check(name=name, claimed=math.sqrt(variance), measured=math.sqrt(mean_of_squares), p_value=p_value)


def _two_sided(distribution: "stats.distributions.rv_frozen", value: float, *, step: int = 0) -> float:
    """Twice the smaller tail that holds ``value``; 0 for a value that is no number. ``step``: 1 for counts."""
    p_value = 2 * min(float(distribution.cdf(value)), float(distribution.sf(value - step)))
    return 0.0 if math.isnan(value) or math.isnan(p_value) else min(1.0, p_value)
