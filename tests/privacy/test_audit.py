"""An audit finds training that does not do what its plan says, and leaves correct training alone.

An audit of correct training fails with probability at most 1e-4 (eight checks at 1e-5), so a test of it does too.
The product has no option to break it: the defects are planted from outside.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from privacy import book_keeping, dp_sgd, per_record, units
from privacy.audit import Check, _check_batches, _check_mu, _check_noise, audit_training, shorten
from privacy.canaries import Transcript
from privacy.noise import secure_normal
from privacy.plan import PrivacyPlan
from privacy.sampling import sample_poisson

Plant = Callable[[pytest.MonkeyPatch], None]


def make_plan(*, sampling_rate: float, steps: int, noise_multiplier: float, num_rounds: int = 1) -> PrivacyPlan:
    return PrivacyPlan(
        epsilon=100.0,
        delta=1e-5,
        clip_norm=0.5,
        sampling_rate=sampling_rate,
        steps_per_round=steps,
        num_rounds=num_rounds,
        noise_multiplier=noise_multiplier,
        nominal_units=300,
    )


FULL_BATCHES = make_plan(sampling_rate=1.0, steps=10, noise_multiplier=12.0)
"""Epsilon 1.0 at delta 1e-5 and 1.5 at 1e-9: small enough for the attack to refute. mu = sqrt(10) / 12 = 0.26."""

HALF_BATCHES = make_plan(sampling_rate=0.5, steps=20, noise_multiplier=2.0, num_rounds=2)
"""mu = 0.5 * sqrt(40) / 2 = 1.58."""


def contradictions(plan: PrivacyPlan) -> set[str]:
    return {check.name for check in audit_training(plan, num_canaries=1000).contradictions}


def draw_noise_by(draw: Callable[[int], NDArray[np.float64]], patch: pytest.MonkeyPatch) -> None:
    class Source:
        def __init__(self, count: int, *, num_draws: int) -> None:
            assert num_draws == 4  # of a small model
            self.count = count

        def draw(self) -> NDArray[np.float64]:
            return draw(self.count)

    patch.setattr(dp_sgd, "NormalSource", Source)


def no_noise(patch: pytest.MonkeyPatch) -> None:
    draw_noise_by(np.zeros, patch)


def noise_of_a_tenth(patch: pytest.MonkeyPatch) -> None:
    draw_noise_by(lambda count: secure_normal(count) / 10, patch)


def noise_of_half(patch: pytest.MonkeyPatch) -> None:
    draw_noise_by(lambda count: secure_normal(count) / 2, patch)


def the_same_noise_in_every_step(patch: pytest.MonkeyPatch) -> None:
    noise = secure_normal(1000)
    draw_noise_by(lambda _: noise.copy(), patch)


def the_same_noise_in_every_weight(patch: pytest.MonkeyPatch) -> None:
    draw_noise_by(lambda count: np.full(count, secure_normal(1)), patch)


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    for method in (book_keeping, per_record):
        patch.setattr(method, "clip_factors", lambda norms, _: torch.ones_like(norms, dtype=torch.float32))


def a_higher_rate_than_the_accountant_was_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(units, "sample_poisson", lambda num_records, rate: sample_poisson(num_records, 1.2 * rate))


def batches_of_a_fixed_size(patch: pytest.MonkeyPatch) -> None:
    def sample(num_records: int, rate: float) -> NDArray[np.int64]:
        return np.random.default_rng().permutation(num_records)[: round(rate * num_records)]

    patch.setattr(units, "sample_poisson", sample)


def shuffled_passes(patch: pytest.MonkeyPatch) -> None:
    waiting: list[NDArray[np.int64]] = []

    def sample(num_records: int, _: float) -> NDArray[np.int64]:
        if not waiting:
            waiting.extend(np.array_split(np.random.default_rng().permutation(num_records), 2))
        return waiting.pop()

    patch.setattr(units, "sample_poisson", sample)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [FULL_BATCHES, HALF_BATCHES], ids=["full", "half"])
def test_nothing_contradicts_correct_training(plan: PrivacyPlan) -> None:
    audit = audit_training(plan)

    assert audit.contradictions == ()
    assert 0 <= audit.lower_bound <= audit.claimed_at_audit_delta
    assert audit.claimed_epsilon < audit.claimed_at_audit_delta


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "plant", "found"),
    [
        (FULL_BATCHES, no_noise, {"epsilon", "mu", "noise per step"}),
        (FULL_BATCHES, no_clipping, {"epsilon", "mu"}),
        # Noise of a tenth: mu = 2.6 separates 400 of 1,000 canaries nearly without error, for a bound above 2.
        (FULL_BATCHES, noise_of_a_tenth, {"epsilon", "mu", "noise per step"}),
        # mu = 3.16 against 1.58, with a standard error of 0.11.
        (HALF_BATCHES, noise_of_half, {"mu", "noise per step"}),
        (HALF_BATCHES, no_clipping, {"mu"}),
        # 40 steps, 500 canaries: 20,000 coins, deviation 0.0035, against a rate that is 0.1 higher.
        (HALF_BATCHES, a_higher_rate_than_the_accountant_was_told, {"sampling rate"}),
        (HALF_BATCHES, batches_of_a_fixed_size, {"spread of batch sizes"}),
        (HALF_BATCHES, shuffled_passes, {"spread of batch sizes", "spread of uses of a record"}),
        (HALF_BATCHES, the_same_noise_in_every_step, {"noise alike over steps"}),
        (HALF_BATCHES, the_same_noise_in_every_weight, {"noise alike over weights"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_defect_is_found(
    plan: PrivacyPlan, plant: Plant, found: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)

    assert found <= contradictions(plan)


def test_a_single_full_batch_is_audited_too() -> None:
    audit = audit_training(make_plan(sampling_rate=1.0, steps=1, noise_multiplier=3.0), num_canaries=100)

    assert {check.name for check in audit.checks} == {
        "epsilon",
        "mu",
        "noise per step",
        "noise alike over weights",
        "sampling rate",
    }
    assert audit.contradictions == ()


def drawn_transcript(plan: PrivacyPlan, generator: np.random.Generator) -> Transcript:
    """What training would leave that does exactly what the plan says."""
    is_in = generator.random(200) < 0.5
    batches = generator.random((plan.total_spend.steps, is_in.sum())) < plan.sampling_rate
    sums = plan.noise_multiplier * generator.standard_normal((plan.total_spend.steps, 200))
    sums[:, is_in] += batches
    return Transcript(is_in=is_in, sums=sums, moved=sums.sum(axis=0), batches=batches)


@pytest.mark.slow
def test_chances_are_what_they_say() -> None:
    generator = np.random.default_rng(7)
    chances: dict[str, list[float]] = {}

    for _ in range(200):
        transcript = drawn_transcript(HALF_BATCHES, generator)
        checks: list[Check] = [_check_mu(transcript, HALF_BATCHES), *_check_noise(transcript, HALF_BATCHES)]
        for check in [*checks, *_check_batches(transcript, HALF_BATCHES)]:
            chances.setdefault(check.name, []).append(check.p_value)

    # A chance below 0.2 comes up 40 times in 200, deviation 5.7; 7 to 73 is within 5.8 deviations.
    assert len(chances) == 7
    assert all(7 <= sum(chance < 0.2 for chance in found) <= 73 for found in chances.values())


def test_a_measurement_that_is_no_number_contradicts() -> None:
    assert Check(name="mu", claimed=1.0, measured=math.nan, p_value=math.nan).contradicts


@pytest.mark.parametrize(("at_most", "steps_and_rounds"), [(40, (20, 2)), (39, (20, 1)), (20, (20, 1)), (7, (7, 1))])
def test_a_long_plan_is_shortened_to_whole_rounds_or_to_the_start_of_one(
    at_most: int, steps_and_rounds: tuple[int, int]
) -> None:
    shortened = shorten(HALF_BATCHES, at_most=at_most)

    assert (shortened.steps_per_round, shortened.num_rounds) == steps_and_rounds
    assert shortened.noise_multiplier == HALF_BATCHES.noise_multiplier
