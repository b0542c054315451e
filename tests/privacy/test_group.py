"""Epsilon of a patient with several records is a tight upper bound, for adding and removing alike.

Expected numbers come from Google's dp-accounting 0.6.0, a `MixtureOfGaussiansDpEvent` on a grid of 1e-3, where they
are upper bounds within 0.02 or so; the fast ones are computed again here as an independent second opinion.
"""

import math
import time

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import PRV_ERROR, Spend, compute_epsilon
from privacy.errors import PrivacySettingError
from privacy.group import LARGEST_RECORDS, RELATIVE_ERROR, compute_patient_epsilon

Triples = list[tuple[float, float, int]]
"""(noise multiplier, sampling rate, steps)."""


def history(triples: Triples) -> list[Spend]:
    return [Spend(noise_multiplier=noise, sampling_rate=rate, steps=steps) for noise, rate, steps in triples]


def second_opinion(triples: Triples, delta: float, records: int) -> float:
    """Epsilon by Google's privacy loss distributions, an upper bound that is close on this grid."""
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
    for noise, rate, steps in triples:
        chances = [math.comb(records, j) * rate**j * (1 - rate) ** (records - j) for j in range(records + 1)]
        step = dp_accounting.dp_event.MixtureOfGaussiansDpEvent(noise, range(records + 1), chances)
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


def exact_delta_of_gaussians(mu: float, epsilon: float) -> float:
    """Delta of Gaussians without sampling whose means lie mu standard deviations apart (arXiv 1805.06530, Theorem 8).

    delta = Phi(mu/2 - epsilon/mu) - e^epsilon * Phi(-mu/2 - epsilon/mu).
    """

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


def assert_just_above(reported: float, known: float) -> None:
    assert known <= reported <= known + 2.5 * max(PRV_ERROR, RELATIVE_ERROR * known)


@pytest.mark.parametrize(
    ("noise", "records", "known"),
    [(1.0, 2, 15.4637), (1.0, 4, 37.9474), (1.0, 8, 100.8302), (4.0, 2, 2.0775), (4.0, 8, 10.4812)],
)
def test_known_plans_cost_a_patient_what_is_known(noise: float, records: int, known: float) -> None:
    reported = compute_patient_epsilon(history([(noise, 0.05, 400)]), 1e-5, records_per_patient=records)

    assert_just_above(reported, known)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("triples", "delta", "records"),
    [
        ([(4.0, 0.05, 400)], 1e-5, 2),
        ([(10.0, 0.1, 50)], 1e-5, 2),
        ([(6.0, 0.05, 20000)], 1e-6, 2),
        ([(5.0, 0.25, 10)], 1e-10, 4),
        ([(4.0, 0.02, 200), (5.0, 0.05, 300)], 1e-5, 3),
    ],
)
def test_the_result_lies_just_above_the_second_opinion(triples: Triples, delta: float, records: int) -> None:
    reported = compute_patient_epsilon(history(triples), delta, records_per_patient=records)

    assert_just_above(reported, second_opinion(triples, delta, records))


@pytest.mark.parametrize(("noise", "steps", "records"), [(2.0, 3, 2), (10.0, 100, 3), (5.0, 4, 64)])
def test_without_sampling_the_result_lies_just_above_the_closed_form(noise: float, steps: int, records: int) -> None:
    epsilon = compute_patient_epsilon(history([(noise, 1.0, steps)]), 1e-5, records_per_patient=records)

    # All records are in every batch: a Gaussian whose mean moves by `records` clip norms.
    mu = records * math.sqrt(steps) / noise
    assert exact_delta_of_gaussians(mu, epsilon) <= 1e-5
    assert exact_delta_of_gaussians(mu, epsilon - 2.5 * max(PRV_ERROR, RELATIVE_ERROR * epsilon)) > 1e-5


def test_a_patient_with_one_record_costs_what_the_record_costs() -> None:
    spends = history([(1.0, 0.05, 400)])

    assert compute_patient_epsilon(spends, 1e-5, records_per_patient=1) == compute_epsilon(spends, 1e-5)


@pytest.mark.parametrize("records", [1, 2])
def test_no_steps_cost_nothing(records: int) -> None:
    assert compute_patient_epsilon([], 1e-5, records_per_patient=records) == 0.0
    assert compute_patient_epsilon(history([(1.0, 0.5, 0)]), 1e-5, records_per_patient=records) == 0.0


def test_order_and_splitting_do_not_matter() -> None:
    whole = history([(1.0, 0.01, 500), (0.8, 0.02, 200)])
    split = history([(0.8, 0.02, 150), (1.0, 0.01, 499), (0.8, 0.02, 50), (1.0, 0.01, 1)])

    ends = {compute_patient_epsilon(spends, 1e-5, records_per_patient=3) for spends in (whole, split)}

    assert len(ends) == 1


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(st.floats(1.0, 8.0), st.floats(0.01, 0.5), st.integers(1, 200), st.integers(2, 6))
def test_more_records_cost_more_and_never_less_than_one(noise: float, rate: float, steps: int, records: int) -> None:
    spends = history([(noise, rate, steps)])

    fewer, more = (compute_patient_epsilon(spends, 1e-5, records_per_patient=k) for k in (records, records + 2))

    assert compute_epsilon(spends, 1e-5) - 2 * PRV_ERROR <= fewer <= more + 2 * max(PRV_ERROR, RELATIVE_ERROR * more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("triple", "records", "seconds"),
    [((20.0, 0.02, 5000), 8, 2.0), ((4.0, 0.05, 400), 20, 2.0), ((4.0, 0.05, 400), LARGEST_RECORDS, 5.0)],
)
def test_the_answer_takes_seconds_of_one_core(triple: tuple[float, float, int], records: int, seconds: float) -> None:
    compute_epsilon(history([triple]), 1e-5)  # imports Opacus, once
    started = time.process_time()

    compute_patient_epsilon(history([triple]), 1.1e-5, records_per_patient=records)  # no other test's delta

    assert time.process_time() - started < seconds


@pytest.mark.parametrize("records", [0, -1, 1.5, True, LARGEST_RECORDS + 1])
def test_an_impossible_number_of_records_is_refused(records: int) -> None:
    with pytest.raises(PrivacySettingError, match=f"records_per_patient={records}; expected"):
        compute_patient_epsilon(history([(1.0, 0.05, 1)]), 1e-5, records_per_patient=records)


def test_a_delta_that_cannot_be_resolved_is_refused() -> None:
    with pytest.raises(PrivacySettingError, match="delta=1e-12; expected at least"):
        compute_patient_epsilon(history([(1.0, 0.05, 1)]), 1e-12, records_per_patient=2)
