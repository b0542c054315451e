"""Patients' records in memory, and the promise of every source: training and held-out patients never overlap."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Records:
    """Records as a source holds them, not yet scaled.

    Attributes:
        features: [N, F] for a table, [N, height, width] or [N, height, width, channels] for images, with the depth
            before the height for volumes, [N, channels, steps] for series, [N, 2] head and relation for triples. In
            float64, but images in any type of numbers.
        feature_names: F column names; empty for all but tables.
        labels: [N] class names; for survival 1 where the event came and 0 where it had not come yet, as text; empty
            where the outcomes or masks say it.
        patients: [N] whose record it is; None if the source does not say.
        outcomes: [N, T] numbers that are predicted: the time of follow-up for survival, the target for regression, 0
            or 1 for each finding for multi-label; NaN where one is missing. None where the label says all.
        masks: [N, height, width], with the depth before the height for volumes: position of each pixel's class, for
            segmentation.
    """

    features: NDArray[Any]
    feature_names: tuple[str, ...]
    labels: NDArray[np.str_]
    patients: NDArray[Any] | None = None
    outcomes: NDArray[np.float64] | None = None
    masks: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        """Number of records N."""
        return len(self.labels)

    def take(self, rows: NDArray[Any]) -> "Records":
        """The records of some rows, in that order."""
        return Records(
            features=self.features[rows],
            feature_names=self.feature_names,
            labels=self.labels[rows],
            patients=None if self.patients is None else self.patients[rows],
            outcomes=None if self.outcomes is None else self.outcomes[rows],
            masks=None if self.masks is None else self.masks[rows],
        )


@dataclass(frozen=True, kw_only=True)
class SiteRecords:
    """A hospital's patients: those it trains on and those it holds out.

    Attributes:
        train: Trained on.
        test: Held out.
        notes: What the source holds and these do not, in counts, as the hospital's own settings allow it.
    """

    train: Records
    test: Records
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """Where a hospital's records live."""

    def files(self) -> list[Path] | None:
        """Every file that `load` reads; None where the records are not in files."""

    def load(self) -> SiteRecords:
        """All records; the same split on every call."""
