"""A hospital's half of the algorithms that train a second model beside the shared one, which never leaves."""

import copy

import torch
from torch import Tensor, nn

from fl_contract.array_record import Arrays
from strategies.client_half import ClientHalf, LossOf

PERSONAL = "personal/"


class PersonalModel(ClientHalf):
    """The hospital's own model takes a step on each batch, by its own gradient; the shared one is trained as in FedAvg.

    Args:
        model: See `ClientHalf`; the own model starts as the first one that the hospital received.
        state: See `ClientHalf`.
    """

    def __init__(self, model: nn.Module, *, state: Arrays) -> None:
        super().__init__(model, control={}, state=state)
        self._personal = self._kept_model(PERSONAL)
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def personal(self) -> nn.Module:
        """The hospital's own model."""
        return self._personal

    def attach_personal(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the own model by this optimiser."""
        self._optimizer = optimizer

    def step_beside(self, loss_of: LossOf) -> None:
        """One step of the own model."""
        if self._optimizer is None:
            raise RuntimeError("the own model has no optimiser; expected attach_personal before the first batch")
        self._optimizer.zero_grad()
        self.personal_loss(loss_of).backward()
        with torch.no_grad():
            for name, parameter in self._personal.named_parameters():
                if parameter.grad is not None and (pull := self.pull(name, parameter)) is not None:
                    parameter.grad.add_(pull)
        self._optimizer.step()

    def personal_loss(self, loss_of: LossOf) -> Tensor:
        """What the own model is trained to lower on a batch."""
        return loss_of(self._personal)

    def pull(self, name: str, parameter: Tensor) -> Tensor | None:
        """What is added to the gradient of one parameter of the own model; None for nothing."""
        del name, parameter
        return None

    def state(self) -> Arrays:
        """The own model."""
        return arrays_of(self._personal, PERSONAL)

    def candidates(self) -> dict[str, nn.Module]:
        """The own model."""
        return {"personal": self._personal}

    def _kept_model(self, prefix: str) -> nn.Module:
        """A model that was kept under this prefix; the received one before the first round."""
        model = copy.deepcopy(self._model)
        kept = {name.removeprefix(prefix): each for name, each in self._state.items() if name.startswith(prefix)}
        if kept:
            model.load_state_dict(kept)
        return model


def arrays_of(model: nn.Module, prefix: str) -> Arrays:
    """All arrays of a model, to be kept under a prefix."""
    return {prefix + name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}
