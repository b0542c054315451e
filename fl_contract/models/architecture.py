"""What every architecture is: settings that say which data and tasks it is for, and that build the network."""

from abc import abstractmethod
from typing import ClassVar

from pydantic import Field
from torch import nn

from fl_contract.models.partial_training import Trainable
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
        trainable: Which part is trained and travels; see `fl_contract.models.partial_training`. What is frozen is the
            same everywhere: it follows from the study's seed, or from a file of weights that every hospital has.
        lora_rank: Of each low-rank term, for ``lora``.
        lora_alpha: Such a term counts by this over its rank.
    """

    TAKES: ClassVar[frozenset[str]]
    TASKS: ClassVar[frozenset[str]] = ROW_TASKS
    NOT_PRIVATE: ClassVar[str] = ""

    kind: str
    trainable: Trainable = "all"
    lora_rank: int = Field(default=8, ge=1, le=1024)
    lora_alpha: float = Field(default=8.0, gt=0)

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
