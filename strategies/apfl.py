"""APFL: a mixture of the hospital's own model and the shared one (Deng et al. 2020, algorithm 1; arXiv 2003.13461).

With w the shared model as it is trained here, v the hospital's own, a its share and f the loss of the batch::

    m = a * v + (1 - a) * w
    local step     w = w - e * gradient of f at w
                   v = v - e * a * gradient of f at m
    once a round   a = a - e * <v - w, gradient of f at m>, kept within [0, 1]; if a is learned

all by the values before the step; a is learned on the first batch of a round and counts from the second one on. The
hospital measures the mixture with the received model. The server's half is FedAvg's.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fl_contract.array_record import Arrays
from strategies.client_half import LossOf
from strategies.personal_model import PersonalModel

ALPHA = "alpha"


class APFLClient(PersonalModel):
    """The hospital's half.

    Args:
        alpha: a, in [0, 1]; where it is learned, its first value.
        is_adaptive: Whether it is learned.
        common: See `PersonalModel`.
    """

    def __init__(self, *args: Any, alpha: float, is_adaptive: bool, **common: Any) -> None:
        super().__init__(*args, **common)
        kept = self._state.get(ALPHA) if is_adaptive else None
        self._alpha = torch.tensor(alpha, dtype=torch.float64) if kept is None else kept
        self._learns = is_adaptive

    def step_beside(self, loss_of: LossOf) -> None:
        """One step of the own model and, on the first batch of a round, of its share."""
        if self._learns:
            self._alpha.requires_grad_()
        super().step_beside(loss_of)
        if self._learns and self._optimizer is not None and self._alpha.grad is not None:
            rate = self._optimizer.param_groups[0]["lr"]
            self._alpha = (self._alpha.detach() - rate * self._alpha.grad).clamp(0, 1)
            self._learns = False

    def personal_loss(self, loss_of: LossOf) -> Tensor:
        """The mixture's loss; the shared model takes no part in the step."""
        mixed = self._mix()
        return loss_of(lambda inputs: functional_call(self._personal, mixed, (inputs,)))

    def state(self) -> Arrays:
        """The own model and its share."""
        return {**super().state(), ALPHA: np.array(self._alpha.item())}

    def candidates(self) -> dict[str, nn.Module]:
        """The mixture; statistics of layers are those of the own model, which saw the mixture's numbers."""
        mixture = copy.deepcopy(self._personal)
        with torch.no_grad():
            for name, parameter in self._mix().items():
                mixture.get_parameter(name).copy_(parameter)
        return {"personal": mixture}

    def _mix(self) -> dict[str, Tensor]:
        shared = dict(self._model.named_parameters())
        return {
            name: self._alpha * own + (1 - self._alpha) * shared[name].detach()
            for name, own in self._personal.named_parameters()
        }
