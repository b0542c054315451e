"""Networks of somebody's own, as a study names them by ``model.path``."""

import math

from torch import nn

from fl_contract.schema import Schema


def build(schema: Schema, num_outputs: int, *, hidden_size: int = 8, slope: float = 0.01) -> nn.Module:
    """A perceptron with a leaky activation."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(schema.input_shape), hidden_size),
        nn.LeakyReLU(slope),
        nn.Linear(hidden_size, num_outputs),
    )


def build_normalised(schema: Schema, num_outputs: int) -> nn.Module:
    """A linear layer on features that BatchNorm scales."""
    size = math.prod(schema.input_shape)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(size), nn.Linear(size, num_outputs))


def build_a_text(schema: Schema, num_outputs: int) -> str:
    """No network."""
    return f"{schema.kind} {num_outputs}"
