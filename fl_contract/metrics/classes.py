"""A model of classes measured on patients, exactly or with noise.

An ``Evaluation`` is read off what leaves with noise (`fl_contract.metrics.noised`) too. Shape legend: K = number of
scored classes (1 for a binary task), N = patients.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_contract.metrics.decisions import HALF, Decisions, log_odds
from fl_contract.metrics.histogram import NUM_BINS, NUM_NOISED_BINS, ScoreHistogram, centres, probabilities
from fl_contract.metrics.intervals import UNKNOWN, Interval, around, widen, wilson
from fl_contract.metrics.measurement import Measurement, Numbers, add_exactly, read_float, read_int, read_ints
from fl_contract.metrics.noised import NoisedCounts
from fl_contract.metrics.ratio import RatioSums
from fl_contract.simplex import apportion

NOISE_DRAWS = 100
"""From which what noise does to a figure is taken."""

GROUP_DRAWS = 2000
"""From which the interval of a calibration error is taken."""

_TOLERANCE = 1e-6
"""Of a squared error, for the rounding of probabilities at the bounds of bins."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measurement):
    """One model of classes measured on one hospital's held-out patients, or on several hospitals' together.

    Attributes:
        num_correct: Patients whose class was predicted: the most probable one, or with two classes what the threshold
            decides.
        scores: Their scores.
        brier_sum: Sum over patients of their squared errors, each the sum over scored classes of (p - y)^2 with p the
            predicted probability and y 1 for the patient's class and else 0 (Brier 1950, Monthly Weather Rev. 78).
        brier_square_sum: Sum of the squares of the patients' squared errors.
        decisions: Of two classes by the study's threshold; None for more.
    """

    KIND = "classes"

    num_correct: int
    scores: ScoreHistogram
    brier_sum: float
    brier_square_sum: float
    decisions: Decisions | None

    @classmethod
    def of(
        cls, logits: NDArray[np.floating], labels: NDArray[np.integer], *, loss_sum: float, threshold: float = HALF
    ) -> Self:
        """Measure patients.

        Args:
            logits: [N, K] log-odds of each scored class; finite.
            labels: [N] class of each patient.
            loss_sum: Sum of their losses, in nats.
            threshold: Probability above which a patient has the second of two classes.
        """
        is_binary = logits.shape[1] == 1
        has_class = labels[:, np.newaxis] == (1 if is_binary else np.arange(logits.shape[1]))
        if not is_binary:
            num_correct = int((logits.argmax(axis=1) == labels).sum())
            return cls.of_findings(logits, has_class, loss_sum=loss_sum, num_correct=num_correct)
        is_above = logits[:, 0] > log_odds(threshold)
        decisions = Decisions(
            threshold=threshold,
            true_positives=int((is_above & has_class[:, 0]).sum()),
            true_negatives=int((~is_above & ~has_class[:, 0]).sum()),
        )
        return cls.of_findings(
            logits, has_class, loss_sum=loss_sum, num_correct=decisions.num_correct, decisions=decisions
        )

    @classmethod
    def of_findings(
        cls,
        logits: NDArray[np.floating],
        has_class: NDArray[np.bool_],
        *,
        loss_sum: float,
        num_correct: int,
        decisions: Decisions | None = None,
    ) -> Self:
        """Measure patients whose classes are given one by one, [N, K]; see `of` and the attributes."""
        squared_errors = np.square(probabilities(logits) - has_class).sum(axis=1)
        return cls(
            num_examples=len(logits),
            loss_sum=loss_sum,
            num_correct=num_correct,
            scores=ScoreHistogram.from_findings(logits, has_class),
            brier_sum=add_exactly(squared_errors),
            brier_square_sum=add_exactly(np.square(squared_errors)),
            decisions=decisions,
        )

    @classmethod
    def from_noised(cls, noised: NoisedCounts) -> Self:
        """Read a measurement off noised counts; costs no further privacy.

        The number of patients is the noised total; counts below zero are impossible, so each class's counts are moved
        to the nearest ones that are possible and have that total. Loss and squared errors take a patient at the middle
        of its bin, and decisions the nearest threshold between two bins.
        """
        num_scored = noised.num_scored
        raw = noised.cells[: num_scored * 2 * NUM_NOISED_BINS].reshape(num_scored, 2 * NUM_NOISED_BINS)
        num_examples = max(1, round(float(raw.sum(axis=1).mean())))
        counts = np.stack([apportion(column, num_examples) for column in raw])
        scores = ScoreHistogram(counts=counts.reshape(num_scored, 2, NUM_NOISED_BINS))
        without, with_class = scores.counts[:, 0], scores.counts[:, 1]
        middles = centres(NUM_NOISED_BINS)
        errors = np.stack([probabilities(middles), probabilities(-middles)]) ** 2
        brier_sum = float((scores.counts * errors).sum())
        if num_scored == 1:
            losses = with_class @ np.logaddexp(0, -middles) + without @ np.logaddexp(0, middles)
            decisions = Decisions.read_off(scores, noised.threshold)
            return cls(
                num_examples=num_examples,
                loss_sum=float(losses[0]),
                num_correct=decisions.num_correct,
                scores=scores,
                brier_sum=brier_sum,
                brier_square_sum=float((scores.counts * errors**2).sum()),
                decisions=decisions,
                noised=noised,
            )
        labelled = max(1, int(with_class.sum()))
        loss = float((with_class @ np.logaddexp(0, -middles)).sum()) / labelled
        return cls(
            num_examples=num_examples,
            loss_sum=loss * num_examples,
            num_correct=min(max(int(noised.cells[-1]), 0), num_examples),
            scores=scores,
            brier_sum=min(brier_sum, 2.0 * num_examples),
            brier_square_sum=2.0 * min(brier_sum, 2.0 * num_examples),  # the most it can be: classes are not joined
            decisions=None,
            noised=noised,
        )

    def coarse_cells(self) -> NDArray[np.int64]:
        """The cells that `NoisedCounts` has, without noise unless it was added."""
        if self.noised is not None:
            return self.noised.cells
        coarse = self.scores.coarsen()
        return coarse.ravel() if len(coarse) == 1 else np.append(coarse.ravel(), self.num_correct)

    @property
    def threshold(self) -> float:
        """Of the study; noised decisions are read off at another one, the nearest between two bins."""
        source = self.noised or self.decisions
        return source.threshold if source else HALF

    def to_numbers(self) -> Numbers:
        """All of it, as plain numbers."""
        numbers: Numbers = {
            "num-examples": self.num_examples,
            "loss-sum": self.loss_sum,
            "num-correct": self.num_correct,
            "score-counts": [int(count) for count in self.scores.counts.ravel()],
            "brier-sum": self.brier_sum,
            "brier-square-sum": self.brier_square_sum,
        }
        if self.decisions is not None:
            numbers["threshold"] = self.decisions.threshold
            numbers["true-positives"] = self.decisions.true_positives
            numbers["true-negatives"] = self.decisions.true_negatives
        return numbers

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
            brier_sum=read_float(numbers, "brier-sum"),
            brier_square_sum=read_float(numbers, "brier-square-sum"),
            decisions=_read_decisions(numbers) if "threshold" in numbers else None,
        )
        evaluation.check_sums()
        evaluation.check_counts()
        _check_brier(evaluation)
        _check_decisions(evaluation)
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
        """Areas, shares at the threshold, and how far probabilities are from what came."""
        shares = {measure: part / all_ if all_ else float("nan") for measure, (part, all_) in self._shares().items()}
        return {
            "auroc": self.auroc,
            "auprc": self.scores.auprc_with_error()[0],
            **shares,
            "brier": self.brier_sum / self.num_examples,
            "calibration_error": self.scores.calibration_error(),
        }

    def intervals(self) -> dict[str, Interval]:
        """By chance of the patients, and of the noise where there is some.

        Areas by `around` with their standard errors, shares by `wilson`, the Brier score as a mean, and the calibration
        error by redrawing it, with the noise. What noise adds to the others is the root mean square by which as much
        noise once more moves a figure: it holds what noise adds in spread and what it takes off on average.
        """
        mean_error = RatioSums.from_list(
            [self.brier_sum, self.num_examples, self.brier_square_sum, self.brier_sum, self.num_examples]
        )
        found = {
            "auroc": around(*self.scores.auroc_with_error()),
            "auprc": around(*self.scores.auprc_with_error()),
            **{measure: wilson(*counts) for measure, counts in self._shares().items()},
            "brier": mean_error.interval(most=self.most_squared_error),
        }
        if self.noised is not None:
            figures, errors = self.figures(), self._noise_errors()
            most = {"brier": self.most_squared_error}
            found = {
                measure: widen(interval, figures[measure], errors[measure], most=most.get(measure, 1.0))
                for measure, interval in found.items()
            }
        noise_scale = self.noised.noise_scale if self.noised else 0.0
        return {**found, "calibration_error": _redraw_calibration_error(self.scores, noise_scale)}

    @classmethod
    def merge(cls, parts: Iterable["Evaluation"]) -> Self:
        """The evaluation of all hospitals' patients together; does not depend on the order.

        Where one has noise the whole is read off the sum of noised counts, whose noise partly cancels.

        Raises:
            ValueError: There is none, or they score different numbers of classes, or decide by different thresholds.
        """
        kept = list(parts)
        if not kept:
            raise ValueError("nothing to merge; expected at least one evaluation")
        if len({len(part.scores.counts) for part in kept}) > 1:
            raise ValueError("evaluations score different numbers of classes; they cannot be merged")
        if len({part.threshold for part in kept}) > 1:
            raise ValueError("evaluations decide by different thresholds; they cannot be merged")
        scales = [part.noised.noise_scale for part in kept if part.noised is not None]
        if scales:
            cells = np.sum([part.coarse_cells() for part in kept], axis=0)
            scale = float(np.sqrt(np.square(scales).sum()))
            return cls.from_noised(NoisedCounts(cells=cells, noise_scale=scale, threshold=kept[0].threshold))
        decided = [part.decisions for part in kept if part.decisions is not None]
        return cls(
            num_examples=sum(part.num_examples for part in kept),
            loss_sum=add_exactly(part.loss_sum for part in kept),
            num_correct=sum(part.num_correct for part in kept),
            scores=ScoreHistogram(counts=np.sum([part.scores.counts for part in kept], axis=0)),
            brier_sum=add_exactly(part.brier_sum for part in kept),
            brier_square_sum=add_exactly(part.brier_square_sum for part in kept),
            decisions=Decisions(
                threshold=kept[0].threshold,
                true_positives=sum(part.true_positives for part in decided),
                true_negatives=sum(part.true_negatives for part in decided),
            )
            if decided
            else None,
        )

    @property
    def most_squared_error(self) -> float:
        """The squared error of a patient at worst: certain of another class."""
        return 1.0 if len(self.scores.counts) == 1 else 2.0

    def _shares(self) -> dict[str, tuple[int, int]]:
        """Counts that figures are shares of, and of how many."""
        shares = {"accuracy": (self.num_correct, self.num_examples)}
        if self.decisions is not None:
            num_with = self.scores.num_positive
            shares["sensitivity"] = (self.decisions.true_positives, num_with)
            shares["specificity"] = (self.decisions.true_negatives, self.num_examples - num_with)
        return shares

    def _noise_errors(self) -> dict[str, float]:
        if self.noised is None:
            return {}
        generator = np.random.default_rng(0)  # the same figures each time they are asked for
        drawn = [self.from_noised(self.noised.draw_again(generator)).figures() for _ in range(NOISE_DRAWS)]
        return {
            measure: _root_mean_square(np.array([figures[measure] - value for figures in drawn]))
            for measure, value in self.figures().items()
        }


