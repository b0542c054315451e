"""torchvision's EfficientNets for images, with GroupNorm in place of BatchNorm.

Source: Tan and Le, arXiv 1905.11946.
"""

from typing import ClassVar, Literal

from torch import nn

from fl_contract.models.architecture import Architecture
from fl_contract.models.plane_images import check_plane, forbid_in_place, replace_batch_norm, take_channels
from fl_contract.models.pretrained import Layout, WeightsFile
from fl_contract.schema import Schema


class EfficientnetSettings(Architecture):
    """EfficientNet-B0 to B4, each wider and deeper than the one before.

    Attributes:
        norm: ``group`` (of 8 groups), or ``batch``, which no private study can use.
        weights: To start from.
    """

    TAKES = frozenset({"image"})
    LAYOUT: ClassVar[Layout] = Layout(first="features.0.0.weight", head="classifier.")

    kind: Literal["efficientnet-b0", "efficientnet-b1", "efficientnet-b2", "efficientnet-b3", "efficientnet-b4"]
    norm: Literal["group", "batch"] = "group"
    weights: WeightsFile | None = None

    def check_schema(self, schema: Schema) -> None:
        """Refuse volumes, besides what no architecture of its kind takes."""
        super().check_schema(schema)
        check_plane(self.kind, schema)

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """The network with torchvision's initial weights and names."""
        from torchvision.models import get_model  # takes a second to import

        network: nn.Module = get_model(self.kind.replace("-", "_"), weights=None, num_classes=num_outputs)
        take_channels(network, self.LAYOUT.first, schema.input_shape[0])
        if self.norm == "group":
            replace_batch_norm(network)
        forbid_in_place(network)
        return network
