"""Linear and logistic regression: one linear layer on a record's numbers."""

import math
from typing import Literal

from torch import nn

from fl_contract.models.architecture import Architecture
from fl_contract.schema import Schema


class LogisticSettings(Architecture):
    """Logistic regression, for several classes multinomial; has no settings of its own."""

    TAKES = frozenset({"table", "image", "series"})
    TASKS = frozenset({"classification", "multi-label"})

    kind: Literal["logistic"]

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """A linear layer that starts at zero, so that every patient starts at the same probability."""
        return _linear(schema, num_outputs)


class LinearSettings(Architecture):
    """Linear regression; has no settings of its own."""

    TAKES = frozenset({"table", "image", "series"})
    TASKS = frozenset({"regression"})

    kind: Literal["linear"]

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """A linear layer that starts at zero: in the middle of the target's range for every patient."""
        return _linear(schema, num_outputs)


def _linear(schema: Schema, num_outputs: int) -> nn.Module:
    linear = nn.Linear(math.prod(schema.encoded_shape), num_outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Flatten(), linear)
