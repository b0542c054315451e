"""ResNets for images, with GroupNorm in place of BatchNorm; their state has torchvision's names.

Source: He et al., arXiv 1512.03385; GroupNorm: Wu and He, arXiv 1803.08494.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from fl_contract.models.architecture import Architecture
from fl_contract.models.plane_images import check_plane, group_norm
from fl_contract.models.pretrained import Layout, WeightsFile
from fl_contract.schema import Schema

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
"""Residual blocks of each stage."""


class ResnetSettings(Architecture):
    """ResNet-18, -34 or -50: four stages of residual blocks.

    Attributes:
        width: Channels of the first stage, doubled by each further one; 64 is the published size. A multiple of 8.
        norm: ``group`` (of 8 groups), or ``batch``, which no private study can use.
        stem: ``small`` keeps the size of the image, for sides below about 100; ``large`` is the published first layer,
            which makes an image of 224 pixels 56 wide.
        weights: To start from; they need the published width and the large stem.
    """

    TAKES = frozenset({"image"})
    LAYOUT: ClassVar[Layout] = Layout(first="conv1.weight", head="fc.")

    kind: Literal["resnet18", "resnet34", "resnet50"]
    width: int = Field(default=64, ge=8, le=256, multiple_of=8)
    norm: Literal["group", "batch"] = "group"
    stem: Literal["small", "large"] = "small"
    weights: WeightsFile | None = None

    def check_schema(self, schema: Schema) -> None:
        """Refuse volumes, besides what no architecture of its kind takes."""
        super().check_schema(schema)
        check_plane(self.kind, schema)

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """The network with torchvision's initial weights."""
        return Resnet(self, channels_in=schema.input_shape[0], num_outputs=num_outputs)

    def build_norm(self, channels: int) -> nn.Module:
        """The layer after each convolution."""
        return group_norm(channels) if self.norm == "group" else nn.BatchNorm2d(channels)


class ResidualBlock(nn.Module):
    """Two convolutions and a way around them; nothing is changed in place, which hooks could not follow."""

    EXPANSION = 1

    def __init__(self, settings: ResnetSettings, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = settings.build_norm(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = settings.build_norm(channels)
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), settings.build_norm(channels)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Features of the block, of half the size where it strides."""
        around = self.downsample(images) if hasattr(self, "downsample") else images
        through = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(images)))))
        features: Tensor = self.relu(through + around)
        return features


class Bottleneck(nn.Module):
    """Three convolutions, of which the middle one is narrow, and a way around them; as torchvision, version 1.5."""

    EXPANSION = 4

    def __init__(self, settings: ResnetSettings, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = self.EXPANSION * channels
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = settings.build_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = settings.build_norm(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = settings.build_norm(channels_out)
        self.relu = nn.ReLU()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), settings.build_norm(channels_out)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Features of the block, of half the size where it strides."""
        around = self.downsample(images) if hasattr(self, "downsample") else images
        narrow = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(images))))))
        features: Tensor = self.relu(self.bn3(self.conv3(narrow)) + around)
        return features


class Resnet(nn.Module):
    """The network; children are named as in torchvision, BatchNorm's ``bn`` included, whatever the norm is."""

    def __init__(self, settings: ResnetSettings, *, channels_in: int, num_outputs: int) -> None:
        super().__init__()
        width = settings.width
        block = Bottleneck if settings.kind == "resnet50" else ResidualBlock
        kernel, stride = (3, 1) if settings.stem == "small" else (7, 2)
        self.conv1 = nn.Conv2d(channels_in, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = settings.build_norm(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if settings.stem == "small" else nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for stage, num_blocks in enumerate(BLOCKS[settings.kind]):
            blocks: list[nn.Module] = []
            for number in range(num_blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(settings, channels, width * 2**stage, stride))
                channels = block.EXPANSION * width * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """One row of outputs for each image."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(len(BLOCKS["resnet18"])):
            features = self.get_submodule(f"layer{stage + 1}")(features)
        outputs: Tensor = self.fc(self.avgpool(features).flatten(1))
        return outputs
