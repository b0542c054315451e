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
    """

    KIND = "multi-label"

    @property
    def accuracy(self) -> float:
        """Share of pairs of a patient and a finding that were predicted rightly."""
        return self.num_correct / (self.num_examples * len(self.scores.counts))

    def check_counts(self) -> None:
        """Refuse counts that contradict each other."""
        check_scores(self.scores, self.num_examples)
        num_pairs = self.num_examples * len(self.scores.counts)
        if not 0 <= self.num_correct <= num_pairs:
            raise ValueError(f"num-correct is out of range; expected 0 to {num_pairs} pairs of a patient and a finding")
