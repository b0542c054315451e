"""Membership attacks convict an overfitted model and not a private one."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn import functional

from privacy.dp_sgd import train_privately
from privacy.errors import PrivacySettingError
from privacy.membership import (
    Scores,
    confidence_logits,
    likelihood_ratios,
    measure_attack,
    train_shadows,
)
from privacy.plan import PrivacyPlan
from privacy.units import Units

NUM_MISLABELLED = 100


def test_the_area_is_the_share_of_pairs_in_order_with_ties_half() -> None:
    # Pairs (3, 2), (3, 1), (2, 1) are in order, (2, 2) is a tie: 3.5 of 4.
    result = measure_attack(np.array([3.0, 2.0]), np.array([2.0, 1.0]), delta=0.0)

    assert result.auc == 0.875
    assert result.auc_interval[0] < 0.875 < result.auc_interval[1] <= 1.0


@pytest.mark.slow
def test_the_interval_of_the_area_covers_it_as_often_as_it_says() -> None:
    # Normal scores one deviation apart: the area is Phi(1 / sqrt(2)) = 0.7602.
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        members, others = 1 + generator.standard_normal(60), generator.standard_normal(40)
        low, high = measure_attack(members, others, delta=0.0, confidence=0.9).auc_interval
        covered += low <= 0.7602 <= high

    # 360 expected, deviation 6; 330 to 390 is five deviations.
    assert 330 <= covered <= 390


def test_the_threshold_lets_at_most_one_in_a_hundred_others_through() -> None:
    others = np.arange(300.0)
    members = np.array([295.0, 296.0, 297.0, 400.0])  # three others, 297 to 299, may lie above the threshold: 296

    result = measure_attack(members, others, delta=0.0)

    assert result.false_positive_rate == 0.01
    assert result.true_positive_rate == 0.5
    assert (result.num_members, result.num_others) == (4, 300)


def test_with_few_others_none_may_be_accused() -> None:
    result = measure_attack(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0]), delta=0.0)

    assert result.false_positive_rate == 0.0
    assert result.true_positive_rate == pytest.approx(1 / 3)


def test_blind_scores_show_no_epsilon_in_99_of_100_cases_and_perfect_ones_do() -> None:
    generator = np.random.default_rng(4)
    blind = [
        measure_attack(generator.random(200), generator.random(200), delta=0.0, confidence=0.99).epsilon_lower_bound
        for _ in range(100)
    ]

    perfect = measure_attack(1 + generator.random(200), generator.random(200), delta=0.0)

    assert sum(bound > 0 for bound in blind) <= 5
    # 200 of 200 members: missed are at most 1 - 0.025^(1/200) = 0.0183. Of the others 2 may be accused: at most 0.0357.
    # ln((1 - 0.0357) / 0.0183) = 3.96.
    assert perfect.epsilon_lower_bound == pytest.approx(3.96, abs=0.01)


@pytest.mark.parametrize("scores", [[1.0], [1.0, math.nan], [1.0, math.inf]])
def test_scores_that_are_too_few_or_no_numbers_are_refused(scores: list[float]) -> None:
    with pytest.raises(PrivacySettingError, match="members"):
        measure_attack(np.array(scores), np.zeros(2), delta=0.0)


def test_a_loss_of_nothing_is_a_finite_confidence() -> None:
    # p = 1/2 has log-odds 0; p = 1 - 1e-15 has about 34.5.
    assert confidence_logits(np.array([math.log(2), 0.0])) == pytest.approx([0.0, 34.54], abs=0.01)


def test_shadow_halves_come_in_pairs_and_are_reported() -> None:
    trained_on: list[NDArray[np.int64]] = []
    reported: list[None] = []

    def train_and_measure(rows: NDArray[np.int64]) -> Scores:
        trained_on.append(rows)
        return np.full(7, float(len(rows)))

    confidences, is_in = train_shadows(
        train_and_measure,
        7,
        num_shadows=4,
        generator=np.random.default_rng(0),
        on_shadow=lambda: reported.append(None),
    )

    assert [row.tolist() for row in confidences] == [[3.0] * 7, [4.0] * 7] * 2
    assert all(np.array_equal(np.flatnonzero(row), rows) for row, rows in zip(is_in, trained_on, strict=True))
    assert is_in.sum(axis=0).tolist() == [2] * 7
    assert len(reported) == 4


@pytest.mark.parametrize(("num_shadows", "rule"), [(3, "expected at least 4"), (5, "expected an even number")])
def test_too_few_shadows_or_an_odd_number_are_refused(num_shadows: int, rule: str) -> None:
    with pytest.raises(PrivacySettingError, match=rule):
        train_shadows(lambda rows: np.zeros(2), 2, num_shadows=num_shadows, generator=np.random.default_rng(0))


def test_a_likelihood_ratio_is_that_of_two_normal_densities() -> None:
    # Shadows with the record: 3 and 5, mean 4, variance 1; without: -1 and 1, mean 0, variance 1. At 3 the
    # logarithms of the densities are -1/2 and -9/2, at 2 they are equal.
    shadows = np.array([[3.0, 3.0], [5.0, 5.0], [-1.0, -1.0], [1.0, 1.0]])
    is_in = np.array([[True, True], [True, True], [False, False], [False, False]])

    scores = likelihood_ratios(np.array([3.0, 2.0]), shadows, is_in)

    assert scores == pytest.approx([4.0, 0.0], abs=1e-6)


# --- real records ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Breast-cancer records, 100 of them mislabelled, of which an attacked model sees a random half."""

    inputs: Tensor
    labels: Tensor
    is_mislabelled: NDArray[np.bool_]
    is_member: NDArray[np.bool_]


