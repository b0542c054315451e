"""Impossible counts become the nearest possible ones with the right total."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from fl_contract.simplex import apportion


@pytest.mark.parametrize(
    ("values", "total", "expected"),
    [
        ([3, 0, 2], 5, [3, 0, 2]),
        ([5, -2, 1], 4, [4, 0, 0]),
        ([4, 4, 0], 6, [3, 3, 0]),  # 1 is taken off each
        ([0, 0], 4, [2, 2]),
        ([1, 1, 1], 4, [2, 1, 1]),  # a third each; the first of equals gets the rest
        ([-5, -9], 1, [1, 0]),
        ([7], 3, [3]),
        ([2, 1], 0, [0, 0]),
    ],
)
def test_counts_worked_out_by_hand(values: list[int], total: int, expected: list[int]) -> None:
    assert apportion(np.array(values), total).tolist() == expected


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=40), st.integers(0, 3000))
def test_the_result_is_possible_and_has_the_total(values: list[int], total: int) -> None:
    counts = apportion(np.array(values), total)

    assert counts.sum() == total
    assert (counts >= 0).all()


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40))
def test_possible_counts_are_left_alone(values: list[int]) -> None:
    assert apportion(np.array(values), sum(values)).tolist() == values


def test_it_is_as_near_as_an_optimiser_gets() -> None:
    values = np.array([13, -4, 6, 2, -1, 9])
    constraint = {"type": "eq", "fun": lambda x: x.sum() - 20}

    nearest = minimize(
        lambda x: ((x - values) ** 2).sum(), np.full(6, 20 / 6), bounds=[(0, None)] * 6, constraints=[constraint]
    )

    assert np.abs(apportion(values, 20) - nearest.x).max() < 1  # rounding to whole numbers
