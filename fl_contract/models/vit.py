"""torchvision's vision transformer for square images.

Source: Dosovitskiy et al., arXiv 2010.11929.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from fl_contract.models.architecture import Architecture
from fl_contract.models.plane_images import check_plane, take_channels
from fl_contract.models.pretrained import Layout, WeightsFile
from fl_contract.schema import ImageSchema, Schema


class VitSettings(Architecture):
    """A vision transformer; ViT-B/16 if nothing is set.

    Attributes:
        patch_size: Sides of a patch, in pixels; divides the sides of the image.
        num_hidden_layers: Encoder layers.
        num_heads: Of attention; divides the hidden size.
        hidden_size: Numbers for each patch; four times as many between the two linear layers of an encoder layer.
        weights: To start from; published files need images of the size that they were trained on, mostly 224.
    """

    TAKES = frozenset({"image"})
    NOT_PRIVATE = (
        "layers 'encoder.layers.*.self_attention' are MultiheadAttention, which gives no per-record gradients, and "
        "'class_token' and 'encoder.pos_embedding' belong to no layer; choose 'resnet18' or 'densenet121'"
    )
    LAYOUT: ClassVar[Layout] = Layout(
        first="conv_proj.weight",
        head="heads.",
        renamed=((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
    )

    kind: Literal["vit"]
    patch_size: int = Field(default=16, ge=2, le=64)
    num_hidden_layers: int = Field(default=12, ge=1, le=48)
    num_heads: int = Field(default=12, ge=1, le=64)
    hidden_size: int = Field(default=768, ge=1, le=4096)
    weights: WeightsFile | None = None

    def check_schema(self, schema: Schema) -> None:
        """Refuse images that do not fall into patches, besides what no architecture of its kind takes."""
        super().check_schema(schema)
        check_plane(self.kind, schema)
        if not isinstance(schema, ImageSchema):
            return
        if schema.height != schema.width or schema.height % self.patch_size:
            raise ValueError(
                f"model.patch-size={self.patch_size} and images of {schema.height} x {schema.width}; expected square "
                "images whose sides are a multiple of the patch size"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.num-heads={self.num_heads} and hidden-size={self.hidden_size}; expected a hidden size that the "
                "number of heads divides"
            )

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """The network with torchvision's initial weights and names; its last layer starts at zero."""
        from torchvision.models import VisionTransformer  # takes a second to import

        channels, side, _ = schema.input_shape
        network: nn.Module = VisionTransformer(
            image_size=side,
            patch_size=self.patch_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_heads,
            hidden_dim=self.hidden_size,
            mlp_dim=4 * self.hidden_size,
            num_classes=num_outputs,
        )
        take_channels(network, self.LAYOUT.first, channels)
        return network
