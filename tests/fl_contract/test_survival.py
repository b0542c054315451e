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
from fl_contract.metrics.histogram import ScoreHistogram
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

    pairs = PairCounts.of(risks_of(patients).numpy(), outcomes_of(patients).numpy())

    assert [pairs.concordant, pairs.tied, pairs.comparable] == expected


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
    counts = np.zeros((1, 2, 64), dtype=np.int64)
    classes = Evaluation(num_examples=1, loss_sum=0.0, num_correct=0, scores=ScoreHistogram(counts=counts))

    with pytest.raises(ValueError, match="are of 2 kinds"):
        merge_measurements([measured(1, 5), classes])
