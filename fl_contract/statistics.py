"""The only place for statistics of features that merge: sums that hospitals send and the coordinator adds.

All are over inputs scaled by the study's public ranges, so every value lies in [-1, 1]. What follows from the sums is
what one would compute on all hospitals' patients in one table.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class FeatureSums:
    """Sums over the records that have a value.

    Attributes:
        counts: int64 [F], records with a value; 0 where a hospital suppressed a small count, and its sums with it.
        sums: float64 [F], of the values.
        square_sums: float64 [F], of their squares.
    """

    counts: NDArray[np.int64]
    sums: NDArray[np.float64]
    square_sums: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not self.counts.shape == self.sums.shape == self.square_sums.shape or self.counts.ndim != 1:
            raise ValueError(
                f"statistics have shapes {self.counts.shape}, {self.sums.shape}, {self.square_sums.shape}; "
                "expected one number a feature in each"
            )
        bound = self.counts * (1 + 1e-6)
        if not ((self.counts >= 0).all() and (np.abs(self.sums) <= bound).all()):
            raise ValueError("a count is negative, or a sum larger than its count; values lie in [-1, 1]")
        if not ((self.square_sums >= 0).all() and (self.square_sums <= bound).all()):
            raise ValueError("a sum of squares is negative or larger than its count; values lie in [-1, 1]")

    @classmethod
    def of(cls, inputs: NDArray[np.floating], *, min_count: int) -> Self:
        """Add up one hospital's records.

        Args:
            inputs: [N, F] in [-1, 1]; NaN where a value is missing.
            min_count: Features with fewer values are suppressed.
        """
        known = ~np.isnan(inputs)
        counts = known.sum(axis=0)
        values = np.where(known & (counts >= min_count), inputs, 0.0).astype(np.float64)
        counts = np.where(counts >= min_count, counts, 0).astype(np.int64)
        return cls(counts=counts, sums=values.sum(axis=0), square_sums=np.square(values).sum(axis=0))

    @classmethod
    def merge(cls, parts: Iterable["FeatureSums"]) -> Self:
        """The sums of all hospitals; does not depend on the order.

        Raises:
            ValueError: There is none, or they are of different numbers of features.
        """
        kept = list(parts)
        if len({part.counts.shape for part in kept}) != 1:
            raise ValueError("statistics are of different numbers of features, or there are none")
        return cls(
            counts=np.sum([part.counts for part in kept], axis=0),
            sums=np.sort([part.sums for part in kept], axis=0).sum(axis=0),
            square_sums=np.sort([part.square_sums for part in kept], axis=0).sum(axis=0),
        )

    @property
    def means(self) -> NDArray[np.float64]:
        """[F]; 0, the middle of the range, where no hospital has a value."""
        return self.sums / np.maximum(self.counts, 1)

    @property
    def deviations(self) -> NDArray[np.float64]:
        """Standard deviations over all records, [F]; 1 for a feature that never varies."""
        variances = self.square_sums / np.maximum(self.counts, 1) - np.square(self.means)
        varies = variances > 1e-12
        return np.where(varies, np.sqrt(np.where(varies, variances, 1.0)), 1.0)
