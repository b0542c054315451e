"""A convolutional network along time, for series."""

from typing import Literal

from pydantic import Field
from torch import nn

from fl_contract.models.architecture import Architecture
from fl_contract.models.convolution import Norm, halving_block
from fl_contract.schema import Schema


class Cnn1dSettings(Architecture):
    """Blocks that each halve the length of a series, and the mean over what is left of it.

    Attributes:
        width: Channels of the first block, doubled by each further one. A multiple of 4.
        kernel_size: Steps that a convolution sees.
        num_blocks: A series has to be at least 2 to the power of it long.
        norm: ``group`` (of 4 channels), ``none``, or ``batch``, which no private study can use.
    """

    TAKES = frozenset({"series"})

    kind: Literal["cnn1d"]
    width: int = Field(default=16, ge=4, le=256, multiple_of=4)
    kernel_size: int = Field(default=5, ge=3, le=63)
    num_blocks: int = Field(default=3, ge=1, le=6)
    norm: Norm = "none"

    def check_schema(self, schema: Schema) -> None:
        """Refuse series that are too short for the blocks, besides what no architecture of its kind takes."""
        super().check_schema(schema)
        length = schema.input_shape[-1]
        if length < 2**self.num_blocks:
            raise ValueError(
                f"model.num-blocks={self.num_blocks} and schema.length={length}; expected a series of "
                f"{2**self.num_blocks} steps or more, or fewer blocks, each of which halves it"
            )

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """The blocks, the mean over time, and one linear layer."""
        channels = schema.input_shape[0]
        blocks: list[nn.Module] = []
        for block in range(self.num_blocks):
            width = self.width * 2**block
            blocks += halving_block(1, channels, width, kernel_size=self.kernel_size, norm=self.norm)
            channels = width
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, num_outputs))
