"""What every architecture is: settings that say which data and tasks it is for, and that build the network."""

from abc import abstractmethod
from typing import ClassVar

from torch import nn

from fl_contract.schema import Schema
from fl_contract.settings import Settings

ROW_TASKS = frozenset({"classification", "multi-label", "regression", "survival"})
"""Tasks for which a model gives one row of outputs a record."""


class Architecture(Settings):
    """Base of the settings of all models.

    Attributes:
        TAKES: Kinds of schema whose records it takes.
        TASKS: Tasks that it is for.
        NOT_PRIVATE: Which layer keeps it from being trained with differential privacy, and what to choose instead;
            empty where `privacy.model_check` alone decides.
        kind: Its name in a study.
    """

    TAKES: ClassVar[frozenset[str]]
    TASKS: ClassVar[frozenset[str]] = ROW_TASKS
    NOT_PRIVATE: ClassVar[str] = ""

    kind: str

    def check_schema(self, schema: Schema) -> None:
        """Refuse a study whose data or task the architecture is not for.

        Raises:
            ValueError: pydantic puts it in its own words.
        """
        for key, value, expected in (("kind", schema.kind, self.TAKES), ("task", schema.task, self.TASKS)):
            if value not in expected:
                raise ValueError(
                    f"model.kind={self.kind!r} and schema.{key}={value!r}; this model is for {sorted(expected)}"
                )

    @abstractmethod
    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """The network with its initial weights.

        Args:
            schema: Of the records; `Architecture.check_schema` found it fitting.
            num_outputs: Numbers for each record, or for each pixel in a segmentation.
        """
