"""A multi-layer perceptron with bounded activations, which suit clipped gradients."""

import math
from typing import Literal

from pydantic import Field
from torch import nn

from fl_contract.models.architecture import Architecture
from fl_contract.schema import Schema


class MlpSettings(Architecture):
    """A multi-layer perceptron.

    Attributes:
        hidden_size: Units of each hidden layer.
        num_hidden_layers: Hidden layers.
    """

    TAKES = frozenset({"table", "image", "series"})

    kind: Literal["mlp"]
    hidden_size: int = Field(default=32, ge=1, le=4096)
    num_hidden_layers: int = Field(default=1, ge=1, le=8)

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """Linear and tanh layers in turn, ended by a linear one."""
        size = math.prod(schema.input_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(self.num_hidden_layers):
            layers += [nn.Linear(size, self.hidden_size), nn.Tanh()]
            size = self.hidden_size
        return nn.Sequential(*layers, nn.Linear(size, num_outputs))
