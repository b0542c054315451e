"""FedRep: as FedPer, but each round trains the head first and then the body (Collins et al. 2021; arXiv 2102.07078).

In algorithm 1 a round is so many steps of the head, with the body as it was received, and then steps of the body, with
the head as it has become. The server's half is FedAvg's, over the arrays that travel.
"""

from typing import Any

import torch

from strategies.own_part import OwnPart


class FedRepClient(OwnPart):
    """The hospital's half.

    What rests has no gradient, so that no momentum or weight decay moves it either. Under differential privacy it rests
    after its noised gradient was made; the guarantee is the same. A round of one step trains both.

    Args:
        head_share: Share of the round's steps, the first ones, that train the head; one or more, and not all.
        common: See `OwnPart`.
    """

    def __init__(self, *args: Any, head_share: float, **common: Any) -> None:
        super().__init__(*args, **common)
        self._head_share = head_share
        self._head_steps: int | None = None
        self._steps_done = 0

    def attach(self, optimizer: torch.optim.Optimizer, *, num_steps: int = 1) -> None:
        """Let head and body take turns in the steps of this optimiser."""
        if num_steps > 1:
            self._head_steps = min(max(round(self._head_share * num_steps), 1), num_steps - 1)
        super().attach(optimizer, num_steps=num_steps)

    def _adjust(self, *_: Any) -> None:
        if self._head_steps is not None:
            is_turn_of_head = self._steps_done < self._head_steps
            for name, parameter in self.trained().items():
                if (name in self._kept) != is_turn_of_head:
                    parameter.grad = None
        self._steps_done += 1
