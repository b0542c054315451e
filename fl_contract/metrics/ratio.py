"""A ratio of two sums over patients, with the sums of squares that say how far chance moves it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fl_contract.metrics.intervals import Interval, around
from fl_contract.metrics.measurement import read_floats

_ROUNDING = 1e-9
"""Relative; sums of squares of a spread below this times their size are those of no spread."""


@dataclass(frozen=True, kw_only=True)
class RatioSums:
    """Sums over patients of what each brings to a numerator, a, and to a denominator, b.

    Patients of all hospitals are added. The ratio R is the sum of a over the sum of b, so a patient counts by b: a mean
    has b = 1 for each.

    Attributes:
        numerator: Sum of a.
        denominator: Sum of b.
        square_numerator: Sum of the squares of a.
        product: Sum of a times b.
        square_denominator: Sum of the squares of b.
    """

    numerator: float
    denominator: float
    square_numerator: float
    product: float
    square_denominator: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, astuple(self))):
            raise ValueError("sums of a ratio are NaN or infinite; expected finite numbers")
        most = self.square_numerator * self.square_denominator
        if min(self.square_numerator, self.square_denominator) < 0 or self.product**2 > most * (1 + _ROUNDING):
            raise ValueError("sums of squares and products contradict one another; no patients have them")

    @classmethod
    def of(cls, numerators: NDArray[np.floating], denominators: NDArray[np.floating]) -> Self:
        """Add up what each patient brings.

        Args:
            numerators: a of each patient, [N]; finite.
            denominators: b of each patient, [N]; finite, at least 0.
        """
        a, b = (values.astype(np.float64) for values in (numerators, denominators))
        return cls(
            numerator=math.fsum(a),
            denominator=math.fsum(b),
            square_numerator=math.fsum(a * a),
            product=math.fsum(a * b),
            square_denominator=math.fsum(b * b),
        )

    @classmethod
    def merge(cls, parts: Iterable["RatioSums"]) -> Self:
        """The sums of all patients; does not depend on the order."""
        return cls.from_list([math.fsum(column) for column in zip(*map(astuple, parts), strict=True)])

    @property
    def ratio(self) -> float:
        """Sum of a over sum of b; NaN without any b."""
        return self.numerator / self.denominator if self.denominator else math.nan

    def standard_error(self, *, order: int = 1) -> float:
        """How far chance moves R: ``order`` times the root of the sum of (a - R b)^2 / (1 - h), over the sum of b.

        This is the delta method, and the infinitesimal jackknife (Efron 1982, The Jackknife, chapter 6). The sum of b^2
        over the squared sum of b is h; it corrects small samples, and gives a mean its usual error with N - 1.

        Args:
            order: 1 where each patient brings something of its own. 2 where what counts are pairs of patients and a
                pair is in the a and b of both: the error of a U-statistic of two (Hoeffding 1948).

        Returns:
            The error; NaN where there is no ratio, or a single patient makes it.
        """
        ratio = self.ratio
        left = 1 - self.square_denominator / self.denominator**2 if self.denominator else 0.0
        if left <= _ROUNDING:
            return math.nan
        squares = self.square_numerator - 2 * ratio * self.product + ratio**2 * self.square_denominator
        if squares <= _ROUNDING * self.square_numerator:
            return 0.0
        return order * math.sqrt(squares / left) / self.denominator

    def interval(self, *, most: float = 1.0, order: int = 1) -> Interval:
        """95 % interval of the ratio, see `fl_contract.metrics.intervals.around` for ``most``."""
        return around(self.ratio, self.standard_error(order=order), most=most)

    @classmethod
    def read(cls, numbers: Mapping[str, Any], key: str) -> Self:
        """Take back what `to_list` gave, from a record or a message.

        Raises:
            ValueError: It is absent or of another type, or as `from_list` raises.
        """
        try:
            return cls.from_list(read_floats(numbers, key))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error

    def to_list(self) -> list[float]:
        """The five sums in the order of the attributes, for a record or a message."""
        return list(astuple(self))

    @classmethod
    def from_list(cls, sums: list[float]) -> Self:
        """Take back what `to_list` gave.

        Raises:
            ValueError: They are not five, not finite, or contradict one another.
        """
        if len(sums) != 5:
            raise ValueError(f"{len(sums)} sums of a ratio; expected 5")
        names = ("numerator", "denominator", "square_numerator", "product", "square_denominator")
        return cls(**dict(zip(names, sums, strict=True)))
