"""ResNet-18 for images, with GroupNorm in place of BatchNorm; its state has torchvision's names.

Source: He et al., arXiv 1512.03385; GroupNorm: Wu and He, arXiv 1803.08494.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from fl_contract.models.architecture import Architecture
from fl_contract.schema import Schema


class Resnet18Settings(Architecture):
    """ResNet-18: four stages of two residual blocks.

    Attributes:
        width: Channels of the first stage, doubled by each further one; 64 is the published size. A multiple of 8.
        norm: ``group`` (of 8 groups), or ``batch``, which no private study can use.
        stem: ``small`` keeps the size of the image, for sides below about 100; ``large`` is the published first layer,
            which makes an image of 224 pixels 56 wide.
    """

    TAKES = frozenset({"image"})

    kind: Literal["resnet18"]
    width: int = Field(default=64, ge=8, le=256, multiple_of=8)
    norm: Literal["group", "batch"] = "group"
    stem: Literal["small", "large"] = "small"

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """The network with torchvision's initial weights."""
        return Resnet18(self, channels_in=schema.input_shape[0], num_outputs=num_outputs)

    def build_norm(self, channels: int) -> nn.Module:
        """The layer after each convolution."""
        return nn.GroupNorm(8, channels) if self.norm == "group" else nn.BatchNorm2d(channels)


class ResidualBlock(nn.Module):
    """Two convolutions and a way around them; nothing is changed in place, which hooks could not follow."""

    def __init__(self, settings: Resnet18Settings, channels_in: int, channels: int, stride: int) -> None:
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


class Resnet18(nn.Module):
    """The network; children are named as in torchvision, BatchNorm's ``bn`` included, whatever the norm is."""

    def __init__(self, settings: Resnet18Settings, *, channels_in: int, num_outputs: int) -> None:
        super().__init__()
        width = settings.width
        kernel, stride = (3, 1) if settings.stem == "small" else (7, 2)
        self.conv1 = nn.Conv2d(channels_in, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = settings.build_norm(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if settings.stem == "small" else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(settings, width, width, stride=1)
        self.layer2 = self._stage(settings, width, 2 * width, stride=2)
        self.layer3 = self._stage(settings, 2 * width, 4 * width, stride=2)
        self.layer4 = self._stage(settings, 4 * width, 8 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(settings: Resnet18Settings, channels_in: int, channels: int, *, stride: int) -> nn.Module:
        return nn.Sequential(
            ResidualBlock(settings, channels_in, channels, stride), ResidualBlock(settings, channels, channels, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """One row of outputs for each image."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        outputs: Tensor = self.fc(self.avgpool(features).flatten(1))
        return outputs