def draw_pool(generator: np.random.Generator) -> Pool:
    data = load_breast_cancer()
    inputs = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    is_mislabelled, is_member = (
        np.isin(np.arange(569), generator.permutation(569)[:n]) for n in (NUM_MISLABELLED, 284)
    )
    return Pool(
        inputs=torch.from_numpy(inputs).float(),
        labels=torch.from_numpy(data.target ^ is_mislabelled).float(),
        is_mislabelled=is_mislabelled,
        is_member=is_member,
    )


def losses(outputs: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs.squeeze(-1), labels, reduction="none")


def confidences(model: nn.Module, pool: Pool) -> Scores:
    with torch.no_grad():
        return confidence_logits(losses(model(pool.inputs).double(), pool.labels.double()).numpy())


def build_mlp() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 1))


def overfit(pool: Pool, rows: NDArray[np.int64]) -> Scores:
    model, chosen = build_mlp(), torch.from_numpy(rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        losses(model(pool.inputs[chosen]), pool.labels[chosen]).mean().backward()
        optimizer.step()
    return confidences(model, pool)


def train_with_epsilon_three(pool: Pool, rows: NDArray[np.int64]) -> Scores:
    model, chosen = build_mlp(), torch.from_numpy(rows)
    plan = PrivacyPlan.calibrate(
        epsilon=3.0,
        delta=1e-3,
        clip_norm=1.0,
        sampling_rate=0.25,
        steps_per_round=60,
        num_rounds=1,
        nominal_units=280,
    )

    def fetch(indices: Tensor) -> tuple[Tensor, Tensor]:
        return pool.inputs[chosen[indices]], pool.labels[chosen[indices]]

    train_privately(model, torch.optim.SGD(model.parameters(), lr=2.0), plan, Units.records(len(rows)), fetch, losses)
    return confidences(model, pool)


def attack(
    train: Callable[[Pool, NDArray[np.int64]], Scores], seed: int, *, num_shadows: int = 0
) -> tuple[float, float]:
    """Areas under the curve, of all records and of the mislabelled ones: by the loss, or by likelihood ratios."""
    generator = np.random.default_rng(seed)
    pool = draw_pool(generator)
    scores = train(pool, np.flatnonzero(pool.is_member))
    if num_shadows:
        shadows, is_in = train_shadows(
            lambda rows: train(pool, rows), 569, num_shadows=num_shadows, generator=generator
        )
        scores = likelihood_ratios(scores, shadows, is_in)
    everyone, some = (
        measure_attack(scores[pool.is_member & group], scores[~pool.is_member & group], delta=1e-3)
        for group in (np.ones(569, dtype=np.bool_), pool.is_mislabelled)
    )
    return everyone.auc, some.auc


@pytest.mark.slow
def test_the_loss_of_an_overfitted_model_betrays_mislabelled_patients() -> None:
    everyone, mislabelled = attack(overfit, seed=1)

    # In 30 runs: at least 0.62 and 0.91.
    assert everyone > 0.6
    assert mislabelled > 0.85


@pytest.mark.slow
def test_likelihood_ratios_find_more_patients_of_an_overfitted_model_than_the_loss() -> None:
    by_loss, _ = attack(overfit, seed=1)
    by_ratio, mislabelled = attack(overfit, seed=1, num_shadows=8)

    assert by_ratio > by_loss
    assert mislabelled > 0.85


@pytest.mark.slow
def test_the_loss_of_a_private_model_betrays_hardly_anybody() -> None:
    everyone, mislabelled = attack(train_with_epsilon_three, seed=1)

    # In 30 runs: 0.53 with deviation 0.027, and 0.59 with deviation 0.054; both limits are 4.4 deviations away or more.
    assert everyone < 0.65
    assert mislabelled < 0.85
