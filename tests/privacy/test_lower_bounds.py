"""A lower bound on epsilon is what an attack's success rules out, and never more."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import PrivacySettingError
from privacy.lower_bounds import (
    Guesses,
    bound_from_guesses,
    bound_from_rates,
    clopper_pearson,
    probability_of_guesses,
)


def test_the_chance_of_guesses_without_delta_is_the_binomial_tail() -> None:
    # epsilon = ln 3: each guess is right with probability 3/4. P[Bin(2, 3/4) >= 2] = 9/16, P[>= 1] = 15/16.
    both = Guesses(num_canaries=2, num_guesses=2, num_right=2)
    one = Guesses(num_canaries=2, num_guesses=2, num_right=1)

    chances = [probability_of_guesses(guesses, epsilon=math.log(3), delta=0.0) for guesses in (both, one)]

    assert chances == pytest.approx([9 / 16, 15 / 16])


def test_delta_adds_its_slack() -> None:
    # Below 2 right lie P[W = 1] = 6/16 and P[W = 0] = 1/16: max(6/16, 7/16 / 2) = 6/16, times 2 m delta = 2 * 5 * 0.01.
    guesses = Guesses(num_canaries=5, num_guesses=2, num_right=2)

    chance = probability_of_guesses(guesses, epsilon=math.log(3), delta=0.01)

    assert chance == pytest.approx(9 / 16 + 0.1 * 6 / 16)


def test_no_guess_shows_nothing() -> None:
    guesses = Guesses(num_canaries=10, num_guesses=0, num_right=0)

    assert probability_of_guesses(guesses, epsilon=0.0, delta=1e-3) == 1.0
    assert bound_from_guesses(guesses, delta=1e-3, confidence=0.95) == 0.0


def test_a_perfect_attack_shows_what_its_number_of_guesses_allows_and_a_blind_one_nothing() -> None:
    perfect = Guesses(num_canaries=1000, num_guesses=400, num_right=400)
    blind = Guesses(num_canaries=1000, num_guesses=400, num_right=200)

    # p^400 < 1e-4 up to p = exp(ln(1e-4) / 400) = 0.97724, which is epsilon = ln(p / (1 - p)) = 3.760.
    assert bound_from_guesses(perfect, delta=1e-10, confidence=0.9999) == pytest.approx(3.76, abs=0.021)
    assert bound_from_guesses(blind, delta=1e-10, confidence=0.9999) == 0.0


@settings(max_examples=20, deadline=None)
@given(num_right=st.integers(150, 200), epsilon=st.floats(0, 4), delta=st.sampled_from([0.0, 1e-9, 1e-6]))
def test_the_bound_is_where_the_chance_reaches_the_error(num_right: int, epsilon: float, delta: float) -> None:
    guesses = Guesses(num_canaries=500, num_guesses=200, num_right=num_right)

    shown = bound_from_guesses(guesses, delta=delta, confidence=0.95)

    assert (epsilon < shown) <= (probability_of_guesses(guesses, epsilon=epsilon, delta=delta) < 0.05)


@pytest.mark.parametrize(("canaries", "guesses", "right"), [(10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_counts_that_contradict_each_other_are_refused(canaries: int, guesses: int, right: int) -> None:
    with pytest.raises(PrivacySettingError, match="num_right"):
        Guesses(num_canaries=canaries, num_guesses=guesses, num_right=right)


def test_the_interval_of_a_share_is_exact() -> None:
    # 0 of 10: the upper end u has (1 - u)^10 = 0.025, so u = 1 - 0.025^0.1 = 0.30850; 10 of 10 is its mirror image.
    assert clopper_pearson(0, 10, confidence=0.95) == pytest.approx((0.0, 0.30850), abs=1e-5)
    assert clopper_pearson(10, 10, confidence=0.95) == pytest.approx((0.69150, 1.0), abs=1e-5)


def test_no_trial_has_no_share() -> None:
    with pytest.raises(PrivacySettingError, match="trials=0"):
        clopper_pearson(0, 0, confidence=0.95)


def test_rates_show_the_larger_of_both_ratios() -> None:
    # 5,000 of 10,000 members and 100 of 10,000 others: TPR at least 0.4902, FPR at most 0.0122; ln(0.4902 / 0.0122) =
    # 3.70. The opposite answers show less: ln(0.9878 / 0.5098) = 0.66.
    shown = bound_from_rates(
        true_positives=5000, num_members=10_000, false_positives=100, num_others=10_000, delta=0.0, confidence=0.95
    )
    # 9,900 of 10,000 and 5,000 of 10,000: TPR at least 0.9878, FPR at most 0.5098; ln(0.4902 / 0.0122) again.
    opposite = bound_from_rates(
        true_positives=9900, num_members=10_000, false_positives=5000, num_others=10_000, delta=0.0, confidence=0.95
    )

    assert shown == pytest.approx(3.70, abs=0.01)
    assert opposite == pytest.approx(shown)


def test_a_blind_attack_and_a_delta_above_its_success_show_nothing() -> None:
    blind = bound_from_rates(
        true_positives=50, num_members=100, false_positives=50, num_others=100, delta=0.0, confidence=0.95
    )
    covered = bound_from_rates(
        true_positives=10, num_members=100, false_positives=0, num_others=100, delta=0.5, confidence=0.95
    )

    assert (blind, covered) == (0.0, 0.0)
