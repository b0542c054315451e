"""Outcomes of a classification: one class for each record."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fl_client.data.records import Records
from fl_client.outcomes.outcome import OutcomeRules


class ClassificationRules(OutcomeRules):
    """Each record has one of the study's classes."""

    MEASURE = "AUROC"
    VARIETY = "two classes"

    def details(self, folds: Sequence[Records]) -> list[str]:
        """Classes that the study does not name."""
        if unknown := sum(map(self.num_unknown, folds)):
            return [
                f"label {self._schema.label!r}: {unknown} records carry a class that the study does not name; "
                f"expected one of {list(self._schema.classes)}"
            ]
        return []

    def counts(self, records: Records) -> list[int]:
        """Records of each class."""
        return [int((records.labels == name).sum()) for name in self._schema.classes]

    def num_unknown(self, records: Records) -> int:
        """Records of no class of the study."""
        return int((~np.isin(records.labels, self._schema.classes)).sum())

    def say_alike(self, records: Records, fold: str) -> str:
        """All are of one class."""
        present = [name for name, count in zip(self.groups, self.counts(records), strict=True) if count]
        return f"every {fold} record has {self._schema.label}={present[0]!r}" if len(present) == 1 else ""

    def labels(self, records: Records) -> Tensor:
        """Position of each record's class, int64 [N]."""
        index = {name: position for position, name in enumerate(self._schema.classes)}
        return torch.tensor([index[label] for label in records.labels], dtype=torch.int64)
