"""Noise on whole numbers follows the exact discrete Gaussian, and shares of it add up to what is charged.

Draws cannot be seeded, so statistical tests have an error rate: each is stated, and all together fail by chance less
than once in 100,000 runs.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import privacy.discrete_noise as discrete_noise
from privacy.discrete_noise import (
    LARGEST_MULTIPLE,
    LARGEST_STD,
    draw_discrete_gaussian,
    log_ratio_to_gaussian,
    share_std,
)
from privacy.errors import PrivacySettingError

COUNT = 200_000


def exact_pmf(std: int, reach: int) -> NDArray[np.float64]:
    """Probability of each whole number from -reach to reach."""
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * std**2))
    pmf: NDArray[np.float64] = weights / weights.sum()
    return pmf


def chi_square_limit(degrees: int) -> float:
    """Exceeded with a chance of about 1e-7 (Wilson and Hilferty's cube of a normal at 5.2 standard deviations)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 5.2 * math.sqrt(spread)) ** 3


@pytest.mark.parametrize("std", [1, 2, 7, 30])
def test_draws_follow_the_exact_probabilities(std: int) -> None:
    reach = 4 * std
    expected = COUNT * exact_pmf(std, 40 * std)[36 * std : 44 * std + 1]  # of -reach to reach
    ends = COUNT - expected.sum()

    draws = draw_discrete_gaussian(std, COUNT)

    inside = draws[np.abs(draws) <= reach]
    counts = np.bincount(inside + reach, minlength=2 * reach + 1)
    statistic = ((counts - expected) ** 2 / expected).sum() + (COUNT - len(inside) - ends) ** 2 / ends
    assert statistic < chi_square_limit(2 * reach + 1)


@pytest.mark.parametrize("std", [3, 1000, 2**22, LARGEST_STD])
def test_mean_variance_and_fourth_moment_are_those_of_the_noise(std: int) -> None:
    draws = draw_discrete_gaussian(std, COUNT) / std

    # Six standard errors, a chance of 2e-9 each: those of the moments of a normal are 1, sqrt(2) and sqrt(96).
    margin = 6 / math.sqrt(COUNT)
    assert abs(draws.mean()) < margin
    assert abs((draws**2).mean() - 1) < margin * math.sqrt(2)
    assert abs((draws**4).mean() - 3) < margin * math.sqrt(96)


def test_large_noise_fills_the_normal_distribution_evenly() -> None:
    std = 2**22
    borders = np.array([-1.2816, -0.8416, -0.5244, -0.2533, 0, 0.2533, 0.5244, 0.8416, 1.2816]) * std  # deciles

    counts = np.bincount(np.searchsorted(borders, draw_discrete_gaussian(std, COUNT)), minlength=10)

    assert ((counts - COUNT / 10) ** 2 / (COUNT / 10)).sum() < chi_square_limit(9)


def test_the_last_bits_of_large_noise_are_uniform() -> None:
    counts = np.bincount(draw_discrete_gaussian(2**22, COUNT) & 15, minlength=16)

    # Noise that was rounded from single precision would have zeros at the end.
    assert ((counts - COUNT / 16) ** 2 / (COUNT / 16)).sum() < chi_square_limit(15)


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 5), (1, 7), (5, 5), (7, 5), (31**2, 2 * 9**2)])
def test_an_event_happens_with_the_exponential_probability(numerator: int, denominator: int) -> None:
    chance = math.exp(-numerator / denominator)

    happened = discrete_noise._happens(np.full(COUNT, numerator), denominator).mean()

    # Six standard errors, a chance of 2e-9.
    assert abs(happened - chance) <= 6 * math.sqrt(chance * (1 - chance) / COUNT)


class Words:
    """A source of whole numbers that goes through all there are, so that frequencies become exact probabilities."""

    def __init__(self, script: list[int]) -> None:
        self.script = script
        self.chance = Fraction(1)

    def below(self, bound: int, count: int) -> NDArray[np.int64]:
        self.chance /= Fraction(bound) ** count
        return np.array([self.script.pop(0) % bound for _ in range(count)], np.int64)


def test_the_first_decisions_have_their_exact_rational_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    # For a ratio r = 2/3: the run stops at length 1 with 1 - r = 1/3 (happens), at length 2 with r (1 - r / 2) = 4/9.
    chances = {True: Fraction(0), False: Fraction(0)}
    for first in range(3):
        for second in range(3):
            for coin in range(2):
                words = Words([first, 0, second, coin, 2, 0])  # then 2 of 3, which stops every run
                monkeypatch.setattr(discrete_noise, "secure_below", words.below)
                happens = bool(discrete_noise._happens_once(np.array([2]), 3)[0])
                stopped_early = len(words.script) >= 2
                chances[happens] += Fraction(1, 18) if stopped_early else 0

    assert chances == {True: Fraction(1, 3), False: Fraction(4, 9)}