def _root_mean_square(moves: NDArray[np.float64]) -> float:
    defined = moves[np.isfinite(moves)]
    return float(np.sqrt(np.mean(np.square(defined)))) if defined.size else float("nan")


def _redraw_calibration_error(scores: ScoreHistogram, noise_scale: float) -> Interval:
    """Basic bootstrap (Davison & Hinkley 1997, section 5.2): patients of each group are redrawn, as their sums are.

    A calibration error is too large on average, and redrawing makes it as much too large again, which this takes off.
    The interval begins at 0 where probabilities that are right would show as large an error in more than 1 of 20 draws.
    """
    total = int(scores.counts.sum())
    if total == 0:
        return UNKNOWN
    surplus, variance = scores.surplus_of_groups(noise_scale)
    generator = np.random.default_rng(0)  # the same interval each time it is asked for
    moves = np.sqrt(variance) * generator.standard_normal((GROUP_DRAWS, len(surplus)))
    again, by_chance = (np.abs(start + moves).sum(axis=1) / total for start in (surplus, 0.0))
    measured = scores.calibration_error()
    low, high = (2 * measured - float(np.quantile(again, chance)) for chance in (0.975, 0.025))
    is_explained = measured <= np.quantile(by_chance, 0.95)
    return 0.0 if is_explained else max(0.0, low), min(1.0, max(measured, high))


