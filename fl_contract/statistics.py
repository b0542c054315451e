"""The only place for statistics of features that merge: what hospitals count and add up and the coordinator adds.

All are over inputs scaled by the study's public ranges, so every number lies in [-1, 1]. What follows from the merged
statistics is what one would compute on all hospitals' patients in one table; a quantile up to half a bin.

Shape legend: N = values, F = features of a table, or channels of images and series.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fl_contract.features import NUM_BINS, Column

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """Counts and sums over the values that are there; zeros for what a study does not need.

    Attributes:
        counts: [F], of values; 0 where a hospital suppressed a small count, and all else with it.
        sums: float64 [F], of the values.
        square_sums: float64 [F], of their squares.
        histograms: For each feature [bins], of equal width over [-1, 1]; or [categories]; or [0] where none is needed.
    """

    counts: Counts
    sums: NDArray[np.float64]
    square_sums: NDArray[np.float64]
    histograms: tuple[Counts, ...]

    def __post_init__(self) -> None:
        shapes = {self.counts.shape, self.sums.shape, self.square_sums.shape, (len(self.histograms),)}
        if len(shapes) > 1:
            raise ValueError(f"statistics have shapes {sorted(shapes)}; expected one number a feature in each")
        bound = self.counts * (1 + 1e-6)
        if not ((self.counts >= 0).all() and (np.abs(self.sums) <= bound).all()):
            raise ValueError("a count is negative, or a sum larger than its count; values lie in [-1, 1]")
        if not ((self.square_sums >= 0).all() and (self.square_sums <= bound).all()):
            raise ValueError("a sum of squares is negative or larger than its count; values lie in [-1, 1]")
        if not (np.square(self.sums) <= bound * self.square_sums + 1e-6).all():
            raise ValueError("a squared sum is larger than count times sum of squares; no values have these")
        for count, histogram in zip(self.counts, self.histograms, strict=True):
            if len(histogram) and ((histogram < 0).any() or histogram.sum() != count):
                raise ValueError("a histogram has negative counts or another total than its feature's count")

    @classmethod
    def of(cls, inputs: NDArray[np.floating], columns: Sequence[Column]) -> Self:
        """Count and add up one hospital's values, exactly.

        Args:
            inputs: [N, F] in [-1, 1], of a category its position; NaN where a value is missing.
            columns: What the study needs of each.
        """
        counts, sums = np.zeros(len(columns), dtype=np.int64), np.zeros((2, len(columns)))
        histograms = []
        for position, column in enumerate(columns):
            values = inputs[:, position].astype(np.float64)
            values = values[~np.isnan(values)]
            if column.needs_statistics:
                counts[position] = len(values)
            if column.needs_sums:
                sums[:, position] = values.sum(), np.square(values).sum()
            histograms.append(_histogram(values, column))
        return cls(counts=counts, sums=sums[0], square_sums=sums[1], histograms=tuple(histograms))

    def suppress(self, columns: Sequence[Column], *, min_count: int) -> "FeatureStatistics":
        """What a hospital lets out: no count in it is of fewer than ``min_count`` values.

        Guarantees:
            - A feature with fewer values is left out altogether; of others the count stays.
            - Bins with fewer are joined with their neighbours, see `join_bins`; categories with fewer are reported as 0
              and counted with the most frequent one.
        """
        is_kept = self.counts >= min_count
        return FeatureStatistics(
            counts=np.where(is_kept, self.counts, 0),
            sums=np.where(is_kept, self.sums, 0.0),
            square_sums=np.where(is_kept, self.square_sums, 0.0),
            histograms=tuple(
                _suppress(histogram if kept else 0 * histogram, column, min_count)
                for histogram, kept, column in zip(self.histograms, is_kept, columns, strict=True)
            ),
        )

    @classmethod
    def merge(cls, parts: Iterable["FeatureStatistics"]) -> Self:
        """The statistics of all hospitals; does not depend on the order.

        Raises:
            ValueError: There is none, or they are of different features.
        """
        kept = list(parts)
        if len({tuple(map(len, part.histograms)) for part in kept}) != 1:
            raise ValueError("statistics are of different features, or there are none")
        return cls(
            counts=np.sum([part.counts for part in kept], axis=0),
            sums=np.sort([part.sums for part in kept], axis=0).sum(axis=0),
            square_sums=np.sort([part.square_sums for part in kept], axis=0).sum(axis=0),
            histograms=tuple(np.sum(each, axis=0) for each in zip(*(part.histograms for part in kept), strict=True)),
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

    def median(self, feature: int) -> float:
        """The middle value of a feature with a histogram; see `quantile` for its error."""
        return quantile(self.histograms[feature], 0.5)

    def quartile_distance(self, feature: int) -> float:
        """Distance between the quartiles of a feature with a histogram; 1 where both are in one bin."""
        distance = quantile(self.histograms[feature], 0.75) - quantile(self.histograms[feature], 0.25)
        return distance if distance > 1e-9 else 1.0

    def most_frequent(self, feature: int) -> int:
        """The category that most records have; the first of several."""
        return int(self.histograms[feature].argmax())


def quantile(histogram: Counts, share: float) -> float:
    """What ``numpy.quantile`` gives if every value is taken as the middle of its bin.

    So it is off by half a bin at most. A value of a joined group may be off by the group's width more.

    Args:
        histogram: [bins] of equal width over [-1, 1].
        share: Of the values that are smaller, in [0, 1].

    >>> quantile(np.array([2, 0, 1, 1]), 0.5)  # values -0.75, -0.75, 0.25, 0.75
    -0.25
    """
    upto = np.cumsum(histogram)
    if not upto[-1]:
        return 0.0
    rank = share * (upto[-1] - 1)
    below, above = (int(np.searchsorted(upto, place, side="right")) for place in (math.floor(rank), math.ceil(rank)))
    position = below + (rank - math.floor(rank)) * (above - below)
    return float((2 * position + 1) / len(histogram) - 1)


def join_bins(histogram: Counts, *, min_count: int) -> Counts:
    """Join neighbouring bins until each group holds ``min_count``; the total stays.

    Bins that hold it already are joined only with what is too few to be a group. A group is counted in the bin of its
    mean, so a value moves by less than the width of its group. The group's middle would tell where its two outermost
    values lie.

    >>> join_bins(np.array([0, 7, 0, 5, 20, 1]), min_count=10)
    array([ 0,  0, 12,  0, 21,  0])
    """

    def is_open(group: list[int]) -> bool:
        return int(histogram[group].sum()) < min_count

    groups: list[list[int]] = []
    for position in np.flatnonzero(histogram).tolist():
        if groups and is_open(groups[-1]) and histogram[position] < min_count:
            groups[-1].append(position)
        else:
            groups.append([position])
    closed: list[list[int]] = []
    for group in groups:
        if closed and (is_open(group) or is_open(closed[-1])):
            closed[-1] += group
        else:
            closed.append(group)
    joined = np.zeros_like(histogram)
    for group in closed:
        joined[round(np.average(group, weights=histogram[group]))] += histogram[group].sum()
    return joined


def _histogram(values: NDArray[np.float64], column: Column) -> Counts:
    if not column.num_bins:
        return np.zeros(0, dtype=np.int64)
    places = values if column.num_categories else np.clip(np.floor((values + 1) / 2 * NUM_BINS), 0, NUM_BINS - 1)
    return np.bincount(places.astype(np.int64), minlength=column.num_bins).astype(np.int64)


def _suppress(histogram: Counts, column: Column, min_count: int) -> Counts:
    if not column.num_categories:
        return join_bins(histogram, min_count=min_count)
    shown = np.where(histogram >= min_count, histogram, 0)
    if len(histogram):
        shown[histogram.argmax()] += histogram.sum() - shown.sum()
    return shown
