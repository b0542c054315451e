"""A model of risks measured on patients whose outcome is a time of follow-up.

An outcome is a time and whether the event came then (1) or the patient was only known to be free of it until then
(0, censored). Shape legend: B = patients.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_contract.metrics.intervals import Interval
from fl_contract.metrics.measurement import Measurement, Numbers, add_exactly, read_float, read_int
from fl_contract.metrics.ratio import RatioSums


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Pairs of patients of one hospital whose order of events is known, and how risks order them.

    A pair is comparable if the earlier time is an event's; with equal times, if one is an event and one is censored.
    Pairs across hospitals are not counted, so sums over hospitals say how patients are ranked within their own.
    Source: Harrell et al., JAMA 247 (1982).

    Attributes:
        concordant: The patient with the earlier event has the higher risk.
        tied: Both have the same risk.
        comparable: All of them.
    """

    concordant: int
    tied: int
    comparable: int

    def __post_init__(self) -> None:
        if min(self.concordant, self.tied) < 0 or self.concordant + self.tied > self.comparable:
            raise ValueError(
                f"{self.concordant} concordant and {self.tied} tied of {self.comparable} pairs; "
                "expected counts of at least 0 that are no more than all"
            )

    @classmethod
    def of(cls, risks: NDArray[np.floating], outcomes: NDArray[np.floating]) -> tuple[Self, RatioSums]:
        """Count the pairs, once and for each patient.

        Args:
            risks: [B] log hazard ratios; finite.
            outcomes: [B, 2] times and events.

        Returns:
            The pairs, and sums over patients of the pairs that a patient is in: concordant ones with half of the tied
            ones, and all comparable ones.
        """
        times, events = outcomes[:, 0], outcomes[:, 1]
        concordant = tied = comparable = 0
        right, all_ = np.zeros(len(risks)), np.zeros(len(risks))
        for patient in np.flatnonzero(events == 1):
            later = (times > times[patient]) | ((times == times[patient]) & (events == 0))
            is_right, is_tied = later & (risks < risks[patient]), later & (risks == risks[patient])
            comparable += int(later.sum())
            concordant += int(is_right.sum())
            tied += int(is_tied.sum())
            weight = is_right + is_tied / 2
            right += weight
            right[patient] += weight.sum()
            all_ += later
            all_[patient] += later.sum()
        return cls(concordant=concordant, tied=tied, comparable=comparable), RatioSums.of(right, all_)

    def __add__(self, other: "PairCounts") -> "PairCounts":
        """The pairs of both."""
        return PairCounts(
            concordant=self.concordant + other.concordant,
            tied=self.tied + other.tied,
            comparable=self.comparable + other.comparable,
        )

    @property
    def c_index(self) -> float:
        """Share of comparable pairs that are concordant, ties counted half; NaN without a pair."""
        return (self.concordant + self.tied / 2) / self.comparable if self.comparable else float("nan")


@dataclass(frozen=True, kw_only=True)
class SurvivalEvaluation(Measurement):
    """One model of risks measured on one hospital's held-out patients, or on several hospitals' together.

    The loss is that of `fl_contract.tasks.survival.cox_losses`, each patient's against those of the own hospital. What
    noise it would need is not known: there is no noised one.

    Attributes:
        pairs: How their risks are ordered within hospitals.
        pairs_of_patients: Sums over patients of the pairs that a patient is in, see `PairCounts.of`; each pair is in
            those of two patients.
    """

    KIND = "survival"

    pairs: PairCounts
    pairs_of_patients: RatioSums

    @classmethod
    def merge(cls, parts: Iterable["SurvivalEvaluation"]) -> Self:
        """The patients of all; does not depend on the order."""
        kept = list(parts)
        pairs = [part.pairs for part in kept]
        return cls(
            num_examples=sum(part.num_examples for part in kept),
            loss_sum=add_exactly(part.loss_sum for part in kept),
            pairs=sum(pairs[1:], start=pairs[0]),
            pairs_of_patients=RatioSums.merge(part.pairs_of_patients for part in kept),
        )

    def figures(self) -> dict[str, float]:
        """C-index."""
        return {"c_index": self.pairs.c_index}

    def intervals(self) -> dict[str, Interval]:
        """By chance of the patients of each hospital: the C-index is a U-statistic of pairs of them."""
        return {"c_index": self.pairs_of_patients.interval(order=2)}

    def to_numbers(self) -> Numbers:
        """All of it, as plain numbers."""
        return {
            "num-examples": self.num_examples,
            "loss-sum": self.loss_sum,
            "concordant": self.pairs.concordant,
            "tied": self.pairs.tied,
            "comparable": self.pairs.comparable,
            "pair-sums": self.pairs_of_patients.to_list(),
        }

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any]) -> Self:
        """Take back what `to_numbers` gave."""
        evaluation = cls(
            num_examples=read_int(numbers, "num-examples"),
            loss_sum=read_float(numbers, "loss-sum"),
            pairs=PairCounts(**{key: read_int(numbers, key) for key in ("concordant", "tied", "comparable")}),
            pairs_of_patients=RatioSums.read(numbers, "pair-sums"),
        )
        evaluation.check_sums()
        most = evaluation.num_examples * (evaluation.num_examples - 1) // 2
        if evaluation.pairs.comparable > most:
            raise ValueError(
                f"comparable={evaluation.pairs.comparable}; expected no more pairs than {evaluation.num_examples} "
                "patients have"
            )
        _check_pair_sums(evaluation)
        return evaluation


def _check_pair_sums(evaluation: SurvivalEvaluation) -> None:
    """Each pair is in two patients' counts, which are at most all other patients."""
    pairs, sums = evaluation.pairs, evaluation.pairs_of_patients
    if (sums.numerator, sums.denominator) != (2 * pairs.concordant + pairs.tied, 2 * pairs.comparable):
        raise ValueError("pair-sums contradict concordant, tied and comparable; expected each pair at two patients")
    others = evaluation.num_examples - 1
    if not sums.square_numerator <= sums.product <= sums.square_denominator <= others * sums.denominator:
        raise ValueError("pair-sums are out of range; expected no patient with more pairs than other patients")
