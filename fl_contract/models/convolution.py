"""The layers of convolutional networks by their number of axes: 1 for series, 2 for images, 3 for volumes."""

from typing import Literal

from torch import nn

Norm = Literal["none", "group", "batch"]

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MAX_POOLS: dict[int, type[nn.Module]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_BATCH_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

GROUP_CHANNELS = 4
"""Channels that GroupNorm takes together in the small networks."""


def halving_block(
    num_axes: int, channels_in: int, channels_out: int, *, kernel_size: int, norm: Norm
) -> list[nn.Module]:
    """Convolution, normalisation, tanh, and the larger of each two neighbours along every axis.

    Args:
        num_axes: Besides batch and channels.
        channels_in: Of the input.
        channels_out: Of the output; a multiple of `GROUP_CHANNELS`.
        kernel_size: Steps, pixels or voxels along each axis; an odd one keeps the length until it is halved.
        norm: ``group``, ``none``, or ``batch``, which no private study can use.
    """
    convolution = CONVOLUTIONS[num_axes](channels_in, channels_out, kernel_size, padding=kernel_size // 2)
    norms: dict[Norm, list[nn.Module]] = {
        "none": [],
        "group": [nn.GroupNorm(channels_out // GROUP_CHANNELS, channels_out)],
        "batch": [_BATCH_NORMS[num_axes](channels_out)],
    }
    return [convolution, *norms[norm], nn.Tanh(), MAX_POOLS[num_axes](2)]
