"""A model of findings measured on patients, each of whom has any number of them."""

from dataclasses import dataclass

from fl_contract.metrics.classes import Evaluation, check_scores


@dataclass(frozen=True, kw_only=True)
class MultiLabelEvaluation(Evaluation):
    """One model of findings measured on one hospital's held-out patients, or on several hospitals' together.

    What noise it would need is not known: there is no noised one.

    Attributes:
        num_correct: Pairs of a patient and a finding that were predicted rightly.
        scores: Of each finding, with and without it.
        brier_sum: Of patients, whose squared error is the sum over their findings.
    """

    KIND = "multi-label"

    @property
    def num_pairs(self) -> int:
        """Pairs of a patient and a finding."""
        return self.num_examples * len(self.scores.counts)

    @property
    def accuracy(self) -> float:
        """Share of pairs of a patient and a finding that were predicted rightly."""
        return self.num_correct / self.num_pairs

    @property
    def most_squared_error(self) -> float:
        """The squared error of a patient at worst: certain of the opposite of each finding."""
        return float(len(self.scores.counts))

    def _shares(self) -> dict[str, tuple[int, int]]:
        return {"accuracy": (self.num_correct, self.num_pairs)}

    def check_counts(self) -> None:
        """Refuse counts that contradict each other."""
        check_scores(self.scores, self.num_examples)
        if not 0 <= self.num_correct <= self.num_pairs:
            raise ValueError(
                f"num-correct is out of range; expected 0 to {self.num_pairs} pairs of a patient and a finding"
            )
        if self.decisions is not None:
            raise ValueError("threshold of findings; expected none")
