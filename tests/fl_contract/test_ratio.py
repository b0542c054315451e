"""A ratio of sums over patients merges exactly, and its interval holds the truth as often as it says."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_contract.metrics.ratio import RatioSums

PATIENTS = st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 5)), min_size=3, max_size=12)


def sums_of(patients: list[tuple[float, float]]) -> RatioSums:
    a, b = np.array(patients).T
    return RatioSums.of(a, b)


def test_a_ratio_and_its_error_by_hand() -> None:
    sums = RatioSums.of(np.array([1.0, 3.0]), np.array([2.0, 2.0]))

    # R = 4 / 4 = 1; a - R b is -1 and 1; h = 8 / 16: the root of 2 / (1 - 1/2), over 4.
    assert sums.to_list() == [4.0, 4.0, 10.0, 8.0, 8.0]
    assert sums.ratio == 1.0
    assert sums.standard_error() == pytest.approx(0.5, abs=1e-15)
    assert sums.standard_error(order=2) == pytest.approx(1.0, abs=1e-15)


def test_a_mean_has_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(0).exponential(size=50)

    sums = RatioSums.of(values, np.ones(50))

    assert sums.ratio == pytest.approx(values.mean(), abs=1e-12)
    assert sums.standard_error() == pytest.approx(values.std(ddof=1) / math.sqrt(50), abs=1e-12)


@given(PATIENTS)
def test_hospitals_are_merged_to_the_bit_in_any_order(patients: list[tuple[float, float]]) -> None:
    parts = [sums_of(patients[:1]), sums_of(patients[1:2]), sums_of(patients[2:])]

    merged = {RatioSums.merge(order) for order in itertools.permutations(parts)}

    assert len(merged) == 1
    assert merged.pop().to_list() == pytest.approx(sums_of(patients).to_list(), rel=1e-12, abs=1e-12)


def test_sums_survive_their_list() -> None:
    sums = sums_of([(1.0, 2.0), (-0.5, 3.0), (0.1, 0.0)])

    assert RatioSums.from_list(sums.to_list()) == sums


@pytest.mark.parametrize(
    ("sums", "rule"),
    [
        ([1.0, 2.0], "2 sums of a ratio; expected 5"),
        ([1.0, 2.0, math.nan, 1.0, 1.0], "NaN or infinite"),
        ([1.0, 2.0, 1.0, 1.0, math.inf], "NaN or infinite"),
        ([1.0, 2.0, -1.0, 0.0, 1.0], "contradict one another"),
        ([1.0, 2.0, 1.0, 2.1, 4.0], "contradict one another"),  # 2.1^2 is above 1 * 4
    ],
)
def test_sums_that_no_patients_have_are_refused(sums: list[float], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        RatioSums.from_list(sums)


@pytest.mark.parametrize(
    ("patients", "ratio"), [([(0.0, 0.0)], math.nan), ([(0.0, 1.0)], 0.0), ([(1.0, 1.0), (1.0, 1.0)], 1.0)]
)
def test_a_ratio_that_shows_no_spread_has_no_interval(patients: list[tuple[float, float]], ratio: float) -> None:
    sums = sums_of(patients)

    assert sums.ratio == ratio or math.isnan(ratio)
    assert all(map(math.isnan, sums.interval()))


@pytest.mark.slow
@pytest.mark.parametrize("num_patients", [60, 300])
def test_intervals_of_a_ratio_hold_the_truth_19_times_in_20(num_patients: int) -> None:
    # Overlap over size, as in a Dice score: sizes from 1, each patient's share Beta(6, 2), so the truth is 3/4 for all.
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(2000):
        sizes = 1 + generator.exponential(3, num_patients)
        low, high = RatioSums.of(sizes * generator.beta(6, 2, num_patients), sizes).interval()
        held += low <= 0.75 <= high

    # 2,000 draws of a 95 % chance have a standard error of 0.5 points; 30 such patients are held in 91.8 %.
    assert 0.92 <= held / 2000 <= 0.98


@pytest.mark.slow
def test_intervals_of_a_mean_without_an_upper_end_hold_the_truth() -> None:
    generator = np.random.default_rng(6)
    held = 0
    for _ in range(2000):
        low, high = RatioSums.of(generator.exponential(size=60), np.ones(60)).interval(most=math.inf)
        held += low <= 1.0 <= high

    assert 0.92 <= held / 2000 <= 0.98
