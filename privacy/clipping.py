"""The only place that says how far a unit's gradient is scaled down, and what the ways to do it have in common."""

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor, nn

from privacy.units import UnitBatch

Method = Literal["book-keeping", "hooks"]
"""How clipped sums are found: see `privacy.book_keeping` and `privacy.per_record`."""


class ClippedSums(Protocol):
    """Adds up the units' clipped gradients while the model runs as usual.

    Attributes:
        method: Which way this is.
        bytes_per_record: Memory that a batch has taken for each of its records, about, at most; 0 before the first.
    """

    method: Method
    bytes_per_record: int

    def add_clipped(self, sums: Sequence[Tensor], losses: Tensor, batch: UnitBatch, clip_norm: float) -> None:
        """Add the units' clipped gradients to the sums, one tensor for each trainable parameter of the model.

        Guarantees:
            - Adding or removing one unit changes the sums, together, by at most ``clip_norm`` in L2 norm.
            - A unit whose gradient is not finite, or too large for its norm to be found, counts as absent.
            - Leaves no gradient on any parameter.

        Args:
            sums: In the order of `trainable_parameters`; changed in place, so that no second set is in memory.
            losses: Each record's share of its unit's loss, shape [R], from the model's outputs on this batch.
            batch: The units of these records.
            clip_norm: Above 0.
        """
        ...


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """Return min(1, clip_norm / norm) for each unit, and 0 for a norm that is not finite; float32.

    >>> clip_factors(Tensor([0.5, 4.0, float("inf")]), 1.0)
    tensor([1.0000, 0.2500, 0.0000])
    """
    return (clip_norm / norms).clamp_(max=1.0).nan_to_num_(nan=0.0).float()


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Name and value of every trainable parameter, each once, in the order of every list of gradients here."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
