"""A hospital's half of the algorithms that share a part of the model: each hospital keeps the rest for itself."""

from collections.abc import Collection

import numpy as np
import torch
from torch import nn

from fl_contract.array_record import Arrays
from strategies.client_half import ClientHalf


class OwnPart(ClientHalf):
    """The hospital's own arrays are laid over the received model, and kept again after the training.

    They follow from the same steps as the shared ones, so differential privacy covers them too.

    Args:
        model: See `ClientHalf`; a hospital that never trained has the own arrays that this model has.
        state: See `ClientHalf`.
        kept: Names of the own arrays.
    """

    def __init__(self, model: nn.Module, *, state: Arrays, kept: Collection[str]) -> None:
        own = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
        model.load_state_dict({**model.state_dict(), **own})
        super().__init__(model, control={}, state=state)
        self._kept = kept

    def state(self) -> Arrays:
        """The own arrays."""
        return {name: array for name, array in self.outgoing().items() if name in self._kept}

    def candidates(self) -> dict[str, nn.Module]:
        """The shared part with the hospital's own."""
        return {"personal": self._model}
