"""The only place for measurements that merge: sums that hospitals send and the coordinator adds.

A hospital sends neither patients nor scores but an ``Evaluation``: counts and sums over its held-out patients. Merging
is addition, so the pooled figure does not depend on how patients are spread over hospitals or who answered first.
Counts that leave with noise are fewer and coarser (`NoisedCounts`); an ``Evaluation`` is read off them afterwards.

Shape legend: K = number of scored classes (1 for a binary task), N = patients, B = histogram bins.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_contract.simplex import apportion
from fl_contract.survival import SurvivalEvaluation

LOGIT_BOUND = 8.0
"""Scores are histogrammed by their logit in [-8, 8]; beyond lies less than one chance in 2,980."""

NUM_BINS = 64

NUM_NOISED_BINS = 8
"""Few, because each bin gets noise of its own."""


def _edges(num_bins: int) -> NDArray[np.float64]:
    return np.linspace(-LOGIT_BOUND, LOGIT_BOUND, num_bins + 1)


def _centres(num_bins: int) -> NDArray[np.float64]:
    edges = _edges(num_bins)
    return (edges[:-1] + edges[1:]) / 2


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
        counts = np.zeros((num_classes, 2, NUM_BINS), dtype=np.int64)
        bins = _find_bins(logits, NUM_BINS)
        for column in range(num_classes):
            has_class = labels == (1 if num_classes == 1 else column)
            for side in (0, 1):
                counts[column, side] = np.bincount(bins[has_class == side, column], minlength=NUM_BINS)
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
        centres = 1.0 / (1.0 + np.exp(-_centres(self.counts.shape[2])))
        without, with_class = self.counts.sum(axis=0)
        total = without + with_class
        group = np.minimum((centres * num_groups).astype(int), num_groups - 1)
        counts = np.bincount(group, weights=total, minlength=num_groups)
        predicted = np.bincount(group, weights=total * centres, minlength=num_groups)
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


def _find_bins(logits: NDArray[np.floating], num_bins: int) -> NDArray[np.int64]:
    bins: NDArray[np.int64] = np.clip(np.digitize(logits, _edges(num_bins)) - 1, 0, num_bins - 1)
    return bins


@dataclass(frozen=True, kw_only=True)
class NoisedCounts:
    """Counts of patients that left a hospital, or several, with noise.

    Attributes:
        cells: int64: for each scored class, patients without it and then with it, by 8 bins of their score; for K > 1
            a last cell counts correct predictions, which for K = 1 are those on the right side of logit 0. May be
            negative.
        noise_scale: Standard deviation of the noise in each cell, in patients; above 0.
    """

    cells: NDArray[np.int64]
    noise_scale: float

    @property
    def num_scored(self) -> int:
        """Scored classes K."""
        return count_scored_classes(len(self.cells))


def count_scored_classes(num_cells: int) -> int:
    """Scored classes K of a number of cells.

    Raises:
        ValueError: No number of classes has so many cells.

    >>> count_scored_classes(16), count_scored_classes(10 * 16 + 1)
    (1, 10)
    """
    num_scored = max(1, num_cells // (2 * NUM_NOISED_BINS))
    if num_cells != num_scored * 2 * NUM_NOISED_BINS + (num_scored > 1):
        raise ValueError(
            f"{num_cells} cells; expected {2 * NUM_NOISED_BINS}, or that for each of several classes and one more"
        )
    return num_scored


def cells_of_patients(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Each record's contribution to `NoisedCounts.cells`, 0 or 1 in each cell.

    Guarantees:
        - A row has L2 norm `cells_sensitivity`, whatever the record.

    Args:
        logits: [N, K] log-odds of each scored class; finite.
        labels: [N] class of each record.

    Returns:
        [N, cells].
    """
    num_records, num_scored = logits.shape
    bins = _find_bins(logits, NUM_NOISED_BINS)
    cells = np.zeros((num_records, num_scored, 2, NUM_NOISED_BINS))
    rows = np.arange(num_records)
    for column in range(num_scored):
        has_class = (labels == (1 if num_scored == 1 else column)).astype(int)
        cells[rows, column, has_class, bins[:, column]] = 1.0
    flat = cells.reshape(num_records, -1)
    if num_scored == 1:
        return flat
    return np.concatenate([flat, (logits.argmax(axis=1) == labels)[:, np.newaxis].astype(float)], axis=1)


