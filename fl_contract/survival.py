"""Survival: the only place for the loss of follow-up times and for how well risks rank them.

An outcome is a time of follow-up and whether the event came then (1) or the patient was only known to be free of it
until then (0, censored). Shape legend: B = patients.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def cox_losses(risks_B: Tensor, outcomes_B2: Tensor) -> Tensor:
    """Negative log partial likelihood of each event, Breslow's way with ties (Breslow 1974, Biometrics 30).

    Args:
        risks_B: Log hazard ratios.
        outcomes_B2: Times and events.

    Returns:
        [B], in nats, at least 0; 0 for a censored patient. A patient's value depends on all patients of the batch who
        are still followed at that time, so it is no loss of one record alone, and DP-SGD cannot clip it.
    """
    times, events = outcomes_B2[:, 0], outcomes_B2[:, 1]
    order = torch.argsort(times, descending=True, stable=True)
    at_risk = torch.logcumsumexp(risks_B[order], dim=0)
    # All patients with the same time are at risk together: each takes the sum up to the last of them.
    _, counts = torch.unique_consecutive(times[order], return_counts=True)
    at_risk = at_risk[(counts.cumsum(0) - 1).repeat_interleave(counts)]
    losses = torch.zeros_like(risks_B)
    losses[order] = at_risk - risks_B[order]
    return losses * events


def cox_loss(risks_B: Tensor, outcomes_B2: Tensor) -> Tensor:
    """The mean of `cox_losses` over the events; 0 for a batch without one, which teaches nothing."""
    return cox_losses(risks_B, outcomes_B2).sum() / outcomes_B2[:, 1].sum().clamp(min=1.0)


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
    def of(cls, risks: NDArray[np.floating], outcomes: NDArray[np.floating]) -> Self:
        """Count the pairs.

        Args:
            risks: [B] log hazard ratios; finite.
            outcomes: [B, 2] times and events.
        """
        times, events = outcomes[:, 0], outcomes[:, 1]
        concordant = tied = comparable = 0
        for patient in np.flatnonzero(events == 1):
            later = (times > times[patient]) | ((times == times[patient]) & (events == 0))
            comparable += int(later.sum())
            concordant += int((risks[later] < risks[patient]).sum())
            tied += int((risks[later] == risks[patient]).sum())
        return cls(concordant=concordant, tied=tied, comparable=comparable)

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
class SurvivalEvaluation:
    """One model of risks measured on one hospital's held-out patients, or on several hospitals' together.

    Attributes:
        num_examples: Patients measured; at least 1.
        loss_sum: Sum of their `cox_losses`, each against the patients of its own hospital, in nats.
        pairs: How their risks are ordered within hospitals.
    """

    num_examples: int
    loss_sum: float
    pairs: PairCounts

    @classmethod
    def of(cls, risks_B: Tensor, outcomes_B2: Tensor) -> Self:
        """Measure one hospital's patients."""
        losses = cox_losses(risks_B.double(), outcomes_B2.double())
        return cls(
            num_examples=len(risks_B),
            loss_sum=float(losses.sum()),
            pairs=PairCounts.of(risks_B.numpy(), outcomes_B2.numpy()),
        )

    @classmethod
    def merge(cls, parts: Iterable["SurvivalEvaluation"]) -> Self:
        """The patients of all; does not depend on the order."""
        kept = list(parts)
        pairs = [part.pairs for part in kept]
        return cls(
            num_examples=sum(part.num_examples for part in kept),
            loss_sum=float(np.sum(sorted(part.loss_sum for part in kept))),
            pairs=sum(pairs[1:], start=pairs[0]),
        )

    @property
    def noised(self) -> None:
        """There is no noise in it: what noise it would need is not known."""
        return None

    @property
    def loss(self) -> float:
        """Mean loss over patients, in nats."""
        return self.loss_sum / self.num_examples

    def figures(self) -> dict[str, float]:
        """What is reported of it, the measure that models are compared by first; NaN where it is not defined."""
        return {"c_index": self.pairs.c_index}

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {"num_examples": self.num_examples, "loss_sum": self.loss_sum, "pairs": asdict(self.pairs)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Take back what `to_json` gave."""
        return cls(
            num_examples=fields["num_examples"], loss_sum=fields["loss_sum"], pairs=PairCounts(**fields["pairs"])
        )
