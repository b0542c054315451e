"""The only place that turns how well an attack did into a lower bound on epsilon.

An accountant says what training leaks at most, an attack what it leaks at least. A lower bound above the claimed
epsilon refutes the claim; one below it proves nothing.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from privacy.bounds import require_count, require_rate
from privacy.errors import PrivacySettingError

EPSILON_STEP = 0.02
"""How far a reported bound may lie below the largest epsilon that an attack rules out."""


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """What an attacker said about canaries, each of which was in the training data by its own fair coin.

    Attributes:
        num_canaries: Coins that were tossed.
        num_guesses: Canaries about which the attacker said "in" or "out"; about the others it said nothing.
        num_right: Guesses that were right.
    """

    num_canaries: int
    num_guesses: int
    num_right: int

    def __post_init__(self) -> None:
        """Refuse counts that contradict each other."""
        for name in ("num_canaries", "num_guesses", "num_right"):
            require_count(name, getattr(self, name), at_least=0)
        if not self.num_right <= self.num_guesses <= self.num_canaries:
            raise PrivacySettingError(
                f"num_right={self.num_right}, num_guesses={self.num_guesses}, num_canaries={self.num_canaries}; "
                "expected each at most the next"
            )


def probability_of_guesses(guesses: Guesses, *, epsilon: float, delta: float) -> float:
    """Bound the chance that training which is (``epsilon``, ``delta``)-private allows so many right guesses, or more.

    P[W >= v] + 2 m delta max_i (1/i) P[v > W >= v - i], W ~ Binomial(r, e^epsilon / (1 + e^epsilon)), for m canaries,
    r guesses and v right ones. Holds for one training run and any attack; may exceed 1, where it says nothing.

    Source: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", arXiv 2305.08846, Theorem 5.2.

    >>> guesses = Guesses(num_canaries=10, num_guesses=10, num_right=10)
    >>> probability_of_guesses(guesses, epsilon=0.0, delta=0.0) == 0.5**10
    True
    """
    chances = stats.binom.pmf(np.arange(guesses.num_guesses + 1), guesses.num_guesses, 1 / (1 + math.exp(-epsilon)))
    below = np.cumsum(chances[: guesses.num_right][::-1])
    slack = max(below / np.arange(1, guesses.num_right + 1), default=0.0)
    return float(chances[guesses.num_right :].sum() + 2 * guesses.num_canaries * delta * slack)


def bound_from_guesses(guesses: Guesses, *, delta: float, confidence: float) -> float:
    """Return an epsilon below which the training that allowed these guesses cannot be, at this ``delta``.

    Guarantees:
        - Above the true epsilon with probability at most 1 - ``confidence``; 0.0 where nothing is ruled out.
        - At most what ``num_guesses`` right guesses can show: ln(p / (1 - p)) with p^num_guesses = 1 - confidence.

    Args:
        guesses: Of one run; how many to make must not depend on the coins.
        delta: Small against 1 / ``num_canaries``, or the bound is 0.
        confidence: Above 0, below 1.

    >>> bound_from_guesses(Guesses(num_canaries=400, num_guesses=400, num_right=400), delta=0.0, confidence=0.9999)
    3.74
    """
    steps = 0
    while probability_of_guesses(guesses, epsilon=steps * EPSILON_STEP, delta=delta) < 1 - confidence:
        steps += 1
    return round(max(0, steps - 1) * EPSILON_STEP, 2)


def clopper_pearson(successes: int, trials: int, *, confidence: float) -> tuple[float, float]:
    """Return the exact interval for a binomial share, each side missed with probability (1 - ``confidence``) / 2.

    Source: Clopper, Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).

    >>> low, high = clopper_pearson(0, 10, confidence=0.95)
    >>> low, round(high, 4)
    (0.0, 0.3085)
    """
    require_count("trials", trials, at_least=1)
    require_rate("confidence", confidence)
    miss = (1 - confidence) / 2
    low = stats.beta.ppf(miss, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.ppf(1 - miss, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def bound_from_rates(
    *, true_positives: int, num_members: int, false_positives: int, num_others: int, delta: float, confidence: float
) -> float:
    """Return the epsilon that a membership attack's rates show: ln((TPR - delta) / FPR), or of the opposite answers.

    Both rates are taken at the unfavourable end of their Clopper-Pearson intervals.

    Guarantees:
        - Above the true epsilon with probability at most 1 - ``confidence``, if each answer is a trial of its own (a
          canary that no other touches, or a model of its own). Many patients of one model are not: there it is an
          indication.

    Source: Kairouz, Oh, Viswanath, arXiv 1311.0776, Theorem 2.1.

    >>> shown = bound_from_rates(
    ...     true_positives=90, num_members=100, false_positives=0, num_others=100, delta=1e-5, confidence=0.95
    ... )
    >>> round(shown, 2)  # TPR at least 0.824 and FPR at most 0.036, so ln(0.824 / 0.036)
    3.12
    """
    tpr_low, _ = clopper_pearson(true_positives, num_members, confidence=confidence)
    _, fpr_high = clopper_pearson(false_positives, num_others, confidence=confidence)
    odds = max((tpr_low - delta) / fpr_high, (1 - fpr_high - delta) / (1 - tpr_low))
    return math.log(odds) if odds > 1 else 0.0
