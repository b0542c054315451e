"""A gated recurrent unit for series, made of linear layers, whose per-record gradients are known.

Source: Cho et al., arXiv 1406.1078, in the form that torch computes.
Shapes: B records, T steps, C channels, H hidden units.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fl_contract.models.architecture import Architecture
from fl_contract.schema import Schema


class GruSettings(Architecture):
    """Recurrent layers over a series, and one linear layer on the last state.

    A step of time is a step of Python, so series of some hundred steps are slow; ``cnn1d`` suits longer ones.

    Attributes:
        hidden_size: Units of each layer.
        num_hidden_layers: Layers, each of which reads the states of the one before.
    """

    TAKES = frozenset({"series"})

    kind: Literal["gru"]
    hidden_size: int = Field(default=32, ge=1, le=1024)
    num_hidden_layers: int = Field(default=1, ge=1, le=4)

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """The network with torch's initial weights."""
        return Gru(self, num_channels=schema.input_shape[0], num_outputs=num_outputs)


class GruLayer(nn.Module):
    """One layer; `torch.nn.GRU` with the same weights computes the same, but hides them from book-keeping."""

    def __init__(self, num_inputs: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.from_input = nn.Linear(num_inputs, 3 * hidden_size)
        self.from_state = nn.Linear(hidden_size, 3 * hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)

    def forward(self, inputs_BTC: Tensor) -> Tensor:
        """The state after each step, [B, T, H]; the state before the first is zero."""
        by_step = self.from_input(inputs_BTC).unbind(dim=1)
        state_BH = inputs_BTC.new_zeros(len(inputs_BTC), self.hidden_size)
        states = []
        for step in by_step:
            reset_in, update_in, new_in = step.chunk(3, dim=1)
            reset_state, update_state, new_state = self.from_state(state_BH).chunk(3, dim=1)
            update = torch.sigmoid(update_in + update_state)
            new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_state) * new_state)
            state_BH = (1 - update) * new + update * state_BH
            states.append(state_BH)
        return torch.stack(states, dim=1)


class Gru(nn.Module):
    """Layers and the linear one that reads the last state."""

    def __init__(self, settings: GruSettings, *, num_channels: int, num_outputs: int) -> None:
        super().__init__()
        sizes = [num_channels] + [settings.hidden_size] * settings.num_hidden_layers
        self.layers = nn.Sequential(*(GruLayer(size, settings.hidden_size) for size in sizes[:-1]))
        self.last = nn.Linear(settings.hidden_size, num_outputs)

    def forward(self, series_BCT: Tensor) -> Tensor:
        """One row of outputs for each series."""
        outputs: Tensor = self.last(self.layers(series_BCT.transpose(1, 2))[:, -1])
        return outputs