def cells_sensitivity(num_scored: int) -> float:
    """Largest L2 norm of one patient's contribution to the cells.

    >>> cells_sensitivity(1), cells_sensitivity(3)
    (1.0, 2.0)
    """
    return float(np.sqrt(num_scored + (num_scored > 1)))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model measured on one hospital's held-out patients, or on several hospitals' together.

    Attributes:
        num_examples: Patients measured; at least 1. An estimate where noise was added, like all that follows.
        loss_sum: Sum of the patients' losses, in nats.
        num_correct: Patients whose class was predicted.
        scores: Their scores.
        noised: What it was read off, where noise was added.
    """

    num_examples: int
    loss_sum: float
    num_correct: int
    scores: ScoreHistogram
    noised: NoisedCounts | None = None

    @classmethod
    def from_noised(cls, noised: NoisedCounts) -> Self:
        """Read a measurement off noised counts; costs no further privacy.

        The number of patients is the noised total; counts below zero are impossible, so each class's counts are moved
        to the nearest ones that are possible and have that total. The loss takes a patient at the middle of its bin.
        """
        num_scored = noised.num_scored
        raw = noised.cells[: num_scored * 2 * NUM_NOISED_BINS].reshape(num_scored, 2 * NUM_NOISED_BINS)
        num_examples = max(1, round(float(raw.sum(axis=1).mean())))
        counts = np.stack([apportion(column, num_examples) for column in raw])
        scores = ScoreHistogram(counts=counts.reshape(num_scored, 2, NUM_NOISED_BINS))
        without, with_class = scores.counts[:, 0], scores.counts[:, 1]
        centres = _centres(NUM_NOISED_BINS)
        if num_scored == 1:
            losses = with_class @ np.logaddexp(0, -centres) + without @ np.logaddexp(0, centres)
            correct = int(with_class[0, centres > 0].sum() + without[0, centres < 0].sum())
            return cls(
                num_examples=num_examples, loss_sum=float(losses[0]), num_correct=correct, scores=scores, noised=noised
            )
        labelled = max(1, int(with_class.sum()))
        loss = float((with_class @ np.logaddexp(0, -centres)).sum()) / labelled
        return cls(
            num_examples=num_examples,
            loss_sum=loss * num_examples,
            num_correct=min(max(int(noised.cells[-1]), 0), num_examples),
            scores=scores,
            noised=noised,
        )

    def coarse_cells(self) -> NDArray[np.int64]:
        """The cells that `NoisedCounts` has, without noise unless it was added."""
        if self.noised is not None:
            return self.noised.cells
        counts = self.scores.counts
        coarse = counts.reshape(len(counts), 2, NUM_NOISED_BINS, -1).sum(axis=3).ravel()
        return coarse if len(counts) == 1 else np.append(coarse, self.num_correct)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {
            "num_examples": int(self.num_examples),
            "loss_sum": float(self.loss_sum),
            "num_correct": int(self.num_correct),
            "score_counts": self.scores.counts.tolist(),
            "noised_cells": None if self.noised is None else self.noised.cells.tolist(),
            "noise_scale": None if self.noised is None else self.noised.noise_scale,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Take back what `to_json` gave."""
        if fields.get("noised_cells") is not None:
            cells = np.array(fields["noised_cells"], dtype=np.int64)
            return cls.from_noised(NoisedCounts(cells=cells, noise_scale=fields["noise_scale"]))
        counts = np.array(fields["score_counts"], dtype=np.int64)
        return cls(
            num_examples=fields["num_examples"],
            loss_sum=fields["loss_sum"],
            num_correct=fields["num_correct"],
            scores=ScoreHistogram(counts=counts),
        )

    @property
    def loss(self) -> float:
        """Mean loss, in nats."""
        return self.loss_sum / self.num_examples

    @property
    def accuracy(self) -> float:
        """Share of patients whose class was predicted."""
        return self.num_correct / self.num_examples

    @property
    def auroc(self) -> float:
        """Area under the ROC curve, see `ScoreHistogram.auroc`."""
        return self.scores.auroc()

    def figures(self) -> dict[str, float]:
        """What is reported of it, the measure that models are compared by first; NaN where it is not defined."""
        return {"auroc": self.auroc, "accuracy": self.accuracy}


Measurement = Evaluation | SurvivalEvaluation
"""A model measured on patients, whose outcome is a class or a time."""

MEASURES = {"auroc": "AUROC", "accuracy": "accuracy", "c_index": "C-index"}
"""What is reported of a measurement, and what it is called."""


def measurement_from_json(fields: Mapping[str, Any]) -> Measurement:
    """Take back what a measurement's ``to_json`` gave."""
    return (SurvivalEvaluation if fields.get("pairs") is not None else Evaluation).from_json(fields)


def merge_measurements(measurements: Iterable[Measurement]) -> Measurement:
    """The measurement of all hospitals' patients together; does not depend on the order.

    Raises:
        ValueError: There is none, or they measure different outcomes.
    """
    parts = list(measurements)
    survival = [part for part in parts if isinstance(part, SurvivalEvaluation)]
    if len(survival) not in (0, len(parts)):
        raise ValueError("some measurements are of survival and some of classes; they cannot be merged")
    if survival:
        return SurvivalEvaluation.merge(survival)
    return merge_evaluations(part for part in parts if isinstance(part, Evaluation))


def merge_evaluations(evaluations: Iterable[Evaluation]) -> Evaluation:
    """The evaluation of all hospitals' patients together; does not depend on the order.

    Where one has noise the whole is read off the sum of noised counts, whose noise partly cancels.

    Raises:
        ValueError: There is none, or they score different numbers of classes.
    """
    parts = list(evaluations)
    if not parts:
        raise ValueError("nothing to merge; expected at least one evaluation")
    if len({len(part.scores.counts) for part in parts}) > 1:
        raise ValueError("evaluations score different numbers of classes; they cannot be merged")
    scales = [part.noised.noise_scale for part in parts if part.noised is not None]
    if scales:
        cells = np.sum([part.coarse_cells() for part in parts], axis=0)
        return Evaluation.from_noised(NoisedCounts(cells=cells, noise_scale=float(np.sqrt(np.square(scales).sum()))))
    return Evaluation(
        num_examples=sum(part.num_examples for part in parts),
        loss_sum=float(np.sum(sorted(part.loss_sum for part in parts))),
        num_correct=sum(part.num_correct for part in parts),
        scores=ScoreHistogram(counts=np.sum([part.scores.counts for part in parts], axis=0)),
    )
