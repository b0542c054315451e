"""A model of a knowledge graph's links measured on facts that were held out.

Ranks are raw ones: another entity that completes a fact as truly counts as an error, whether or not a hospital knows
it. Source: Bordes et al., NeurIPS 26 (2013), section 4.2.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_contract.metrics.intervals import Interval, wilson
from fl_contract.metrics.measurement import Measurement, Numbers, add_exactly, read_float, read_int
from fl_contract.metrics.ratio import RatioSums
from fl_contract.metrics.regression import ROUNDING


@dataclass(frozen=True, kw_only=True)
class LinkEvaluation(Measurement):
    """One model of links measured on one hospital's held-out facts, or on several hospitals' together.

    What noise it would need is not known: there is no noised one.

    Attributes:
        num_examples: Facts.
        reciprocal_rank_sum: Of 1 over the true tail's rank among all entities, 1 being the best.
        reciprocal_rank_square_sum: Of its square.
        hits_at_1: Facts whose true tail has rank 1.
        hits_at_10: Facts whose true tail has rank 10 or better.
    """

    KIND = "link-prediction"

    reciprocal_rank_sum: float
    reciprocal_rank_square_sum: float
    hits_at_1: int
    hits_at_10: int

    @classmethod
    def of(cls, ranks: NDArray[np.float64], *, loss_sum: float) -> Self:
        """Add up.

        Args:
            ranks: [N] from 1; entities that score the same share the mean of their ranks.
            loss_sum: Of all facts.
        """
        return cls(
            num_examples=len(ranks),
            loss_sum=loss_sum,
            reciprocal_rank_sum=add_exactly(1 / ranks),
            reciprocal_rank_square_sum=add_exactly(np.square(1 / ranks)),
            hits_at_1=int((ranks <= 1).sum()),
            hits_at_10=int((ranks <= 10).sum()),
        )

    def figures(self) -> dict[str, float]:
        """Mean reciprocal rank, shares of facts with rank 1 and with rank 10 or better."""
        return {
            "mrr": self.reciprocal_rank_sum / self.num_examples,
            "hits_at_1": self.hits_at_1 / self.num_examples,
            "hits_at_10": self.hits_at_10 / self.num_examples,
        }

    def intervals(self) -> dict[str, Interval]:
        """By chance of the facts: the rank as a mean, hits as shares."""
        total, count = self.reciprocal_rank_sum, float(self.num_examples)
        mean = RatioSums.from_list([total, count, self.reciprocal_rank_square_sum, total, count])
        return {
            "mrr": mean.interval(),
            "hits_at_1": wilson(self.hits_at_1, self.num_examples),
            "hits_at_10": wilson(self.hits_at_10, self.num_examples),
        }

    @classmethod
    def merge(cls, parts: Iterable["LinkEvaluation"]) -> Self:
        """The facts of all; does not depend on the order."""
        kept = list(parts)
        return cls(
            num_examples=sum(part.num_examples for part in kept),
            loss_sum=add_exactly(part.loss_sum for part in kept),
            reciprocal_rank_sum=add_exactly(part.reciprocal_rank_sum for part in kept),
            reciprocal_rank_square_sum=add_exactly(part.reciprocal_rank_square_sum for part in kept),
            hits_at_1=sum(part.hits_at_1 for part in kept),
            hits_at_10=sum(part.hits_at_10 for part in kept),
        )

    def to_numbers(self) -> Numbers:
        """All of it, as plain numbers."""
        return {
            "num-examples": self.num_examples,
            "loss-sum": self.loss_sum,
            "reciprocal-rank-sum": self.reciprocal_rank_sum,
            "reciprocal-rank-square-sum": self.reciprocal_rank_square_sum,
            "hits-at-1": self.hits_at_1,
            "hits-at-10": self.hits_at_10,
        }

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any]) -> Self:
        """Take back what `to_numbers` gave."""
        evaluation = cls(
            num_examples=read_int(numbers, "num-examples"),
            loss_sum=read_float(numbers, "loss-sum"),
            reciprocal_rank_sum=read_float(numbers, "reciprocal-rank-sum"),
            reciprocal_rank_square_sum=read_float(numbers, "reciprocal-rank-square-sum"),
            hits_at_1=read_int(numbers, "hits-at-1"),
            hits_at_10=read_int(numbers, "hits-at-10"),
        )
        evaluation.check_sums()
        if not 0 <= evaluation.hits_at_1 <= evaluation.hits_at_10 <= evaluation.num_examples:
            raise ValueError("hits-at-1 and hits-at-10; expected 0 to all facts, at 1 no more than at 10")
        least = evaluation.hits_at_1 + (evaluation.hits_at_10 - evaluation.hits_at_1) / 10
        if not least * (1 - ROUNDING) <= evaluation.reciprocal_rank_sum <= evaluation.num_examples * (1 + ROUNDING):
            raise ValueError("reciprocal-rank-sum contradicts the hits; expected what facts of such ranks add up to")
        total, squares = evaluation.reciprocal_rank_sum, evaluation.reciprocal_rank_square_sum
        if not total**2 / evaluation.num_examples * (1 - ROUNDING) <= squares <= total * (1 + ROUNDING):
            raise ValueError("reciprocal-rank-square-sum contradicts reciprocal-rank-sum; ranks are at least 1")
        return evaluation
