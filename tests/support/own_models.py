"""Networks of somebody's own, as a study names them by ``model.path``."""

from typing import Any

from torch import nn

from fl_contract.schema import Schema

imports: list[str] = [__name__]
"""That this module was imported at all."""


def build(schema: Schema, num_outputs: int, *, hidden_sizes: list[int] | None = None, slope: float = 0.01) -> nn.Module:
    """A perceptron with leaky activations."""
    layers: list[nn.Module] = [nn.Flatten()]
    for size in hidden_sizes or [8]:
        layers += [nn.LazyLinear(size), nn.LeakyReLU(slope)]
    return _fixed(nn.Sequential(*layers, nn.LazyLinear(num_outputs)), schema)


def build_nothing(schema: Schema, num_outputs: int) -> Any:
    """No network."""
    return f"{schema.kind} {num_outputs}"


def _fixed(network: nn.Module, schema: Schema) -> nn.Module:
    import torch

    network(torch.zeros(2, *schema.input_shape))
    return network
