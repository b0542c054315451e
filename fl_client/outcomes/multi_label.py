"""Outcomes of a multi-label study: for each record, which findings are there."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_client.data.records import Records
from fl_client.outcomes.outcome import OutcomeRules


class MultiLabelRules(OutcomeRules):
    """Each record has a 0 or a 1 for each finding, and any number of ones."""

    GROUP = "finding"
    MEASURE = "AUROC"
    VARIETY = "a finding that some have and others not"

    def details(self, folds: Sequence[Records]) -> list[str]:
        """A source without findings, and values that are neither 0 nor 1."""
        if any(fold.outcomes is None or fold.outcomes.shape[1] != len(self.groups) for fold in folds):
            return [f"the source has no numbers for the findings {list(self.groups)}; give it a column for each"]
        wrong = np.sum([self._is_unknown(fold).sum(axis=0) for fold in folds], axis=0)
        return [
            f"finding {name!r}: {count} records hold neither 0 nor 1; expected 1 where it is there"
            for name, count in zip(self.groups, wrong, strict=True)
            if count
        ]

    @property
    def title(self) -> str:
        """What `groups` are, for a person."""
        return f"Findings of {self._schema.label}, of which a record may have several"

    def counts(self, records: Records) -> list[int]:
        """Records with each finding."""
        return [int(count) for count in (self._findings(records) == 1).sum(axis=0)]

    def num_unknown(self, records: Records) -> int:
        """Records with a value that is neither 0 nor 1."""
        return int(self._is_unknown(records).any(axis=1).sum())

    def say_alike(self, records: Records, fold: str) -> str:
        """Each finding is there in all, or in none."""
        alike = all(count in (0, len(records)) for count in self.counts(records))
        return f"each finding is the same in every {fold} record" if alike and len(records) else ""

    def labels(self, records: Records) -> Tensor:
        """1 where a finding is there, else 0; float32 [N, findings]."""
        return torch.from_numpy(self._findings(records).astype(np.float32))

    def _findings(self, records: Records) -> NDArray[np.float64]:
        return np.full((len(records), len(self.groups)), np.nan) if records.outcomes is None else records.outcomes

    def _is_unknown(self, records: Records) -> NDArray[np.bool_]:
        return ~np.isin(self._findings(records), (0.0, 1.0))
