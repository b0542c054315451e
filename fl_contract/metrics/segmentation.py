"""A model of classes of pixels measured on masks.

Shape legend: K = classes, the first being the background.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_contract.metrics.intervals import Interval, around
from fl_contract.metrics.measurement import (
    Measurement,
    Numbers,
    add_exactly,
    read_float,
    read_floats,
    read_int,
    read_ints,
)
from fl_contract.metrics.ratio import RatioSums

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluation(Measurement):
    """One model of masks measured on one hospital's held-out images, or on several hospitals' together.

    Pixels of all images are counted together, so a large lesion counts more than a small one. What noise it would need
    is not known: there is no noised one.

    Attributes:
        num_examples: Images.
        intersection: [K] pixels of each class that were predicted to be of it.
        predicted: [K] pixels that were predicted to be of each class.
        true: [K] pixels of each class.
        overlaps: [K] of each class, sums over images of twice the intersection and of predicted and true pixels.
        correct: Sums over images of pixels whose class was predicted and of all pixels.
    """

    KIND = "segmentation"

    intersection: Counts
    predicted: Counts
    true: Counts
    overlaps: tuple[RatioSums, ...]
    correct: RatioSums

    @classmethod
    def of(
        cls, predicted: NDArray[np.integer], true: NDArray[np.integer], num_classes: int, *, loss_sum: float
    ) -> Self:
        """Count the pixels.

        Args:
            predicted: [N, ...] class of each pixel.
            true: [N, ...] likewise.
            num_classes: K.
            loss_sum: Of all images.
        """
        flat_predicted, flat_true = predicted.reshape(len(true), -1), true.reshape(len(true), -1)
        is_found = flat_predicted == flat_true
        found, predictions, truths = (
            np.stack([((each == number) & chosen).sum(axis=1) for number in range(num_classes)])
            for each, chosen in ((flat_true, is_found), (flat_predicted, True), (flat_true, True))
        )
        return cls(
            num_examples=len(true),
            loss_sum=loss_sum,
            intersection=found.sum(axis=1),
            predicted=predictions.sum(axis=1),
            true=truths.sum(axis=1),
            overlaps=tuple(map(RatioSums.of, 2.0 * found, (predictions + truths).astype(np.float64))),
            correct=RatioSums.of(is_found.sum(axis=1), np.full(len(true), flat_true.shape[1])),
        )

    def dice(self) -> NDArray[np.float64]:
        """Dice of each class, [K]; NaN for one that is neither there nor predicted. Source: Dice, Ecology 26 (1945)."""
        total = self.predicted + self.true
        return np.where(total > 0, 2 * self.intersection / np.maximum(total, 1), np.nan)

    @property
    def mean_dice(self) -> float:
        """Mean over the classes but the background; those that are nowhere are left out, NaN if all are."""
        defined = [value for value in self.dice()[1:] if np.isfinite(value)]
        return float(np.mean(defined)) if defined else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of pixels whose class was predicted."""
        return float(self.intersection.sum() / self.true.sum())

    def figures(self) -> dict[str, float]:
        """Mean Dice, pixel accuracy."""
        return {"dice": self.mean_dice, "pixel_accuracy": self.pixel_accuracy}

    def intervals(self) -> dict[str, Interval]:
        """By chance of the images; the error of a mean over classes is at most the mean of their errors."""
        is_defined = np.isfinite(self.dice()[1:])
        errors = [sums.standard_error() for sums, known in zip(self.overlaps[1:], is_defined, strict=True) if known]
        error = float(np.mean(errors)) if errors else float("nan")
        return {"dice": around(self.mean_dice, error), "pixel_accuracy": self.correct.interval()}

    @classmethod
    def merge(cls, parts: Iterable["SegmentationEvaluation"]) -> Self:
        """The images of all; does not depend on the order.

        Raises:
            ValueError: There is none, or they are of different numbers of classes.
        """
        kept = list(parts)
        if len({len(part.true) for part in kept}) != 1:
            raise ValueError("measurements of different numbers of classes, or none; they cannot be merged")
        return cls(
            num_examples=sum(part.num_examples for part in kept),
            loss_sum=add_exactly(part.loss_sum for part in kept),
            intersection=np.sum([part.intersection for part in kept], axis=0),
            predicted=np.sum([part.predicted for part in kept], axis=0),
            true=np.sum([part.true for part in kept], axis=0),
            overlaps=tuple(RatioSums.merge(each) for each in zip(*(part.overlaps for part in kept), strict=True)),
            correct=RatioSums.merge(part.correct for part in kept),
        )

    def to_numbers(self) -> Numbers:
        """All of it, as plain numbers."""
        return {
            "num-examples": self.num_examples,
            "loss-sum": self.loss_sum,
            "intersection-pixels": self.intersection.tolist(),
            "predicted-pixels": self.predicted.tolist(),
            "true-pixels": self.true.tolist(),
            "overlap-sums": [value for sums in self.overlaps for value in sums.to_list()],
            "correct-sums": self.correct.to_list(),
        }

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any]) -> Self:
        """Take back what `to_numbers` gave."""
        evaluation = cls(
            num_examples=read_int(numbers, "num-examples"),
            loss_sum=read_float(numbers, "loss-sum"),
            intersection=np.array(read_ints(numbers, "intersection-pixels"), dtype=np.int64),
            predicted=np.array(read_ints(numbers, "predicted-pixels"), dtype=np.int64),
            true=np.array(read_ints(numbers, "true-pixels"), dtype=np.int64),
            overlaps=_read_overlaps(numbers),
            correct=RatioSums.read(numbers, "correct-sums"),
        )
        evaluation.check_sums()
        _check_pixels(evaluation)
        return evaluation


def _read_overlaps(numbers: Mapping[str, Any]) -> tuple[RatioSums, ...]:
    sums = read_floats(numbers, "overlap-sums")
    if len(sums) % 5:
        raise ValueError(f"overlap-sums are {len(sums)}; expected five for each class")
    return tuple(RatioSums.from_list(sums[start : start + 5]) for start in range(0, len(sums), 5))


def _check_pixels(evaluation: SegmentationEvaluation) -> None:
    intersection, predicted, true = evaluation.intersection, evaluation.predicted, evaluation.true
    if not len(intersection) == len(predicted) == len(true) >= 2:
        raise ValueError(
            f"pixels of {len(intersection)}, {len(predicted)} and {len(true)} classes; expected the same, 2 or more"
        )
    if (intersection < 0).any() or (intersection > np.minimum(predicted, true)).any():
        raise ValueError("intersection-pixels are out of range; expected 0 to the fewer of predicted and true ones")
    if predicted.sum() != true.sum() or not true.sum() or true.sum() % evaluation.num_examples:
        raise ValueError(
            "predicted-pixels and true-pixels; expected the same number of all classes together, as many in each image"
        )
    if len(evaluation.overlaps) != len(true):
        raise ValueError(f"overlap-sums of {len(evaluation.overlaps)} classes; expected {len(true)}")
    stated = [(sums.numerator, sums.denominator) for sums in (*evaluation.overlaps, evaluation.correct)]
    counted = [*zip(2 * intersection, predicted + true, strict=True), (intersection.sum(), true.sum())]
    if stated != [(float(a), float(b)) for a, b in counted]:
        raise ValueError("overlap-sums or correct-sums contradict the pixels of the classes; expected the same counts")
