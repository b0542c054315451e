"""Counts of patients that leave a hospital with noise: fewer and coarser than those that leave exactly.

Shape legend: K = number of scored classes (1 for a binary task), N = patients.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_contract.metrics.histogram import NUM_NOISED_BINS, find_bins

NOISED = "noised"
"""What records call a measurement that has noise."""


@dataclass(frozen=True, kw_only=True)
class NoisedCounts:
    """Counts of patients that left a hospital, or several, with noise.

    Attributes:
        cells: int64: for each scored class, patients without it and then with it, by 8 bins of their score; for K > 1
            a last cell counts correct predictions, which for K = 1 are those on the right side of logit 0. May be
            negative.
        noise_scale: Standard deviation of the noise in each cell, in patients; above 0.
        threshold: Of the study, for two classes, see `fl_contract.metrics.decisions`.
    """

    cells: NDArray[np.int64]
    noise_scale: float
    threshold: float = 0.5

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {
            "kind": NOISED,
            "noised-cells": self.cells.tolist(),
            "noise-scale": self.noise_scale,
            "threshold": self.threshold,
        }

    def draw_again(self, generator: np.random.Generator) -> "NoisedCounts":
        """These counts with as much noise once more."""
        noise = np.rint(generator.normal(0.0, self.noise_scale, self.cells.shape)).astype(np.int64)
        return replace(self, cells=self.cells + noise)

    @property
    def num_scored(self) -> int:
        """Scored classes K."""
        return count_scored_classes(len(self.cells))


def count_scored_classes(num_cells: int) -> int:
    """Scored classes K of a number of cells.

    Raises:
        ValueError: No number of classes has so many cells.

    >>> count_scored_classes(16), count_scored_classes(10 * 16 + 1)
    (1, 10)
    """
    num_scored = max(1, num_cells // (2 * NUM_NOISED_BINS))
    if num_cells != num_scored * 2 * NUM_NOISED_BINS + (num_scored > 1):
        raise ValueError(
            f"{num_cells} cells; expected {2 * NUM_NOISED_BINS}, or that for each of several classes and one more"
        )
    return num_scored


def cells_of_patients(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Each record's contribution to `NoisedCounts.cells`, 0 or 1 in each cell.

    Guarantees:
        - A row has L2 norm `cells_sensitivity`, whatever the record.

    Args:
        logits: [N, K] log-odds of each scored class; finite.
        labels: [N] class of each record.

    Returns:
        [N, cells].
    """
    num_records, num_scored = logits.shape
    bins = find_bins(logits, NUM_NOISED_BINS)
    cells = np.zeros((num_records, num_scored, 2, NUM_NOISED_BINS))
    rows = np.arange(num_records)
    for column in range(num_scored):
        has_class = (labels == (1 if num_scored == 1 else column)).astype(int)
        cells[rows, column, has_class, bins[:, column]] = 1.0
    flat = cells.reshape(num_records, -1)
    if num_scored == 1:
        return flat
    return np.concatenate([flat, (logits.argmax(axis=1) == labels)[:, np.newaxis].astype(float)], axis=1)


def cells_sensitivity(num_scored: int) -> float:
    """Largest L2 norm of one patient's contribution to the cells.

    >>> cells_sensitivity(1), cells_sensitivity(3)
    (1.0, 2.0)
    """
    return float(np.sqrt(num_scored + (num_scored > 1)))
