"""A convolutional network of two blocks for small images and volumes."""

import math
from typing import Literal

from pydantic import Field
from torch import nn

from fl_contract.models.architecture import Architecture
from fl_contract.models.convolution import Norm, halving_block
from fl_contract.schema import Schema


class SmallCnnSettings(Architecture):
    """A convolutional network of two blocks; three-dimensional where the schema has a depth.

    Attributes:
        width: Channels of the first block; the second has twice as many. A multiple of 4.
        norm: ``group`` (of 4 channels), ``none``, or ``batch``, which no private study can use.
    """

    TAKES = frozenset({"image"})

    kind: Literal["small-cnn"]
    width: int = Field(default=16, ge=4, le=256, multiple_of=4)
    norm: Norm = "none"

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """Two blocks of convolution, normalisation, tanh and halving; then one linear layer."""
        channels, *sides = schema.input_shape
        return nn.Sequential(
            *halving_block(len(sides), channels, self.width, kernel_size=3, norm=self.norm),
            *halving_block(len(sides), self.width, 2 * self.width, kernel_size=3, norm=self.norm),
            nn.Flatten(),
            nn.Linear(2 * self.width * math.prod(side // 4 for side in sides), num_outputs),
        )
