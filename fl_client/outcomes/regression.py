"""Outcomes of a regression: a number for each record."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_client.data.records import Records
from fl_client.outcomes.outcome import OutcomeRules
from fl_contract.tasks.regression import target_of


class RegressionRules(OutcomeRules):
    """Each record has a finite number; one outside the study's range is counted, and taken as the nearest bound."""

    GROUP = "range"
    MEASURE = "R²"
    VARIETY = "targets that differ"

    def details(self, folds: Sequence[Records]) -> list[str]:
        """A source without numbers, and those that are missing or infinite."""
        if any(fold.outcomes is None for fold in folds):
            return [f"the source has no numbers for the target {self._schema.label!r}; name their column"]
        if bad := sum(map(self.num_unknown, folds)):
            return [f"target {self._schema.label!r}: {bad} values are missing, NaN or infinite; expected a number each"]
        return []

    @property
    def title(self) -> str:
        """What `groups` are, for a person."""
        unit = target_of(self._schema).unit
        return f"Target {self._schema.label}{f' in {unit}' if unit else ''}"

    @property
    def groups(self) -> tuple[str, ...]:
        """Below, inside and above the range."""
        target = target_of(self._schema)
        return f"below {target.minimum:g}", f"{target.minimum:g} to {target.maximum:g}", f"above {target.maximum:g}"

    def counts(self, records: Records) -> list[int]:
        """Records of each group; a number that is missing is in none."""
        target, values = target_of(self._schema), self._values(records)
        below, above = values < target.minimum, values > target.maximum
        return [int(each.sum()) for each in (below, ~(below | above | np.isnan(values)), above)]

    def num_unknown(self, records: Records) -> int:
        """Records whose number is missing or infinite."""
        return int((~np.isfinite(self._values(records))).sum())

    def say_alike(self, records: Records, fold: str) -> str:
        """All have one number, as the model sees it."""
        distinct = np.unique(self._clipped(records))
        return f"every {fold} record has the same {self._schema.label}" if len(distinct) == 1 else ""

    def labels(self, records: Records) -> Tensor:
        """Scaled so that the range becomes [-1, 1]; float32 [N]."""
        target = target_of(self._schema)
        scaled = 2 * (self._clipped(records) - target.minimum) / (target.maximum - target.minimum) - 1
        return torch.from_numpy(scaled.astype(np.float32))

    def _clipped(self, records: Records) -> NDArray[np.float64]:
        target = target_of(self._schema)
        return np.clip(self._values(records), target.minimum, target.maximum)

    def _values(self, records: Records) -> NDArray[np.float64]:
        return np.full(len(records), np.nan) if records.outcomes is None else records.outcomes[:, 0]
