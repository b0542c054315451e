"""What the published networks for plane images share: which images they take, and torchvision's layers made ours."""

import torch
from torch import nn

from fl_contract.schema import ImageSchema, Schema

NUM_GROUPS = 8


def check_plane(kind: str, schema: Schema, *, smallest_side: int = 4) -> None:
    """Refuse volumes, and images too small for the network.

    Raises:
        ValueError: pydantic puts it in its own words.
    """
    if not isinstance(schema, ImageSchema):
        return
    if schema.depth is not None:
        raise ValueError(
            f"model.kind={kind!r} and schema.depth={schema.depth}; this model is for plane images; for volumes choose "
            "'small-cnn' or 'unet'"
        )
    if min(schema.pixel_shape) < smallest_side:
        raise ValueError(
            f"model.kind={kind!r} and images of {schema.height} x {schema.width}; expected sides of {smallest_side} or "
            "more; for smaller images choose 'small-cnn', or 'resnet18' with stem = 'small'"
        )


def group_norm(channels: int) -> nn.GroupNorm:
    """What stands in place of BatchNorm."""
    return nn.GroupNorm(NUM_GROUPS, channels)


def replace_batch_norm(network: nn.Module) -> None:
    """Put GroupNorm, under the same name, where the network has BatchNorm."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, group_norm(child.num_features))


def forbid_in_place(network: nn.Module) -> None:
    """Let no activation overwrite its input, which hooks for per-record gradients could not follow."""
    for module in network.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010  the type of a module knows no such attribute


def take_channels(network: nn.Module, first: str, channels: int) -> None:
    """Make the first layer, a convolution of colour images, one of images with so many channels.

    For grey images its weights are summed over the colours: it gives what a grey image in all colours would give.

    Args:
        network: Changed in place.
        first: Name of that layer's weight.
        channels: 1 or 3.
    """
    if channels != 1:
        return
    layer = network.get_submodule(first.removesuffix(".weight"))
    if not isinstance(layer, nn.Conv2d):
        raise TypeError(f"{first} belongs to a {type(layer).__name__}; expected a convolution")
    layer.in_channels = 1
    with torch.no_grad():
        layer.weight = nn.Parameter(layer.weight.sum(dim=1, keepdim=True))
