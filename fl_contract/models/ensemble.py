"""The only place that makes one model of several: an ensemble, whose members' predictions are averaged.

Source: Guha, Talwalkar and Smith 2019 (arXiv 1902.11175), section 3.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_MEMBER = "members.{}.{}"


class Ensemble(nn.Module):
    """Models of one architecture, each asked for every record.

    Its state holds that of member i under ``members.<i>.<name>``.

    Args:
        members: At least one.
        combine: Makes one output of theirs, [members, records, ...]; see `fl_contract.tasks.task.Task.combine`.
    """

    def __init__(self, members: Sequence[nn.Module], combine: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._combine = combine

    def forward(self, inputs: Tensor) -> Tensor:
        """The members' predictions, averaged."""
        return self._combine(torch.stack([member(inputs) for member in self.members]))


def join_members(members: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The state of the ensemble whose members have these states, in their order.

    >>> import numpy as np
    >>> list(join_members([{"weight": np.zeros(2)}, {"weight": np.ones(2)}]))
    ['members.0.weight', 'members.1.weight']
    """
    return {
        _MEMBER.format(number, name): array for number, member in enumerate(members) for name, array in member.items()
    }
