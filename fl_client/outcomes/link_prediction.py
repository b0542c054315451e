"""Outcomes of link prediction: the tail of each fact, one of the study's entities."""

from collections.abc import Sequence

import numpy as np

from fl_client.data.records import Records
from fl_client.outcomes.classification import ClassificationRules
from fl_contract.schema import TripleSchema


class LinkPredictionRules(ClassificationRules):
    """Each fact has one entity as its tail; facts are counted by relation, since entities are many."""

    GROUP = "relation"
    MEASURE = ""
    VARIETY = "two tails"

    def details(self, folds: Sequence[Records]) -> list[str]:
        """Tails that the study does not list."""
        if unknown := sum(map(self.num_unknown, folds)):
            return [f"column {self._schema.label!r}: {unknown} records name an entity that the study does not list"]
        return []

    @property
    def title(self) -> str:
        """What `groups` are, for a person."""
        return "Relations"

    @property
    def groups(self) -> tuple[str, ...]:
        """The relations."""
        return self._schema.relations if isinstance(self._schema, TripleSchema) else ()

    def counts(self, records: Records) -> list[int]:
        """Facts of each relation."""
        return [int((records.features[:, 1] == position).sum()) for position in range(len(self.groups))]

    def say_alike(self, records: Records, fold: str) -> str:
        """All have one tail."""
        return f"every {fold} record has the same tail" if len(np.unique(records.labels)) == 1 else ""
