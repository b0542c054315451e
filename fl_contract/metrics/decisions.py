"""Patients of two classes decided by a threshold: whom a model finds, and whom it clears."""

import math
from dataclasses import dataclass

import numpy as np

from fl_contract.metrics.histogram import NUM_NOISED_BINS, ScoreHistogram, edges, probabilities

HALF = 0.5
"""Threshold of a study that names none."""


def log_odds(threshold: float) -> float:
    """Of a probability; exactly 0 for a half.

    >>> log_odds(0.5), round(log_odds(0.2), 4)
    (0.0, -1.3863)
    """
    return math.log(threshold / (1 - threshold))


def snap(threshold: float) -> float:
    """The nearest threshold that lies between two of the bins that get noise.

    >>> snap(0.5), round(snap(0.1), 4)
    (0.5, 0.1192)
    """
    inner = edges(NUM_NOISED_BINS)[1:-1]
    nearest = inner[np.abs(inner - log_odds(threshold)).argmin()]
    return float(probabilities(np.array([nearest]))[0])


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What follows if every patient whose probability is above a threshold is taken to have the class.

    Attributes:
        threshold: Probability in (0, 1).
        true_positives: Patients with the class that are above it.
        true_negatives: Patients without the class that are not.
    """

    threshold: float
    true_positives: int
    true_negatives: int

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}; expected above 0 and below 1")

    @property
    def num_correct(self) -> int:
        """Patients that are decided rightly."""
        return self.true_positives + self.true_negatives

    @classmethod
    def read_off(cls, scores: ScoreHistogram, threshold: float) -> "Decisions":
        """From counts by coarse bins, at the nearest threshold between two of them."""
        threshold = snap(threshold)
        above = probabilities(edges(NUM_NOISED_BINS)[:-1]) >= threshold
        without, with_class = scores.counts[0]
        return cls(
            threshold=threshold,
            true_positives=int(with_class[above].sum()),
            true_negatives=int(without[~above].sum()),
        )

    def check(self, scores: ScoreHistogram) -> None:
        """Refuse counts that contradict the patients' scores.

        Raises:
            ValueError: Names the number and the range that the scores leave.
        """
        least, most = scores.count_above(log_odds(self.threshold))
        num_without = int(scores.counts[0, 0].sum())
        ranges = {
            "true-positives": (self.true_positives, least[1], most[1]),
            "true-negatives": (self.true_negatives, num_without - most[0], num_without - least[0]),
        }
        for name, (value, low, high) in ranges.items():
            if not low <= value <= high:
                raise ValueError(f"{name} is out of range; the score-counts leave {low} to {high}")
