"""Weights that a run starts from instead of random ones: what a study says of them, and how they fit into a network."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from pydantic import Field
from torch import Tensor, nn

from fl_contract.errors import SettingError
from fl_contract.models.partial_training import is_added
from fl_contract.settings import Settings

STATISTICS: Final = ("running_mean", "running_var", "num_batches_tracked")
"""Last parts of the names of what BatchNorm keeps, and GroupNorm does not."""

COUNTER: Final = "num_batches_tracked"
"""The one of them that older files miss; it starts at 0."""


class WeightsFile(Settings):
    """A file that the coordinator has; hospitals get the weights in round 1, like those of any model.

    Where a study trains a part of the model only, the rest does not travel, and every hospital has the file too.

    Attributes:
        file: Its name, without a folder; what torchvision publishes (``.pth``), or safetensors.
        sha256: Of the file, so that everybody agrees on its content: 64 digits, as ``sha256sum`` prints them.
    """

    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\.(pth|safetensors)$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the arrays of a published file are.

    Attributes:
        first: Name of the first layer's weight, [channels out, colours, height, width].
        head: How names of the last layer's arrays begin; these are of other classes, and start new.
        renamed: Patterns of older names, and what replaces them.
    """

    first: str
    head: str
    renamed: tuple[tuple[str, str], ...] = ()

    def name(self, given: str) -> str:
        """The present name of an array in a file."""
        for pattern, replacement in self.renamed:
            given = re.sub(pattern, replacement, given)
        return given


def fit_weights(model: nn.Module, arrays: Mapping[str, Tensor], layout: Layout) -> list[str]:
    """Put a file's arrays into the network, all but the head.

    Guarantees:
        - Every array of the network but the head's comes from the file, or nothing is changed.
        - A first layer for colours that the network has for grey is summed over the colours.

    Args:
        model: Changed in place.
        arrays: Of the file.
        layout: Of such files.

    Returns:
        Names in the file that were left out: of the head, and BatchNorm's statistics if the network has GroupNorm.

    Raises:
        SettingError: Arrays are missing, unknown, of another shape or not finite; names them.
    """
    own = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(layout.head) and not is_added(name)
    }
    given = {layout.name(name): array for name, array in arrays.items()}
    left_out = [
        name
        for name in given
        if name.startswith(layout.head) or (name not in own and name.rpartition(".")[2] in STATISTICS)
    ]
    fitting = {name: array for name, array in given.items() if name not in left_out}
    first, wanted = fitting.get(layout.first), own[layout.first]
    if first is not None and first.dim() == wanted.dim() == 4 and wanted.shape[1] == 1:
        fitting[layout.first] = first.sum(dim=1, keepdim=True)
    _require_fitting(fitting, own)
    with torch.no_grad():
        for name, array in fitting.items():
            own[name].copy_(array)
    return left_out


def _require_fitting(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    missing = [name for name in own if name not in given and not name.endswith(COUNTER)]
    unknown = [name for name in given if name not in own]
    shapes = [
        f"{name} {list(array.shape)} for {list(own[name].shape)}"
        for name, array in given.items()
        if name in own and array.shape != own[name].shape
    ]
    broken = [name for name, array in given.items() if not array.isfinite().all()]
    problems = {"misses": missing, "unknown": unknown, "of another shape": shapes, "not finite": broken}
    if any(problems.values()):
        described = "; ".join(f"{what}: {_shorten(names)}" for what, names in problems.items() if names)
        raise SettingError(f"model.weights does not fit the network; {described}; expected torchvision's arrays")


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
