"""The only place that decides which parameters of a network are trained, where a study does not train all of them.

With ``head`` only the last layer is trained. With ``lora`` the linear and convolution layers before it get a low-rank
term besides (Hu et al. 2021, arXiv 2106.09685, section 4.1): W x + (alpha / rank) B A x, where W stays as it is, A
starts at random and B at zero, so that the network starts as it was. What is not trained has no gradient and does not
travel.
"""

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from fl_contract.errors import SettingError

Trainable = Literal["all", "head", "lora"]

LORA_NAMES = ("lora_down", "lora_up")
"""Of the layers that are added."""


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank term; its own weight keeps its name."""

    def __init__(self, layer: nn.Linear, *, rank: int, alpha: float) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.lora_down = nn.Linear(layer.in_features, rank, bias=False)
        self.lora_up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.lora_up.weight)
        self._share = alpha / rank

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., numbers in] to [..., numbers out]."""
        added: Tensor = self.lora_up(self.lora_down(inputs))
        return super().forward(inputs) + self._share * added


class LoraConv2d(nn.Conv2d):
    """A convolution with a low-rank term: one of the same window to ``rank`` channels, then one of 1 x 1."""

    def __init__(self, layer: nn.Conv2d, *, rank: int, alpha: float) -> None:
        window: dict[str, Any] = {
            "kernel_size": layer.kernel_size,
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "padding_mode": layer.padding_mode,
        }
        super().__init__(layer.in_channels, layer.out_channels, bias=layer.bias is not None, **window)
        self.load_state_dict(layer.state_dict())
        self.lora_down = nn.Conv2d(layer.in_channels, rank, bias=False, **window)
        self.lora_up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.lora_up.weight)
        self._share = alpha / rank

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [B, channels in, H, W] to [B, channels out, H', W']."""
        added: Tensor = self.lora_up(self.lora_down(inputs))
        return super().forward(inputs) + self._share * added


def train_part(network: nn.Module, trainable: Trainable, *, rank: int, alpha: float) -> None:
    """Freeze a network but for the part that is trained, in place.

    The head is the last of its layers that has parameters, in the order in which they are defined. A layer whose
    low-rank term would be no smaller than itself stays frozen; so do those that are not plain.

    Raises:
        SettingError: The network has no layer before its head, or none that a low-rank term makes smaller.
    """
    if trainable == "all":
        return
    layers = [layer for layer in network.modules() if any(True for _ in layer.parameters(recurse=False))]
    if len(layers) < 2:
        raise SettingError(f"model.trainable={trainable!r}; the network has one layer only, and nothing to freeze")
    head = layers[-1]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    if trainable == "lora":
        found = [(parent, name, layer) for parent, name, layer in _children(network) if layer is not head]
        fitting = [(parent, name, layer) for parent, name, layer in found if _is_smaller(layer, rank)]
        if not fitting:
            raise SettingError(
                f"model.trainable='lora' with model.lora-rank={rank}; no linear or convolution layer before the head "
                "is larger than its low-rank term; lower the rank, or choose 'head'"
            )
        for parent, name, layer in fitting:
            setattr(parent, name, _with_lora(layer, rank=rank, alpha=alpha))


def is_added(name: str) -> bool:
    """Whether an array is of a low-rank term, which no file of published weights has.

    >>> is_added("0.lora_up.weight"), is_added("0.weight")
    (True, False)
    """
    return any(part in LORA_NAMES for part in name.split("."))


def _children(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            yield parent, name, layer


def _is_smaller(layer: nn.Module, rank: int) -> bool:
    if type(layer) is nn.Linear:
        return rank * (layer.in_features + layer.out_features) < layer.weight.numel()
    if type(layer) is nn.Conv2d and layer.groups == 1:
        window = layer.weight[0].numel()
        return rank * (window + layer.out_channels) < layer.weight.numel()
    return False


def _with_lora(layer: nn.Module, *, rank: int, alpha: float) -> nn.Module:
    added: nn.Module
    if isinstance(layer, nn.Linear):
        added = LoraLinear(layer, rank=rank, alpha=alpha)
    elif isinstance(layer, nn.Conv2d):
        added = LoraConv2d(layer, rank=rank, alpha=alpha)
    else:
        raise TypeError(f"{type(layer).__name__} takes no low-rank term")
    for name, parameter in added.named_parameters():
        parameter.requires_grad_(is_added(name))
    return added
