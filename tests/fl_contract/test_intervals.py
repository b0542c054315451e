"""Intervals are those of their formulas, stay inside the figure's range, and say when nothing is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fl_contract.metrics.intervals import UNKNOWN, Z, around, widen, wilson


@given(st.integers(1, 500), st.data())
def test_shares_have_wilsons_interval(total: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, total))

    expected = binomtest(successes, total).proportion_ci(0.95, method="wilson")

    assert wilson(successes, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_share_of_nobody_is_unknown() -> None:
    assert all(map(math.isnan, wilson(0, 0)))


@given(st.floats(0.001, 0.999), st.floats(1e-4, 10), st.sampled_from([1.0, 2.0, math.inf]))
def test_an_interval_holds_its_figure_and_stays_in_the_range(value: float, error: float, most: float) -> None:
    low, high = around(value, error, most=most)

    assert 0 <= low < value < high <= most


def test_a_small_error_gives_the_normal_interval() -> None:
    for most in (1.0, math.inf):
        assert around(0.4, 1e-6, most=most) == pytest.approx((0.4 - Z * 1e-6, 0.4 + Z * 1e-6), abs=1e-10)


@pytest.mark.parametrize(("value", "error"), [(0.0, 0.1), (1.0, 0.1), (0.5, 0.0), (0.5, math.nan), (math.nan, 0.1)])
def test_without_a_spread_nothing_is_known(value: float, error: float) -> None:
    assert all(map(math.isnan, around(value, error)))


def test_noise_widens_and_keeps_the_range() -> None:
    assert widen((0.4, 0.6), 0.5, 0.0) == pytest.approx((0.4, 0.6))
    assert widen((0.4, 0.6), 0.5, 9.0) == (0.0, 1.0)
    assert widen((0.4, 0.6), 0.5, 9.0, most=2.0) == (0.0, 2.0)
    assert all(map(math.isnan, widen(UNKNOWN, 0.5, 0.1)))
