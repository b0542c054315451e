"""Cox's loss and the C-index are those of their definitions, also with ties and censoring."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schemas import SURVIVAL

from fl_contract.metrics import measurement_from_json, merge_measurements
from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.ratio import RatioSums
from fl_contract.metrics.survival import PairCounts, SurvivalEvaluation
from fl_contract.tasks.survival import cox_losses

PATIENTS = st.lists(
    st.tuples(st.floats(-3, 3), st.integers(0, 4), st.booleans()), min_size=1, max_size=12
)  # risk, time, event; few times, so many ties


def outcomes_of(patients: Sequence[tuple[float, int, bool]]) -> torch.Tensor:
    return torch.tensor([[time, event] for _, time, event in patients], dtype=torch.float64)


def risks_of(patients: Sequence[tuple[float, int, bool]]) -> torch.Tensor:
    return torch.tensor([risk for risk, _, _ in patients], dtype=torch.float64)


@given(patients=PATIENTS)
def test_the_loss_is_breslows_partial_likelihood(patients: list[tuple[float, int, bool]]) -> None:
    expected = []
    for risk, time, event in patients:
        at_risk = sum(math.exp(other) for other, still, _ in patients if still >= time)
        expected.append(math.log(at_risk) - risk if event else 0.0)

    losses = cox_losses(risks_of(patients), outcomes_of(patients))

    assert losses.numpy() == pytest.approx(expected, abs=1e-9)
    num_events = sum(event for *_, event in patients)
    assert float(SURVIVAL.batch_loss(risks_of(patients).unsqueeze(1), outcomes_of(patients))) == pytest.approx(
        sum(expected) / max(num_events, 1)
    )


def test_a_batch_without_an_event_has_no_gradient() -> None:
    risks = torch.tensor([0.5, -1.0], requires_grad=True)

    SURVIVAL.batch_loss(risks.unsqueeze(1), torch.tensor([[3.0, 0.0], [5.0, 0.0]])).backward()

    assert risks.grad is not None
    assert torch.equal(risks.grad, torch.zeros(2))


@given(patients=PATIENTS)
def test_pairs_are_those_of_the_definition(patients: list[tuple[float, int, bool]]) -> None:
    expected = [0, 0, 0]
    for risk, time, event in patients:
        for other, later, other_event in patients:
            if event and (later > time or (later == time and not other_event)):
                expected = [expected[0] + (risk > other), expected[1] + (risk == other), expected[2] + 1]

    pairs, sums = PairCounts.of(risks_of(patients).numpy(), outcomes_of(patients).numpy())

    assert [pairs.concordant, pairs.tied, pairs.comparable] == expected
    assert (sums.numerator, sums.denominator) == (2 * pairs.concordant + pairs.tied, 2 * pairs.comparable)


@pytest.mark.parametrize(
    ("concordant", "tied", "comparable", "expected"), [(3, 0, 4, 0.75), (0, 2, 4, 0.25), (4, 0, 4, 1.0)]
)
def test_the_c_index_counts_ties_half(concordant: int, tied: int, comparable: int, expected: float) -> None:
    assert PairCounts(concordant=concordant, tied=tied, comparable=comparable).c_index == expected


def test_without_a_pair_there_is_no_c_index() -> None:
    assert math.isnan(PairCounts(concordant=0, tied=0, comparable=0).c_index)


@pytest.mark.parametrize("counts", [(-1, 0, 4), (0, -1, 4), (3, 2, 4)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="pairs; expected counts"):
        PairCounts(concordant=counts[0], tied=counts[1], comparable=counts[2])


def measured(seed: int, num_patients: int) -> SurvivalEvaluation:
    generator = torch.Generator().manual_seed(seed)
    outcomes = torch.stack([torch.rand(num_patients, generator=generator), torch.ones(num_patients)], dim=1)
    evaluation = SURVIVAL.measure(torch.randn(num_patients, 1, generator=generator), outcomes)
    assert isinstance(evaluation, SurvivalEvaluation)
    return evaluation


def test_hospitals_are_merged_pair_by_pair_in_any_order() -> None:
    parts = [measured(1, 5), measured(2, 9), measured(3, 2)]

    merged, backwards = merge_measurements(parts), merge_measurements(parts[::-1])

    assert merged == backwards
    assert isinstance(merged, SurvivalEvaluation)
    assert merged.num_examples == 16
    assert merged.pairs.comparable == 10 + 36 + 1  # all events, no tie: every pair of a hospital, none across
    assert merged.figures() == {"c_index": sum(part.pairs.concordant for part in parts) / 47}


def test_a_measurement_survives_its_file() -> None:
    sent = measured(1, 5)

    assert measurement_from_json(sent.to_json()) == sent


def test_survival_is_not_merged_with_classes() -> None:
    classes = Evaluation.of(np.zeros((1, 1)), np.zeros(1, dtype=np.int64), loss_sum=0.0)

    with pytest.raises(ValueError, match="are of 2 kinds"):
        merge_measurements([measured(1, 5), classes])


def test_each_patients_pairs_are_summed_with_their_squares() -> None:
    # Events at 1, 2 and 3 with risks 5, 5 and 1: the first two are tied, both are above the third, all are comparable.
    outcomes = np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])

    pairs, sums = PairCounts.of(np.array([5.0, 5.0, 1.0]), outcomes)

    assert (pairs.concordant, pairs.tied, pairs.comparable) == (2, 1, 3)
    # Concordant and half the tied: 1.5, 1.5 and 2 of 2 pairs each.
    assert sums == RatioSums.of(np.array([1.5, 1.5, 2.0]), np.array([2.0, 2.0, 2.0]))


@pytest.mark.parametrize(
    ("position", "change", "rule"),
    [
        (0, 1.0, "pair-sums contradict concordant, tied and comparable"),
        (1, -1.0, "pair-sums contradict concordant, tied and comparable"),
        (2, 1000.0, "pair-sums are out of range"),
        (4, 1000.0, "pair-sums are out of range"),
        (4, -1000.0, "sums of squares and products contradict one another"),
    ],
)
def test_sums_of_pairs_that_contradict_the_pairs_are_refused(position: int, change: float, rule: str) -> None:
    numbers = measured(1, 5).to_json()
    numbers["pair-sums"][position] += change

    with pytest.raises(ValueError, match=rule):
        measurement_from_json(numbers)


@pytest.mark.parametrize("sums", [None, [1.0, 2.0], [1, 2, 3, 4, 5], [math.nan] * 5])
def test_sums_of_pairs_of_another_form_are_refused(sums: object) -> None:
    with pytest.raises(ValueError, match=r"pair-sums(=None; expected list| holds)|2 sums of a ratio"):
        measurement_from_json({**measured(1, 5).to_json(), "pair-sums": sums})


@pytest.mark.slow
@pytest.mark.parametrize("num_patients", [40, 100])
def test_intervals_of_the_c_index_hold_the_truth_19_times_in_20(num_patients: int) -> None:
    # Times are exponential with the hazard e^x, x normal, and a third is censored. Two hospitals, pairs within each.
    generator = np.random.default_rng(8)
    drawn = [merge_measurements(drawn_hospital(num_patients, generator) for _ in range(2)) for _ in range(400)]
    truth = merge_measurements(drawn).figures()["c_index"]  # of 400 times as many patients, its error is a 20th

    held = sum(low <= truth <= high for low, high in (each.intervals()["c_index"] for each in drawn))

    # 400 draws of a 95 % chance have a standard error of 1.1 points.
    assert 0.92 <= held / 400 <= 0.98


def drawn_hospital(num_patients: int, generator: np.random.Generator) -> SurvivalEvaluation:
    risks = generator.normal(size=num_patients)
    times = generator.exponential(np.exp(-risks))
    censored = generator.random(num_patients) < 0.3
    outcomes = np.stack([times * np.where(censored, generator.random(num_patients), 1.0), 1.0 - censored], axis=1)
    pairs, sums = PairCounts.of(risks, outcomes)
    return SurvivalEvaluation(num_examples=num_patients, loss_sum=0.0, pairs=pairs, pairs_of_patients=sums)
