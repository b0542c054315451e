"""A convolutional network of two blocks for small images."""

from typing import Literal

from pydantic import Field
from torch import nn

from fl_contract.models.architecture import Architecture
from fl_contract.schema import Schema


class SmallCnnSettings(Architecture):
    """A convolutional network of two blocks.

    Attributes:
        width: Channels of the first block; the second has twice as many. A multiple of 4.
        norm: ``group`` (of 4 channels), ``none``, or ``batch``, which no private study can use.
    """

    TAKES = frozenset({"image"})

    kind: Literal["small-cnn"]
    width: int = Field(default=16, ge=4, le=256, multiple_of=4)
    norm: Literal["none", "group", "batch"] = "none"

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """Two blocks of convolution, normalisation, tanh and halving; then one linear layer."""
        channels, height, width = schema.input_shape
        return nn.Sequential(
            *self._block(channels, self.width),
            *self._block(self.width, 2 * self.width),
            nn.Flatten(),
            nn.Linear(2 * self.width * (height // 4) * (width // 4), num_outputs),
        )

    def _block(self, channels_in: int, channels_out: int) -> list[nn.Module]:
        norms: dict[str, list[nn.Module]] = {
            "none": [],
            "group": [nn.GroupNorm(channels_out // 4, channels_out)],
            "batch": [nn.BatchNorm2d(channels_out)],
        }
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1), *norms[self.norm], nn.Tanh(), nn.MaxPool2d(2)]
