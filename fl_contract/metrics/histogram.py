"""Scores of classes as counts of patients by bin: what areas under curves and calibration are read off.

Shape legend: K = number of scored classes (1 for a binary task), N = patients, B = histogram bins.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

LOGIT_BOUND = 8.0
"""Scores are histogrammed by their logit in [-8, 8]; beyond lies less than one chance in 2,980."""

NUM_BINS = 64

NUM_NOISED_BINS = 8
"""Few, because each bin gets noise of its own."""


def edges(num_bins: int) -> NDArray[np.float64]:
    """Bounds of the bins in log-odds, [num_bins + 1]."""
    return np.linspace(-LOGIT_BOUND, LOGIT_BOUND, num_bins + 1)


def centres(num_bins: int) -> NDArray[np.float64]:
    """Middles of the bins in log-odds, [num_bins]."""
    bounds = edges(num_bins)
    return (bounds[:-1] + bounds[1:]) / 2


@dataclass(frozen=True, kw_only=True)
class ScoreHistogram:
    """Counts of patients by predicted probability, for each class the patients with and without it.

    The area under the ROC curve from it counts two patients in one bin as a tie, so it differs from the exact one by at
    most half the share of case-control pairs that fall in one bin (Hanley & McNeil 1982 for the tie rule).

    Attributes:
        counts: int64 of shape [K, 2, B] with B = 64, or 8 where noise was added; axis 1 is without (0) and with (1) the
            class.
    """

    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape = self.counts.shape
        if len(shape) != 3 or shape[0] < 1 or shape[1] != 2 or shape[2] not in (NUM_BINS, NUM_NOISED_BINS):
            raise ValueError(f"score histogram has shape {shape}; expected [classes, 2, {NUM_BINS}]")
        if (self.counts < 0).any():
            raise ValueError("score histogram holds a negative count; counts are at least 0")

    @classmethod
    def from_logits(cls, logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Self:
        """Count patients by the logit of their score.

        Args:
            logits: [N, K] log-odds of each scored class; finite.
            labels: [N] class of each patient; for a binary task (K = 1) class 1 is the positive one.

        Returns:
            A histogram whose counts add up to N in each class.
        """
        num_classes = logits.shape[1]
        positive = np.array([1]) if num_classes == 1 else np.arange(num_classes)
        return cls.from_findings(logits, labels[:, np.newaxis] == positive)

    @classmethod
    def from_findings(cls, logits: NDArray[np.floating], has_class: NDArray[np.bool_]) -> Self:
        """Count patients who may have any number of the classes.

        Args:
            logits: [N, K] log-odds of each scored class; finite.
            has_class: [N, K].

        Returns:
            A histogram whose counts add up to N in each class.
        """
        counts = np.zeros((logits.shape[1], 2, NUM_BINS), dtype=np.int64)
        bins = find_bins(logits, NUM_BINS)
        for column in range(logits.shape[1]):
            for side in (0, 1):
                counts[column, side] = np.bincount(bins[has_class[:, column] == side, column], minlength=NUM_BINS)
        return cls(counts=counts)

    @property
    def num_positive(self) -> int:
        """Patients with the (first) scored class; for a binary task the cases."""
        return int(self.counts[0, 1].sum())

    @property
    def num_examples(self) -> int:
        """Patients counted."""
        return int(self.counts[0].sum())

    def roc(self, column: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """False and true positive rates from the strictest to the laxest threshold, [B + 1] each.

        A class without a patient on one side gives NaN on that axis.
        """
        without, with_class = (np.cumsum(side[::-1], dtype=np.float64) for side in self.counts[column])
        with np.errstate(invalid="ignore"):
            return (
                np.concatenate([[0.0], without / without[-1]]),
                np.concatenate([[0.0], with_class / with_class[-1]]),
            )

    def auroc(self) -> float:
        """Area under the ROC curve; for K > 1 the mean over classes, one against the rest.

        Classes that no patient has, or that all have, are left out; NaN when none is left.
        """
        areas = [_area_under_roc(self.counts[column]) for column in range(len(self.counts))]
        defined = [area for area in areas if area is not None]
        return float(np.mean(defined)) if defined else float("nan")

    def calibration(self, num_groups: int = 10) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Mean predicted probability, observed share, and count of patients in equal-width groups of probability.

        All classes are taken together. Only groups that hold a patient are returned. A predicted probability is known
        to its bin (a quarter of a logit, or two where noise was added).
        """
        middles = 1.0 / (1.0 + np.exp(-centres(self.counts.shape[2])))
        without, with_class = self.counts.sum(axis=0)
        total = without + with_class
        group = np.minimum((middles * num_groups).astype(int), num_groups - 1)
        counts = np.bincount(group, weights=total, minlength=num_groups)
        predicted = np.bincount(group, weights=total * middles, minlength=num_groups)
        observed = np.bincount(group, weights=with_class, minlength=num_groups)
        kept = counts > 0
        return predicted[kept] / counts[kept], observed[kept] / counts[kept], counts[kept].astype(np.int64)


def _area_under_roc(counts: NDArray[np.int64]) -> float | None:
    without, with_class = counts.astype(np.float64)
    pairs = without.sum() * with_class.sum()
    if pairs == 0:
        return None
    below = np.cumsum(without) - without
    return float((with_class * (below + without / 2)).sum() / pairs)


def find_bins(logits: NDArray[np.floating], num_bins: int) -> NDArray[np.int64]:
    """The bin of each log-odds; those beyond the bound are in the outermost ones."""
    bins: NDArray[np.int64] = np.clip(np.digitize(logits, edges(num_bins)) - 1, 0, num_bins - 1)
    return bins