def _read_decisions(numbers: Mapping[str, Any]) -> Decisions:
    return Decisions(
        threshold=read_float(numbers, "threshold"),
        true_positives=read_int(numbers, "true-positives"),
        true_negatives=read_int(numbers, "true-negatives"),
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


def _check_brier(evaluation: Evaluation) -> None:
    least, most = ((evaluation.scores.counts * bound).sum() for bound in evaluation.scores.squared_errors())
    slack = _TOLERANCE * evaluation.num_examples
    if not least - slack <= evaluation.brier_sum <= most + slack:
        raise ValueError(f"brier-sum is out of range; the score-counts leave {least:.6g} to {most:.6g}")
    lower = evaluation.brier_sum**2 / evaluation.num_examples
    upper = evaluation.most_squared_error * evaluation.brier_sum
    if not lower - slack <= evaluation.brier_square_sum <= upper + slack:
        raise ValueError(f"brier-square-sum is out of range; brier-sum leaves {lower:.6g} to {upper:.6g}")


def _check_decisions(evaluation: Evaluation) -> None:
    decisions = evaluation.decisions
    if decisions is None:
        return
    if len(evaluation.scores.counts) > 1:
        raise ValueError(f"threshold={decisions.threshold} of {len(evaluation.scores.counts)} classes; expected none")
    decisions.check(evaluation.scores)
    if decisions.num_correct != evaluation.num_correct:
        raise ValueError("num-correct is not the sum of true-positives and true-negatives")
