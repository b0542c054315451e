"""What every task is: the loss of a model's outputs, and how they are measured.

Shape legend: B = records in a batch.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from fl_contract.metrics.measurement import Measurement
from fl_contract.schema import Schema


class Task(ABC):
    """One study's task.

    Attributes:
        MEASUREMENT: What it measures.
        HAS_NOISED: Whether a hospital can send its measurement with noise.
        NOT_PRIVATE: Why it cannot be trained with differential privacy; empty where it can.
        IS_OF_PAIRS: Whether it measures records against each other, all of a hospital's at once.

    Args:
        schema: Of the study, with its outcome.
    """

    MEASUREMENT: ClassVar[type[Measurement]]
    HAS_NOISED: ClassVar[bool] = False
    NOT_PRIVATE: ClassVar[str] = ""
    IS_OF_PAIRS: ClassVar[bool] = False

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    @abstractmethod
    def num_outputs(self) -> int:
        """Outputs of the model for each record, or for each pixel in a segmentation."""

    @abstractmethod
    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Loss of each record, [B], in nats and at least 0, never reduced.

        A record's loss does not depend on the others, unless `NOT_PRIVATE` says so.
        """

    def batch_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """What a step without privacy makes smaller."""
        return self.losses(outputs, labels).mean()

    def combine(self, outputs: Tensor) -> Tensor:
        """Outputs of one model that says what several say on average.

        Args:
            outputs: Of all of them, [members, B, ...].

        Returns:
            [B, ...]; here the mean of their numbers.
        """
        return outputs.mean(dim=0)

    @abstractmethod
    def measure(self, outputs: Tensor, labels: Tensor) -> Measurement:
        """Sums over the records; finite outputs of at least one record.

        Unless `IS_OF_PAIRS` says so, the sums of batches merge into those of all records.
        """

    def check(self, measured: Measurement) -> None:
        """Refuse a measurement that contradicts the study.

        Raises:
            ValueError: Names the number and what the study says.
        """
        if not isinstance(measured, self.MEASUREMENT):
            raise ValueError(f"a measurement of {measured.KIND}; expected {self.MEASUREMENT.KIND}")
