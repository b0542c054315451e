"""A U-Net: a class for each pixel of an image, or for each voxel of a volume.

Sources: Ronneberger et al., arXiv 1505.04597; of volumes Çiçek et al., arXiv 1606.06650. Unlike theirs it keeps the
size of the image, enlarges without weights, and has GroupNorm.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fl_contract.models.architecture import Architecture
from fl_contract.models.convolution import CONVOLUTIONS, MAX_POOLS
from fl_contract.schema import Schema

NUM_GROUPS = 8


class UnetSettings(Architecture):
    """A U-Net; three-dimensional where the schema has a depth.

    Attributes:
        width: Channels at full size, doubled by each level below. A multiple of 8.
        num_levels: Halvings. Every side of the image has to be at least 2 to the power of it, and need not be a
            multiple: an odd side is halved downwards, and enlarged again to what it was.
    """

    TAKES = frozenset({"image"})
    TASKS = frozenset({"segmentation"})

    kind: Literal["unet"]
    width: int = Field(default=16, ge=8, le=128, multiple_of=8)
    num_levels: int = Field(default=3, ge=1, le=6)

    def check_schema(self, schema: Schema) -> None:
        """Refuse images too small for the levels, besides what no architecture of its kind takes."""
        super().check_schema(schema)
        _, *sides = schema.input_shape
        if min(sides) < 2**self.num_levels:
            raise ValueError(
                f"model.num-levels={self.num_levels} and a schema of {' x '.join(map(str, sides))}; expected sides of "
                f"{2**self.num_levels} or more, or fewer levels, each of which halves them"
            )

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """The network with torch's initial weights."""
        channels, *sides = schema.input_shape
        return Unet(self, num_axes=len(sides), channels_in=channels, num_outputs=num_outputs)


class Unet(nn.Module):
    """Blocks on the way down, one at the bottom, and on the way up with what was seen on the way down."""

    def __init__(self, settings: UnetSettings, *, num_axes: int, channels_in: int, num_outputs: int) -> None:
        super().__init__()
        widths = [settings.width * 2**level for level in range(settings.num_levels + 1)]
        self.down = nn.ModuleList(
            _block(num_axes, above, width) for above, width in zip([channels_in, *widths], widths[:-1], strict=False)
        )
        self.halve = MAX_POOLS[num_axes](2)
        self.bottom = _block(num_axes, widths[-2], widths[-1])
        self.up = nn.ModuleList(
            _block(num_axes, below + width, width) for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last = CONVOLUTIONS[num_axes](settings.width, num_outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Outputs for each pixel: [B, K, height, width], with the depth after K for volumes."""
        seen = []
        for block in self.down:
            images = block(images)
            seen.append(images)
            images = self.halve(images)
        images = self.bottom(images)
        for block, before in zip(self.up, reversed(seen), strict=True):
            enlarged = F.interpolate(images, size=before.shape[2:], mode="nearest")
            images = block(torch.cat([enlarged, before], dim=1))
        outputs: Tensor = self.last(images)
        return outputs


def _block(num_axes: int, channels_in: int, channels_out: int) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        convolution = CONVOLUTIONS[num_axes](channels, channels_out, 3, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(NUM_GROUPS, channels_out), nn.ReLU()]
    return nn.Sequential(*layers)
