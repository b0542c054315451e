"""A noised sum is one release of the Gaussian mechanism: clipped by unit, noised once, whole numbers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy import stats

from privacy import noised_sum
from privacy.errors import PrivacySettingError
from privacy.noised_sum import noise_scale, release_noised_sum
from privacy.plan import PrivacyPlan

PLAN = PrivacyPlan.calibrate(
    epsilon=2.0, delta=1e-3, clip_norm=1.0, sampling_rate=1.0, steps_per_round=1, num_rounds=4, nominal_units=100
)


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noised_sum, "secure_normal", np.zeros)


@pytest.mark.usefixtures("silence")
def test_without_its_noise_it_is_the_sum() -> None:
    rows = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])

    assert release_noised_sum(rows, PLAN).tolist() == [2, 0, 1]


@pytest.mark.usefixtures("silence")
def test_a_long_row_is_scaled_to_the_clip_norm_and_a_broken_one_counts_nothing() -> None:
    # (300, 400) has norm 500 and is scaled to (60, 80) at a clip norm of 100.
    rows = np.array([[300.0, 400.0], [np.nan, 50.0], [np.inf, 50.0], [0.0, 0.0]])

    assert release_noised_sum(rows, replace(PLAN, clip_norm=100.0)).tolist() == [60, 80]


def test_nobody_at_all_is_noise_alone() -> None:
    assert release_noised_sum(np.zeros((0, 5)), PLAN).shape == (5,)


@pytest.mark.usefixtures("silence")
@settings(max_examples=60, deadline=None)
@given(
    st_numpy.arrays(np.float64, (6, 3), elements=st.floats(-1e12, 1e12)),
    st.sampled_from([1e3, 1e5]),
)
def test_one_unit_more_moves_the_sum_by_the_clip_norm_at_most(rows: np.ndarray, clip_norm: float) -> None:
    plan = replace(PLAN, clip_norm=clip_norm)

    moved = release_noised_sum(rows, plan) - release_noised_sum(rows[1:], plan)

    # Rounding to whole numbers, after the noise in truth, can add up to 1 in each of 3 numbers here.
    assert np.linalg.norm(moved) <= clip_norm * (1 + 1e-9) + np.sqrt(3)


def test_the_noise_has_the_scale_that_the_plan_says() -> None:
    plan = replace(PLAN, clip_norm=20.0)

    released = release_noised_sum(np.zeros((1, 40_000)), plan)

    # Rounding adds a variance of 1/12. The ratio of variances is chi-square; one false alarm in a million.
    expected = noise_scale(plan) ** 2 + 1 / 12
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], 40_000) / 40_000
    assert low < released.var() / expected < high
    assert noise_scale(plan) == plan.noise_multiplier * 20.0


@pytest.mark.parametrize("plan", [replace(PLAN, sampling_rate=0.5), replace(PLAN, steps_per_round=2, num_rounds=2)])
def test_a_plan_for_something_else_is_refused(plan: PrivacyPlan) -> None:
    with pytest.raises(PrivacySettingError, match="expected 1 and 1"):
        release_noised_sum(np.zeros((1, 1)), plan)
