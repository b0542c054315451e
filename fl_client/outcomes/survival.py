"""Outcomes of survival: a time of follow-up for each record, and whether the event came then."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_client.data.records import Records
from fl_client.outcomes.outcome import OutcomeRules

EVENTS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
"""What the column of the event may hold, and whether the event came."""

NO_TIMES = "the source has no times of follow-up, which the study needs; name their column as source.time in site.toml"


class SurvivalRules(OutcomeRules):
    """Each record has a time of at least 0 and a 0 or a 1 for the event."""

    GROUP = "outcome"
    MEASURE = "C-index"
    VARIETY = "one event"
    NEEDS_VARIETY = True

    def details(self, folds: Sequence[Records]) -> list[str]:
        """A source without times, times that cannot be, and events that are neither 0 nor 1."""
        times = [fold.outcomes for fold in folds if fold.outcomes is not None]
        details = [] if len(times) == len(folds) else [NO_TIMES]
        if bad := sum(int((~(np.isfinite(part) & (part >= 0))).sum()) for part in times):
            details.append(
                f"times of follow-up: {bad} are missing, negative or infinite; expected numbers of at least 0"
            )
        if unknown := sum(map(self.num_unknown, folds)):
            details.append(
                f"event {self._schema.label!r}: {unknown} records hold neither 0 nor 1; expected 1 where the event came"
            )
        return details

    @property
    def groups(self) -> tuple[str, ...]:
        """Whether the event came."""
        return "no event", "event"

    def counts(self, records: Records) -> list[int]:
        """Records without the event, and with it."""
        events = self._events(records)
        return [int((events == came).sum()) for came in (0, 1)]

    def num_unknown(self, records: Records) -> int:
        """Records whose event is neither 0 nor 1."""
        return int((self._events(records) < 0).sum())

    def say_alike(self, records: Records, fold: str) -> str:
        """The event came for none."""
        without, with_event = self.counts(records)
        return f"{self._schema.label!r} came for no {fold} record" if without and not with_event else ""

    def labels(self, records: Records) -> Tensor:
        """Times and events, float32 [N, 2]."""
        times = np.full(len(records), np.nan) if records.outcomes is None else records.outcomes[:, 0]
        return torch.from_numpy(np.stack([times, self._events(records)], axis=1).astype(np.float32))

    def _events(self, records: Records) -> NDArray[np.int64]:
        """0 or 1, and -1 for what is neither."""
        return np.array([EVENTS.get(str(label), -1) for label in records.labels], dtype=np.int64)
