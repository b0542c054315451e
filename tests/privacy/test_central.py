"""A plan for whole hospitals: its noise covers the heaviest one, rounding included, and keeps its epsilon."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

import privacy.central as central
from privacy.central import NOISE_STEPS, CentralPlan
from privacy.discrete_noise import log_ratio_to_gaussian, share_std
from privacy.errors import PrivacySettingError

SETTINGS: dict[str, Any] = {
    "epsilon": 8.0,
    "delta": 1e-3,
    "clip_norm": 2.0,
    "declared": {"a": 300, "b": 100, "c": 100},
    "num_rounds": 20,
    "num_coordinates": 3,
}


def plan_with(**changes: Any) -> CentralPlan:
    return CentralPlan.calibrate(**{**SETTINGS, **changes})


def fields_of(plan: CentralPlan, **changes: Any) -> dict[str, Any]:
    names = ("epsilon", "delta", "clip_norm", "weights", "num_rounds", "num_coordinates", "noise_multiplier")
    return {name: getattr(plan, name) for name in names} | changes


@pytest.mark.parametrize(("epsilon", "known"), [(3.0, 4.64), (8.0, 2.15)])
def test_known_targets_give_their_known_noise(epsilon: float, known: float) -> None:
    # 20 Gaussians at delta 1e-3; calibrated elsewhere by Google's accountant.
    assert plan_with(epsilon=epsilon).noise_multiplier == pytest.approx(known, abs=0.005)


def test_the_epsilon_is_that_of_the_second_opinion() -> None:
    plan = plan_with(epsilon=3.0)
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)

    accountant.compose(dp_accounting.GaussianDpEvent(plan.noise_multiplier), 20)

    assert plan.epsilon_after(20) == pytest.approx(accountant.get_epsilon(1e-3), abs=2e-3)
    assert plan.epsilon_after(20) <= 3.0


@pytest.mark.parametrize(("std", "sensitivity"), [(2, 1), (3, 2), (8, 16)])
def test_the_charge_covers_the_exact_discrete_gaussian(std: int, sensitivity: int) -> None:
    exact = from_discrete_gaussian_mechanism(std, sensitivity=sensitivity, value_discretization_interval=1e-4)

    charged = central._epsilon(sensitivity / std, 1e-4, log_ratio_to_gaussian(std))

    assert exact.get_epsilon_for_delta(1e-4) <= charged + 2e-4


def exact_pmf(std: int, reach: int) -> NDArray[np.float64]:
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * std**2))
    pmf: NDArray[np.float64] = weights / weights.sum()
    return pmf


@pytest.mark.parametrize(("share", "num_shares", "sensitivity"), [(1, 4, 1), (2, 3, 2), (2, 9, 5)])
def test_the_charge_for_shares_covers_the_delta_of_their_exact_sum(
    share: int, num_shares: int, sensitivity: int
) -> None:
    pmf = exact_pmf(share, 40 * share)
    total = pmf
    for _ in range(num_shares - 1):
        total = np.convolve(total, pmf)
    std = math.isqrt(num_shares * share**2)  # rounded down: the sum has at least this much noise

    epsilon = central._epsilon(sensitivity / std, 1e-4, log_ratio_to_gaussian(std, num_shares=num_shares))

    moved, still = np.pad(total, (sensitivity, 0)), np.pad(total, (0, sensitivity))
    assert np.maximum(moved - math.exp(epsilon) * still, 0).sum() <= 1e-4


@pytest.mark.parametrize("num_shares", [2, 10, 1000])
def test_shares_cost_no_more_than_whole_noise_on_this_grid(num_shares: int) -> None:
    plan = plan_with()

    assert plan.epsilon_after(20, num_shares=num_shares) == pytest.approx(plan.epsilon_after(20), abs=1e-9)
    assert num_shares * share_std(NOISE_STEPS, num_shares) ** 2 >= NOISE_STEPS**2


def test_no_rounds_cost_nothing_and_more_rounds_cost_more() -> None:
    plan = plan_with()

    spent = [plan.epsilon_after(rounds) for rounds in (0, 1, 2, 19, 20, 21)]

    assert spent[0] == pytest.approx(0.0, abs=1e-12)
    assert spent == sorted(set(spent))
    assert spent[4] <= 8.0 < spent[5]


def test_weights_are_shares_of_all_expected_hospitals() -> None:
    plan = plan_with()

    assert dict(plan.weights) == {"a": 0.6, "b": 0.2, "c": 0.2}
    # std = noise multiplier * (clip norm 2 * largest weight 0.6 + half a step of rounding at each of 3 coordinates)
    rounding = math.sqrt(3) / 2 * plan.step
    assert plan.noise_std == pytest.approx(plan.noise_multiplier * (2.0 * 0.6 + rounding), rel=1e-12)
    assert plan.noise_std == pytest.approx(plan.sensitivity_steps * plan.noise_multiplier * plan.step, rel=1e-12)


@settings(deadline=None)
@given(
    update=npst.arrays(
        np.float64,
        st.integers(1, 40),
        elements=st.floats(-1e300, 1e300) | st.floats(-3, 3) | st.sampled_from([0.0, 5e-324, -1e-160, 1e-6, 1e160]),
    ),
    clip_norm=st.sampled_from([1e-6, 0.3, 2.0, 1e6]),
    epsilon=st.sampled_from([0.1, 8.0, 1000.0]),
    site=st.sampled_from("ab"),
)
def test_no_update_moves_the_sum_by_more_than_the_noise_is_made_for(
    update: NDArray[np.float64], clip_norm: float, epsilon: float, site: str
) -> None:
    plan = plan_with(clip_norm=clip_norm, epsilon=epsilon, num_coordinates=len(update))

    steps = plan.quantise(site, update)

    # In exact arithmetic; removing the hospital removes just this from the sum.
    assert sum(Fraction(int(step)) ** 2 for step in steps) <= Fraction(plan.sensitivity_steps) ** 2


def test_rounding_makes_contributions_longer_and_the_noise_covers_that() -> None:
    longest = 0.0
    for size in range(1000, 1020):
        plan = plan_with(num_coordinates=size)

        norm = float(np.linalg.norm(plan.quantise("a", np.ones(size))))  # every coordinate rounds the same way

        assert norm <= plan.sensitivity_steps
        longest = max(longest, norm - 2.0 * 0.6 / plan.step)
    assert longest > 0.4 * math.sqrt(1000)  # steps more than the clipped and weighted update had


@settings(deadline=None)
@given(npst.arrays(np.float64, 3, elements=st.floats(-1.1, 1.1)))
def test_an_update_inside_the_bound_comes_back_weighted_up_to_half_a_step(update: NDArray[np.float64]) -> None:
    plan = plan_with()

    restored = plan.restore(plan.quantise("b", update))

    assert np.abs(restored - 0.2 * update).max() <= plan.step / 2 + 1e-8


def test_an_update_outside_the_bound_is_scaled_onto_it() -> None:
    plan = plan_with()

    restored = plan.restore(plan.quantise("a", np.array([30.0, 0.0, -40.0])))

    # The norm is 50, so it shrinks to 2 / 50: (1.2, 0, -1.6), of which a's weight leaves 0.6.
    assert restored == pytest.approx([0.72, 0.0, -0.96], abs=1e-6)


@pytest.mark.parametrize(
    ("site", "update", "message"),
    [
        ("d", [1.0, 2.0, 3.0], r"site='d'; expected one of \['a', 'b', 'c'\]"),
        ("a", [1.0, 2.0], r"update of shape \(2,\); expected 3 finite numbers"),
        ("a", [1.0, 2.0, math.nan], "expected 3 finite numbers"),
        ("a", [1.0, 2.0, math.inf], "expected 3 finite numbers"),
    ],
)
def test_an_update_without_a_weight_or_a_number_is_refused(site: str, update: list[float], message: str) -> None:
    with pytest.raises(PrivacySettingError, match=message):
        plan_with().quantise(site, np.array(update))


@pytest.mark.parametrize(
    ("draw", "std"),
    [(CentralPlan.draw_noise, 1.0), (lambda plan: plan.draw_noise_share(4), 0.5)],
)
def test_noise_has_the_planned_size(draw: Callable[[CentralPlan], NDArray[np.int64]], std: float) -> None:
    plan = plan_with(num_coordinates=100_000)

    noise = plan.restore(draw(plan)) / plan.noise_std

    # Six standard errors, a chance of 2e-9.
    assert noise.std() == pytest.approx(std, rel=6 / math.sqrt(2 * 100_000))


@pytest.mark.slow
def test_a_million_coordinates_take_seconds() -> None:
    plan = plan_with(num_coordinates=1_000_000)

    assert len(plan.draw_noise()) == 1_000_000
    assert plan.noise_std / (plan.noise_multiplier * 1.2) < 1.001  # what rounding adds to the noise


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0; expected more than 0"),
        ({"epsilon": 1e-13}, "epsilon=1e-13; expected more than"),
        ({"delta": 0.0}, "delta=0.0; expected at least"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0; expected at least"),
        ({"declared": {}}, "expected one for every hospital"),
        ({"declared": {"a": 0.0}}, "weight of a=0.0; expected more than 0"),
        ({"declared": {"a": math.nan}}, "weight of a=nan; expected a finite number"),
        ({"declared": {" ": 1.0}}, "site=' '; expected a name"),
        ({"num_rounds": 0}, "num_rounds=0; expected at least 1"),
        ({"num_coordinates": 0}, "num_coordinates=0; expected at least 1"),
        ({"num_coordinates": 2 * 10**9}, "num_coordinates=2000000000; expected at most"),
        (
            {"num_coordinates": 10**9, "num_rounds": 1, "epsilon": 0.02, "delta": 1e-10},
            "rounding would cost half of the noise",
        ),
    ],
)
def test_impossible_numbers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PrivacySettingError, match=message):
        plan_with(**changes)


def test_a_plan_with_too_little_noise_cannot_be_built() -> None:
    plan = plan_with()

    with pytest.raises(PrivacySettingError, match=r"20 rounds with it reach epsilon 8\.\d+; expected at most 8.0"):
        CentralPlan(**fields_of(plan, noise_multiplier=plan.noise_multiplier * 0.99))


def test_weights_beyond_a_whole_are_refused() -> None:
    with pytest.raises(PrivacySettingError, match=r"weights add up to 1\.5; expected 1"):
        CentralPlan(**fields_of(plan_with(), weights={"a": 0.75, "b": 0.75}))


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        plan_with().weights["a"] = 0.1  # type: ignore[index]


def test_the_smallest_delta_of_a_plan_is_still_resolved() -> None:
    assert plan_with(delta=1e-10).epsilon_after(20) <= 8.0
