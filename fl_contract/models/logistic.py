"""Logistic regression: one linear layer on a patient's features."""

import math
from typing import Literal

from torch import nn

from fl_contract.settings import Settings


class LogisticSettings(Settings):
    """Has no settings of its own."""

    kind: Literal["logistic"]

    def build(self, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
        """A linear layer that starts at zero, so that every patient starts at the same probability."""
        size = math.prod(input_shape)
        linear = nn.Linear(size, num_outputs)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.Flatten(), linear)
