"""Logistic regression: one linear layer on a patient's features."""

import math
from typing import Literal

from torch import nn

from fl_contract.models.architecture import Architecture
from fl_contract.schema import Schema


class LogisticSettings(Architecture):
    """Has no settings of its own."""

    TAKES = frozenset({"table", "image", "series"})
    TASKS = frozenset({"classification", "multi-label"})

    kind: Literal["logistic"]

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """A linear layer that starts at zero, so that every patient starts at the same probability."""
        size = math.prod(schema.encoded_shape)
        linear = nn.Linear(size, num_outputs)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.Flatten(), linear)
