"""The client half of an algorithm: what it changes in a hospital's local training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fl_contract.array_record import Arrays

LossOf = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""The loss of a batch, by what makes outputs of its inputs."""


class ClientHalf:
    """Local training as in FedAvg: nothing is changed, and nothing is kept from round to round.

    An algorithm's term joins the gradient just before the optimiser's step. Under differential privacy that is after
    the noise, so it must follow from models and noised gradients alone: every term here does.

    Args:
        model: With the received weights; trained in place.
        control: What the coordinator sent beside the model.
        state: What this half kept at this hospital after its last round of the run; empty before the first.
    """

    def __init__(self, model: nn.Module, *, control: Arrays, state: Arrays) -> None:
        self._model = model
        self._received = {name: tensor.detach().clone() for name, tensor in self.trained().items()}
        self._control = {name: torch.from_numpy(np.array(array)) for name, array in control.items()}
        self._state = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training moves, by name."""
        return {name: each for name, each in self._model.named_parameters() if each.requires_grad}

    def attach(self, optimizer: torch.optim.Optimizer, *, num_steps: int = 1) -> None:
        """Let the algorithm's term join every gradient that this optimiser steps by, so many times in the round."""
        del num_steps
        optimizer.register_step_pre_hook(self._adjust)

    def _adjust(self, *_: Any) -> None:
        with torch.no_grad():
            for name, parameter in self.trained().items():
                if parameter.grad is not None and (term := self.term(name, parameter)) is not None:
                    parameter.grad.add_(term)

    def term(self, name: str, parameter: Tensor) -> Tensor | None:
        """What is added to the gradient of one parameter; None for nothing."""
        del name, parameter
        return None

    @property
    def personal(self) -> nn.Module | None:
        """What is trained beside the model, on the same batches; nothing."""
        return None

    def attach_personal(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimiser of `personal`, which has the settings of the model's."""

    def step_beside(self, loss_of: LossOf) -> None:
        """Train `personal` on a batch, before the model's own step; never called under differential privacy."""

    def candidates(self) -> dict[str, nn.Module]:
        """Models of which the hospital measures the one that is best for its validation patients, the first of equals.

        Asked of a half that was made of the model after the round, and of what was kept in it.
        """
        return {"global": self._model}

    def outgoing(self) -> Arrays:
        """What the reply holds after the training; the model's weights and buffers."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self._model.state_dict().items()}

    def state(self) -> Arrays:
        """What is kept at the hospital for its next round of the run, after the training."""
        return {}
