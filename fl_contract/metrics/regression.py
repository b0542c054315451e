"""A model of a number measured on patients.

All sums are in the target's unit. Targets are counted from the middle of their range, which the study says: large
numbers that differ little would lose their differences in a sum of squares.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_contract.metrics.intervals import UNKNOWN, Interval, around
from fl_contract.metrics.measurement import Measurement, Numbers, add_exactly, read_float, read_int
from fl_contract.metrics.ratio import RatioSums

ROUNDING = 1e-9
"""Relative; by which sums of rounded numbers may break an inequality between them."""


@dataclass(frozen=True, kw_only=True)
class RegressionEvaluation(Measurement):
    """One model of a number measured on one hospital's held-out patients, or on several hospitals' together.

    What noise it would need is not known: there is no noised one.

    Attributes:
        absolute_error_sum: Of the errors' sizes.
        squared_error_sum: Of their squares.
        fourth_power_sum: Of the squares of these, for the interval of their mean.
        target_sum: Of the targets, from the middle of their range.
        target_square_sum: Of the squares of the same.
    """

    KIND = "regression"

    absolute_error_sum: float
    squared_error_sum: float
    fourth_power_sum: float
    target_sum: float
    target_square_sum: float

    @classmethod
    def of(cls, errors: NDArray[np.float64], targets: NDArray[np.float64], *, loss_sum: float) -> Self:
        """Add up.

        Args:
            errors: [N] predicted minus true, in the target's unit; finite.
            targets: [N] from the middle of their range.
            loss_sum: Of all patients.
        """
        return cls(
            num_examples=len(errors),
            loss_sum=loss_sum,
            absolute_error_sum=add_exactly(np.abs(errors)),
            squared_error_sum=add_exactly(np.square(errors)),
            fourth_power_sum=add_exactly(np.square(np.square(errors))),
            target_sum=add_exactly(targets),
            target_square_sum=add_exactly(np.square(targets)),
        )

    @property
    def r2(self) -> float:
        """Share of the targets' variance that is predicted; NaN where all targets are the same."""
        spread = self.target_square_sum - self.target_sum**2 / self.num_examples
        if spread <= ROUNDING * self.target_square_sum:
            return math.nan
        return 1 - self.squared_error_sum / spread

    @property
    def mae(self) -> float:
        """Mean absolute error."""
        return self.absolute_error_sum / self.num_examples

    @property
    def rmse(self) -> float:
        """Root of the mean squared error."""
        return math.sqrt(self.squared_error_sum / self.num_examples)

    def figures(self) -> dict[str, float]:
        """R², mean absolute error, root mean squared error; the errors in the target's unit."""
        return {"r2": self.r2, "mae": self.mae, "rmse": self.rmse}

    def intervals(self) -> dict[str, Interval]:
        """R² after Olkin and Finn (1995, Psychol. Bull. 118), errors as means over patients.

        The variance of R² is 4 R² (1 - R²)² / N for many patients; it holds for what predicts something, R² above 0.
        """
        count, explained = float(self.num_examples), self.r2
        absolute = RatioSums.from_list(
            [self.absolute_error_sum, count, self.squared_error_sum, self.absolute_error_sum, count]
        )
        squared = RatioSums.from_list(
            [self.squared_error_sum, count, self.fourth_power_sum, self.squared_error_sum, count]
        )
        low, high = squared.interval(most=math.inf)
        by_chance = UNKNOWN
        if explained > 0:
            by_chance = around(explained, 2 * math.sqrt(explained / count) * (1 - explained))
        return {"r2": by_chance, "mae": absolute.interval(most=math.inf), "rmse": (math.sqrt(low), math.sqrt(high))}

    @classmethod
    def merge(cls, parts: Iterable["RegressionEvaluation"]) -> Self:
        """The patients of all; does not depend on the order."""
        kept = list(parts)
        return cls(
            num_examples=sum(part.num_examples for part in kept),
            loss_sum=add_exactly(part.loss_sum for part in kept),
            absolute_error_sum=add_exactly(part.absolute_error_sum for part in kept),
            squared_error_sum=add_exactly(part.squared_error_sum for part in kept),
            fourth_power_sum=add_exactly(part.fourth_power_sum for part in kept),
            target_sum=add_exactly(part.target_sum for part in kept),
            target_square_sum=add_exactly(part.target_square_sum for part in kept),
        )

    def to_numbers(self) -> Numbers:
        """All of it, as plain numbers."""
        return {
            "num-examples": self.num_examples,
            "loss-sum": self.loss_sum,
            "absolute-error-sum": self.absolute_error_sum,
            "squared-error-sum": self.squared_error_sum,
            "fourth-power-sum": self.fourth_power_sum,
            "target-sum": self.target_sum,
            "target-square-sum": self.target_square_sum,
        }

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any]) -> Self:
        """Take back what `to_numbers` gave."""
        evaluation = cls(
            num_examples=read_int(numbers, "num-examples"),
            loss_sum=read_float(numbers, "loss-sum"),
            absolute_error_sum=read_float(numbers, "absolute-error-sum"),
            squared_error_sum=read_float(numbers, "squared-error-sum"),
            fourth_power_sum=read_float(numbers, "fourth-power-sum"),
            target_sum=read_float(numbers, "target-sum"),
            target_square_sum=read_float(numbers, "target-square-sum"),
        )
        evaluation.check_sums()
        squares = (evaluation.squared_error_sum, evaluation.fourth_power_sum, evaluation.target_square_sum)
        if min(evaluation.absolute_error_sum, *squares) < 0:
            raise ValueError("a sum of absolute errors or of squares is below 0; expected at least 0")
        _check_squares("error", evaluation.absolute_error_sum, evaluation.squared_error_sum, evaluation.num_examples)
        _check_squares(
            "squared error", evaluation.squared_error_sum, evaluation.fourth_power_sum, evaluation.num_examples
        )
        _check_squares("target", evaluation.target_sum, evaluation.target_square_sum, evaluation.num_examples)
        return evaluation


def _check_squares(name: str, total: float, squares: float, count: int) -> None:
    """No numbers add up to more than the root of their count times their squares (Cauchy and Schwarz)."""
    if abs(total) > math.sqrt(count) * math.sqrt(squares) * (1 + ROUNDING):
        raise ValueError(f"sums of {name}s and of their squares contradict each other; expected those of {count}")
