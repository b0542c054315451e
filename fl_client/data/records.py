"""Patients' records in memory, and the promise of every source: training and held-out patients never overlap."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Records:
    """Records as a source holds them, not yet scaled.

    Attributes:
        features: [N, F] for a table, [N, height, width] or [N, height, width, channels] for images.
        feature_names: F column names; empty for images.
        labels: [N] class names; for survival 1 where the event came and 0 where it had not come yet, as text.
        patients: [N] whose record it is; None if the source does not say.
        times: [N] times of follow-up, for survival; NaN where one is missing.
    """

    features: NDArray[np.float64]
    feature_names: tuple[str, ...]
    labels: NDArray[np.str_]
    patients: NDArray[Any] | None = None
    times: NDArray[np.float64] | None = None

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
            times=None if self.times is None else self.times[rows],
        )


@dataclass(frozen=True, kw_only=True)
class SiteRecords:
    """A hospital's patients: those it trains on and those it holds out."""

    train: Records
    test: Records


class Source(Protocol):
    """Where a hospital's records live."""

    def load(self) -> SiteRecords:
        """All records; the same split on every call."""
