"""Scores of classes as counts of patients by bin: what areas under curves and calibration are read off.

Shape legend: K = number of scored classes (1 for a binary task), N = patients, B = histogram bins.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fl_contract.metrics.areas import area_under_roc, average_precision

LOGIT_BOUND = 8.0
"""Between logit -8 and 8 bins are narrow; beyond lies less than one chance in 2,980."""

TAIL_BOUND = 40.0
"""Beyond the narrow bins they are one logit wide up to here, so that scores of an overtrained model stay apart."""

NUM_BINS = 576
"""512 of a 32nd of a logit, and 32 of the tail on either side."""

NUM_NOISED_BINS = 8
"""Few, because each bin gets noise of its own."""

NUM_GROUPS = 10
"""Of calibration, of equal width in probability."""


def edges(num_bins: int) -> NDArray[np.float64]:
    """Bounds of the bins in log-odds, [num_bins + 1]; the outermost bins hold what lies beyond, too.

    >>> edges(NUM_NOISED_BINS).tolist()
    [-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0]
    """
    if num_bins == NUM_NOISED_BINS:
        return np.linspace(-LOGIT_BOUND, LOGIT_BOUND, num_bins + 1)
    tail = np.arange(LOGIT_BOUND + 1, TAIL_BOUND + 1)
    narrow = np.linspace(-LOGIT_BOUND, LOGIT_BOUND, num_bins - 2 * len(tail) + 1)
    return np.concatenate([-tail[::-1], narrow, tail])


def centres(num_bins: int) -> NDArray[np.float64]:
    """Middles of the bins in log-odds, [num_bins]."""
    bounds = edges(num_bins)
    return (bounds[:-1] + bounds[1:]) / 2


def probabilities(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of log-odds, without overflow."""
    exponentials = np.exp(-np.abs(logits, dtype=np.float64))
    chances: NDArray[np.float64] = np.where(logits >= 0, 1.0, exponentials) / (1.0 + exponentials)
    return chances


def find_bins(logits: NDArray[np.floating], num_bins: int) -> NDArray[np.int64]:
    """The bin of each log-odds; those beyond the bound are in the outermost ones."""
    bins: NDArray[np.int64] = np.clip(np.digitize(logits, edges(num_bins)) - 1, 0, num_bins - 1)
    return bins


@dataclass(frozen=True, kw_only=True)
class ScoreHistogram:
    """Counts of patients by predicted probability, for each class the patients with and without it.

    Areas from it count two patients in one bin as a tie: see `fl_contract.metrics.areas` for how far they are from
    those of the scores themselves.

    Attributes:
        counts: int64 of shape [K, 2, B] with B = 576, or 8 where noise was added; axis 1 is without (0) and with (1)
            the class.
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

    def coarsen(self) -> NDArray[np.int64]:
        """The same patients by the bins that get noise, [K, 2, 8]: each of those is made of whole bins."""
        starts = np.searchsorted(edges(NUM_BINS), edges(NUM_NOISED_BINS)[1:-1])
        return np.add.reduceat(self.counts, [0, *starts], axis=2)

    @property
    def num_positive(self) -> int:
        """Patients with the (first) scored class; for a binary task the cases."""
        return int(self.counts[0, 1].sum())

    @property
    def num_examples(self) -> int:
        """Patients counted."""
        return int(self.counts[0].sum())

    def count_above(self, logit: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Patients whose (first) score is above a logit for sure, and at most: those of its own bin may be.

        Args:
            logit: Log-odds.

        Returns:
            Two counts [2], of patients without and with the class.
        """
        own = int(find_bins(np.array([logit]), self.counts.shape[2])[0])
        return self.counts[0, :, own + 1 :].sum(axis=1), self.counts[0, :, own:].sum(axis=1)

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
        return self.auroc_with_error()[0]

    def auroc_with_error(self) -> tuple[float, float]:
        """`auroc` and its standard error; for K > 1 the mean of the classes' errors, which bounds it from above."""
        return _macro([area_under_roc(counts) for counts in self.counts])

    def auprc_with_error(self) -> tuple[float, float]:
        """Average precision and its standard error; several classes as for the area under the ROC curve."""
        return _macro([average_precision(counts) for counts in self.counts])

    def calibration(
        self, num_groups: int = NUM_GROUPS
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Mean predicted probability, observed share, and count of patients in equal-width groups of probability.

        All classes are taken together. Only groups that hold a patient are returned. A predicted probability is known
        to its bin (a 32nd of a logit, or two logits where noise was added).
        """
        middles = probabilities(centres(self.counts.shape[2]))
        without, with_class = self.counts.sum(axis=0)
        total = without + with_class
        group = _groups(middles, num_groups)
        counts = np.bincount(group, weights=total, minlength=num_groups)
        predicted = np.bincount(group, weights=total * middles, minlength=num_groups)
        observed = np.bincount(group, weights=with_class, minlength=num_groups)
        kept = counts > 0
        return predicted[kept] / counts[kept], observed[kept] / counts[kept], counts[kept].astype(np.int64)

    def surplus_of_groups(self, noise_scale: float = 0.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Observed minus predicted patients of each calibration group, and its variance by chance, [groups] each.

        Args:
            noise_scale: Standard deviation of the noise in each count, which the variance then holds too.
        """
        middles = probabilities(centres(self.counts.shape[2]))
        without, with_class = self.counts.sum(axis=0)
        group = _groups(middles, NUM_GROUPS)
        surplus = with_class * (1 - middles) - without * middles
        noise = len(self.counts) * noise_scale**2
        variance = (with_class + noise) * (1 - middles) ** 2 + (without + noise) * middles**2
        summed = (np.bincount(group, weights=each, minlength=NUM_GROUPS) for each in (surplus, variance))
        surpluses, variances = (each.astype(np.float64) for each in summed)
        return surpluses, variances

    def calibration_error(self) -> float:
        """Expected calibration error: distance of predicted and observed share over groups, weighted by patients.

        Source: Naeini et al. (2015, AAAI), ten groups of equal width. A probability is known to half a bin, 0.004 at
        most, and so is the error; where a group's border cuts a bin, the patients of that bin can be in the wrong
        group, which adds at most twice their share. NaN without patients.
        """
        total = self.counts.sum()
        return float(np.abs(self.surplus_of_groups()[0]).sum() / total) if total else float("nan")

    def squared_errors(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and largest squared error of a probability in each bin, for the counts: [2, B] each."""
        bounds = probabilities(edges(self.counts.shape[2]))
        bounds[0], bounds[-1] = 0.0, 1.0
        lower, upper = bounds[:-1], bounds[1:]
        return np.stack([lower, 1 - upper]) ** 2, np.stack([upper, 1 - lower]) ** 2


def _groups(probability: NDArray[np.float64], num_groups: int) -> NDArray[np.int64]:
    return np.minimum((probability * num_groups).astype(np.int64), num_groups - 1)


def _macro(areas: list[tuple[float, float]]) -> tuple[float, float]:
    defined = np.array([area for area in areas if not np.isnan(area[0])])
    return (float(defined[:, 0].mean()), float(defined[:, 1].mean())) if defined.size else (float("nan"), float("nan"))