def test_no_floating_point_number_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.dtype[np.generic]] = []
    original = discrete_noise._happens

    def watched(numerator: NDArray[np.int64], denominator: int) -> NDArray[np.bool_]:
        seen.append(numerator.dtype)
        assert isinstance(denominator, int)
        return original(numerator, denominator)

    monkeypatch.setattr(discrete_noise, "_happens", watched)

    draws = draw_discrete_gaussian(LARGEST_STD, 1000)

    assert {str(dtype) for dtype in [*seen, draws.dtype]} == {"int64"}


def test_the_largest_intermediate_number_fits_63_bits() -> None:
    # Magnitudes are below LARGEST_MULTIPLE * std; their distance from std is squared.
    assert ((LARGEST_MULTIPLE - 1) * LARGEST_STD + LARGEST_STD) ** 2 < 2**63


def test_far_draws_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discrete_noise, "_count_successes", lambda count: np.full(count, LARGEST_MULTIPLE))

    assert len(discrete_noise._propose(5, 100)) == 0


@pytest.mark.parametrize("count", [0, 1, 2, 1001])
def test_as_many_are_drawn_as_were_asked_for(count: int) -> None:
    assert draw_discrete_gaussian(5, count).shape == (count,)


def test_two_calls_differ() -> None:
    assert (draw_discrete_gaussian(2**22, 10) != draw_discrete_gaussian(2**22, 10)).any()


@pytest.mark.parametrize(
    ("std", "count", "message"),
    [
        (0, 1, "std=0; expected at least 1"),
        (1.5, 1, "std=1.5; expected an integer"),
        (LARGEST_STD + 1, 1, "expected at most 67108864"),
        (1, -1, "count=-1; expected at least 0"),
    ],
)
def test_impossible_noise_is_refused(std: int, count: int, message: str) -> None:
    with pytest.raises(PrivacySettingError, match=message):
        draw_discrete_gaussian(std, count)


@given(st.integers(1, 2**22), st.integers(1, 1000))
def test_shares_together_have_at_least_the_noise_and_hardly_more(std: int, num_shares: int) -> None:
    share = share_std(std, num_shares)

    assert num_shares * share**2 >= std**2
    assert share == 1 or num_shares * (share - 1) ** 2 < std**2


@pytest.mark.parametrize("std", [1, 2, 3, 10])
def test_the_noise_is_as_close_to_a_rounded_gaussian_as_is_said(std: int) -> None:
    reach = min(LARGEST_MULTIPLE, 8) * std
    x = np.arange(-reach, reach + 1)
    phi = np.vectorize(lambda z: math.erfc(-z / math.sqrt(2)) / 2)
    below = -np.abs(x)  # both tails have the same probabilities, and the lower one keeps its digits
    rounded = phi((below + 0.5) / std) - phi((below - 0.5) / std)

    ratio = np.abs(np.log(exact_pmf(std, 40 * std)[40 * std - reach : 40 * std + reach + 1] / rounded))

    assert ratio.max() <= log_ratio_to_gaussian(std)


@pytest.mark.parametrize(("share", "num_shares"), [(1, 2), (1, 3), (1, 8), (2, 2), (2, 5)])
def test_the_sum_of_shares_is_as_close_to_one_noise_as_is_charged(share: int, num_shares: int) -> None:
    pmf = exact_pmf(share, 40 * share)
    total = pmf
    for _ in range(num_shares - 1):
        total = np.convolve(total, pmf)
    std, middle = share * math.sqrt(num_shares), len(total) // 2
    x = np.arange(-math.ceil(5 * std), math.ceil(5 * std) + 1)
    whole = np.exp(-(x**2) / (2 * std**2)) / np.exp(-(np.arange(-999, 1000) ** 2) / (2 * std**2)).sum()

    ratio = np.abs(np.log(total[middle + x] / whole)).max()

    count = np.arange(1, num_shares)
    assert ratio <= 5 * np.exp(-2 * math.pi**2 * share**2 * count / (count + 1)).sum() + 1e-12
    if share == 1:
        assert ratio > 1e-7  # the sum of discrete Gaussians is not one: there is something to charge


def test_what_shares_add_to_the_ratio_is_charged() -> None:
    alone, shared = log_ratio_to_gaussian(2), log_ratio_to_gaussian(2, num_shares=4)

    # Shares of 1: 5 (e^(-pi^2) + e^(-4 pi^2 / 3) + e^(-3 pi^2 / 2)) = 2.5862e-4 + 9.63e-6 + 1.86e-6 = 2.7012e-4
    assert shared - alone == pytest.approx(2.7012e-4, rel=1e-3)
