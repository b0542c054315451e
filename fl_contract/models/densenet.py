"""torchvision's DenseNet-121 for images, with GroupNorm in place of BatchNorm.

Source: Huang et al., arXiv 1608.06993; on chest X-rays Rajpurkar et al., arXiv 1711.05225.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from fl_contract.models.architecture import Architecture
from fl_contract.models.plane_images import check_plane, forbid_in_place, replace_batch_norm, take_channels
from fl_contract.models.pretrained import Layout, WeightsFile
from fl_contract.schema import Schema

SMALLEST_SIDE = 32
"""In pixels; the network halves an image five times."""


class DensenetSettings(Architecture):
    """DenseNet-121: four dense blocks of 6, 12, 24 and 16 layers.

    Attributes:
        growth_rate: Channels that each layer adds; 32 is the published size. A multiple of 8.
        norm: ``group`` (of 8 groups), or ``batch``, which no private study can use.
        weights: To start from; they need the published growth rate.
    """

    TAKES = frozenset({"image"})
    LAYOUT: ClassVar[Layout] = Layout(
        first="features.conv0.weight",
        head="classifier.",
        renamed=((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),),
    )

    kind: Literal["densenet121"]
    growth_rate: int = Field(default=32, ge=8, le=64, multiple_of=8)
    norm: Literal["group", "batch"] = "group"
    weights: WeightsFile | None = None

    def check_schema(self, schema: Schema) -> None:
        """Refuse volumes and small images, besides what no architecture of its kind takes."""
        super().check_schema(schema)
        check_plane(self.kind, schema, smallest_side=SMALLEST_SIDE)

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """The network with torchvision's initial weights and names."""
        from torchvision.models import DenseNet  # takes a second to import

        network: nn.Module = DenseNet(
            growth_rate=self.growth_rate,
            block_config=(6, 12, 24, 16),
            num_init_features=2 * self.growth_rate,
            num_classes=num_outputs,
        )
        take_channels(network, self.LAYOUT.first, schema.input_shape[0])
        if self.norm == "group":
            replace_batch_norm(network)
        forbid_in_place(network)
        return network
