"""What every task says of a hospital's outcomes: the rules they keep, how they are counted, how they become labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from fl_client.data.records import Records
from fl_contract.schema import Schema


class OutcomeRules(ABC):
    """One study's outcome at a hospital.

    Attributes:
        GROUP: What one of `groups` is.
        MEASURE: What a hospital's held-out records have none of where their outcomes are all alike; empty if nothing.
        VARIETY: What is expected of training records instead of outcomes that are all alike.
        NEEDS_VARIETY: Whether nothing can be learned without it, so that no policy can allow that.

    Args:
        schema: Of the study.
    """

    GROUP: ClassVar[str] = "class"
    MEASURE: ClassVar[str] = ""
    VARIETY: ClassVar[str]
    NEEDS_VARIETY: ClassVar[bool] = False

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    @abstractmethod
    def details(self, folds: Sequence[Records]) -> list[str]:
        """Every rule that outcomes break, counted over all folds together; never a patient's value."""

    @property
    def title(self) -> str:
        """What `groups` are, for a person."""
        return f"Label {self._schema.label}"

    @property
    def groups(self) -> tuple[str, ...]:
        """What records are counted by."""
        return self._schema.classes

    @abstractmethod
    def counts(self, records: Records) -> list[int]:
        """Records of each group; a record may be in none, and for some tasks in several."""

    @abstractmethod
    def num_unknown(self, records: Records) -> int:
        """Records without an outcome that the study knows."""

    @abstractmethod
    def say_alike(self, records: Records, fold: str) -> str:
        """In which way the outcomes of these ``fold`` records are all alike; empty if they differ."""

    @abstractmethod
    def labels(self, records: Records) -> Tensor:
        """Labels as the task takes them, of records that break no rule."""
