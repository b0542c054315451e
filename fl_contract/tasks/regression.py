"""Regression: one number for each patient.

The model's number is the target scaled so that its range becomes [-1, 1]; an output may lie outside. Shape legend:
B = patients in a batch.
"""

from torch import Tensor

from fl_contract.metrics.measurement import Measurement
from fl_contract.metrics.regression import ROUNDING, RegressionEvaluation
from fl_contract.schema import Schema, Target
from fl_contract.tasks.task import Task


class Regression(Task):
    """The scaled target. Labels are the same, float32 [B], each in [-1, 1]."""

    MEASUREMENT = RegressionEvaluation

    def num_outputs(self) -> int:
        """One."""
        return 1

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Half the squared error of the scaled number.

        It is what a normal distribution with half the range as its deviation loses, in nats, but for a constant.
        """
        return (outputs.squeeze(1) - labels).square() / 2

    def measure(self, outputs: Tensor, labels: Tensor) -> RegressionEvaluation:
        """Sums of errors, of targets and of their squares, in the target's unit."""
        scaled, half = labels.double(), half_range(self._schema)
        errors = outputs.squeeze(1).double() - scaled
        return RegressionEvaluation.of(
            half * errors.numpy(), half * scaled.numpy(), loss_sum=float(errors.square().sum() / 2)
        )

    def check(self, measured: Measurement) -> None:
        """No targets outside the study's range."""
        super().check(measured)
        if isinstance(measured, RegressionEvaluation):
            most = measured.num_examples * half_range(self._schema) ** 2
            if measured.target_square_sum > most * (1 + ROUNDING):
                raise ValueError("target-square-sum is out of range; expected that of targets in the study's range")


def target_of(schema: Schema) -> Target:
    """The number that a study of regression predicts; `Outcome` makes sure that there is one."""
    if schema.target is None:
        raise TypeError(f"schema.task={schema.task!r} has no target; expected 'regression'")
    return schema.target


def half_range(schema: Schema) -> float:
    """Half the target's range, in its unit: what 1 is for the model."""
    target = target_of(schema)
    return (target.maximum - target.minimum) / 2
