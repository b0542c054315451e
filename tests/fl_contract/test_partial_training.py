"""A study that trains a part of its model freezes all else; what is frozen has no gradient and does not travel."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from fl_contract.errors import SettingError
from fl_contract.exchanged import exchanged_names
from fl_contract.models.partial_training import LoraConv2d, LoraLinear, Trainable, train_part
from fl_contract.study import Study
from fl_contract.study_file import Scalar, load_study
from privacy.book_keeping import is_covered
from privacy.model_check import check_dp_compatible


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 8, 3, stride=2, padding=1),
            norm=nn.GroupNorm(2, 8),
            flat=nn.Flatten(),
            body=nn.Linear(8 * 16, 32),
            act=nn.Tanh(),
            head=nn.Linear(32, 4),
        )
    )


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, each in model.named_parameters() if each.requires_grad}


def part(trainable: Trainable, *, rank: int = 2, alpha: float = 4.0) -> nn.Sequential:
    model = network()
    train_part(model, trainable, rank=rank, alpha=alpha)
    return model


LORA = {f"{layer}.lora_{way}.weight" for layer in ("conv", "body") for way in ("down", "up")}


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("all", {name for name, _ in network().named_parameters()}),
        ("head", {"head.weight", "head.bias"}),
        ("lora", {"head.weight", "head.bias"} | LORA),
    ],
)
def test_what_is_trained(trainable: Trainable, expected: set[str]) -> None:
    assert trained_names(part(trainable)) == expected


def test_own_arrays_keep_their_names() -> None:
    assert set(part("lora").state_dict()) == set(network().state_dict()) | LORA


@pytest.mark.parametrize("trainable", ["head", "lora"])
def test_the_network_starts_as_it_was(trainable: Trainable) -> None:
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(part(trainable)(images), network()(images), rtol=0, atol=0)


def test_a_linear_layer_gets_its_low_rank_term() -> None:
    """W x + b + alpha / rank * B (A x), with A and B of rank 1: 2 * 3 * (1 + 2) = 18 more for x = (1, 2)."""
    layer = LoraLinear(nn.Linear(2, 1), rank=1, alpha=2.0)
    with torch.no_grad():
        for parameter, value in ((layer.weight, 5.0), (layer.lora_down.weight, 1.0), (layer.lora_up.weight, 3.0)):
            parameter.fill_(value)
        layer.bias.fill_(7.0)

    assert layer(torch.tensor([[1.0, 2.0]])).item() == 5 * 3 + 7 + 18


def test_a_convolution_gets_the_term_of_the_same_window() -> None:
    """What the term adds is a convolution with the kernel alpha / rank * B A, A's kernels mixed by B."""
    generator = torch.Generator().manual_seed(2)
    layer = LoraConv2d(nn.Conv2d(3, 8, 3, stride=2, padding=1), rank=2, alpha=3.0)
    with torch.no_grad():
        layer.lora_up.weight.normal_(generator=generator)
    images = torch.randn(2, 3, 8, 8, generator=generator)
    kernel = 1.5 * torch.einsum("or,rikl->oikl", layer.lora_up.weight[:, :, 0, 0], layer.lora_down.weight)

    expected = nn.functional.conv2d(images, layer.weight + kernel, layer.bias, stride=2, padding=1)

    torch.testing.assert_close(layer(images), expected)


def test_a_layer_that_a_term_would_not_make_smaller_stays_frozen() -> None:
    """At rank 8 the term has 8 * (27 + 8) = 280 numbers for the convolution's 216, and 1280 for the body's 4096."""
    assert trained_names(part("lora", rank=8)) == {
        *("head.weight", "head.bias", "body.lora_down.weight", "body.lora_up.weight")
    }


def test_layers_that_read_their_weight_themselves_get_no_term() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.TransformerEncoderLayer(32, 4, 64), nn.Linear(32, 2))

    train_part(model, "lora", rank=2, alpha=1.0)

    assert not [name for name in model.state_dict() if "out_proj.lora" in name]


@pytest.mark.parametrize(
    ("model", "trainable", "rule"),
    [
        (nn.Linear(3, 2), "head", "the network has one layer only"),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), "lora", "lora-rank=2; no linear or convolution layer"),
        (nn.Sequential(nn.Embedding(9, 9), nn.Linear(9, 2)), "lora", "no linear or convolution layer"),
    ],
)
def test_a_network_without_such_a_part_is_refused(model: nn.Module, trainable: Trainable, rule: str) -> None:
    with pytest.raises(SettingError, match=rule):
        train_part(model, trainable, rank=2, alpha=1.0)


@pytest.mark.parametrize("trainable", ["head", "lora"])
def test_a_partly_trained_network_can_be_private(trainable: Trainable) -> None:
    model = part(trainable)

    check_dp_compatible(model)

    assert is_covered(model)


def study(**overrides: Scalar) -> Study:
    named = {f"model.{key.replace('_', '-')}": value for key, value in overrides.items()}
    return load_study("digits", overrides={"privacy.mechanism": "none", **named})


@pytest.mark.parametrize("trainable", ["head", "lora"])
def test_frozen_arrays_do_not_travel_and_follow_from_the_seed(trainable: str) -> None:
    """BatchNorm's statistics are not frozen: they travel as in any model."""
    ours = study(trainable=trainable, norm="batch", lora_rank=2)
    model, again = ours.build_model(), ours.build_model()

    travels = exchanged_names(ours, model)

    buffers = {name for name, _ in model.named_buffers()}
    assert set(travels) == trained_names(model) | buffers
    assert buffers
    for name, array in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], array, rtol=0, atol=0)
    if trainable == "head":
        full = study(norm="batch").build_model().state_dict()
        for name, array in model.state_dict().items():
            torch.testing.assert_close(full[name], array, rtol=0, atol=0)


def test_a_model_that_is_trained_whole_travels_whole() -> None:
    ours = study()

    assert exchanged_names(ours, ours.build_model()) == tuple(ours.build_model().state_dict())
