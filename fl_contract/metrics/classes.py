"""A model of classes measured on patients, exactly or with noise.

An ``Evaluation`` is read off what leaves with noise (`fl_contract.metrics.noised`) too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_contract.metrics.histogram import NUM_BINS, NUM_NOISED_BINS, ScoreHistogram, centres
from fl_contract.metrics.measurement import Measurement, Numbers, add_exactly, read_float, read_int, read_ints
from fl_contract.metrics.noised import NoisedCounts
from fl_contract.simplex import apportion


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measurement):
    """One model of classes measured on one hospital's held-out patients, or on several hospitals' together.

    Attributes:
        num_correct: Patients whose class was predicted.
        scores: Their scores.
    """

    KIND = "classes"

    num_correct: int
    scores: ScoreHistogram

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
        middles = centres(NUM_NOISED_BINS)
        if num_scored == 1:
            losses = with_class @ np.logaddexp(0, -middles) + without @ np.logaddexp(0, middles)
            correct = int(with_class[0, middles > 0].sum() + without[0, middles < 0].sum())
            return cls(
                num_examples=num_examples, loss_sum=float(losses[0]), num_correct=correct, scores=scores, noised=noised
            )
        labelled = max(1, int(with_class.sum()))
        loss = float((with_class @ np.logaddexp(0, -middles)).sum()) / labelled
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

    def to_numbers(self) -> Numbers:
        """All of it, as plain numbers."""
        return {
            "num-examples": self.num_examples,
            "loss-sum": self.loss_sum,
            "num-correct": self.num_correct,
            "score-counts": [int(count) for count in self.scores.counts.ravel()],
        }

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any]) -> Self:
        """Take back what `to_numbers` gave."""
        counts = np.array(read_ints(numbers, "score-counts"), dtype=np.int64)
        if not counts.size or counts.size % (2 * NUM_BINS):
            raise ValueError(f"score-counts has {counts.size} entries; expected a multiple of {2 * NUM_BINS}")
        evaluation = cls(
            num_examples=read_int(numbers, "num-examples"),
            loss_sum=read_float(numbers, "loss-sum"),
            num_correct=read_int(numbers, "num-correct"),
            scores=ScoreHistogram(counts=counts.reshape(-1, 2, NUM_BINS)),
        )
        evaluation.check_sums()
        evaluation.check_counts()
        return evaluation

    def check_counts(self) -> None:
        """Refuse counts that contradict each other.

        Raises:
            ValueError: Names the count.
        """
        check_scores(self.scores, self.num_examples)
        if len(self.scores.counts) > 1 and (labelled := int(self.scores.counts[:, 1].sum())) != self.num_examples:
            raise ValueError(
                f"num-examples={self.num_examples} and {labelled} labels; expected one class for each patient"
            )
        if not 0 <= self.num_correct <= self.num_examples:
            raise ValueError("num-correct is out of range; expected 0 to num-examples correct")

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON can hold it; one with noise as its noised counts, which all else follows from."""
        return super().to_json() if self.noised is None else self.noised.to_json()

    @property
    def accuracy(self) -> float:
        """Share of patients whose class was predicted."""
        return self.num_correct / self.num_examples

    @property
    def auroc(self) -> float:
        """Area under the ROC curve, see `ScoreHistogram.auroc`."""
        return self.scores.auroc()

    def figures(self) -> dict[str, float]:
        """AUROC, accuracy."""
        return {"auroc": self.auroc, "accuracy": self.accuracy}

    @classmethod
    def merge(cls, parts: Iterable["Evaluation"]) -> Self:
        """The evaluation of all hospitals' patients together; does not depend on the order.

        Where one has noise the whole is read off the sum of noised counts, whose noise partly cancels.

        Raises:
            ValueError: There is none, or they score different numbers of classes.
        """
        kept = list(parts)
        if not kept:
            raise ValueError("nothing to merge; expected at least one evaluation")
        if len({len(part.scores.counts) for part in kept}) > 1:
            raise ValueError("evaluations score different numbers of classes; they cannot be merged")
        scales = [part.noised.noise_scale for part in kept if part.noised is not None]
        if scales:
            cells = np.sum([part.coarse_cells() for part in kept], axis=0)
            return cls.from_noised(NoisedCounts(cells=cells, noise_scale=float(np.sqrt(np.square(scales).sum()))))
        return cls(
            num_examples=sum(part.num_examples for part in kept),
            loss_sum=add_exactly(part.loss_sum for part in kept),
            num_correct=sum(part.num_correct for part in kept),
            scores=ScoreHistogram(counts=np.sum([part.scores.counts for part in kept], axis=0)),
        )


def check_scores(scores: ScoreHistogram, num_examples: int) -> None:
    """Refuse scores that are not one of each patient in each class.

    Raises:
        ValueError: Names the class.
    """
    counts = scores.counts.astype(object)  # Python's integers, which do not overflow
    for column, scored in enumerate(counts.sum(axis=(1, 2))):
        if scored != num_examples:
            raise ValueError(f"num-examples={num_examples} and {scored} scores of class {column}; expected the same")
