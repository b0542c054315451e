"""All arrays of a published file but the head go into the network; one that does not fit is named, and changes none."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torchvision
from pydantic import TypeAdapter, ValidationError
from schemas import schema_of
from torch import Tensor, nn

from fl_contract.errors import SettingError
from fl_contract.models import ModelSettings, PretrainableSettings, build_model
from fl_contract.models.pretrained import STATISTICS, WeightsFile, fit_weights

State = dict[str, Tensor]

SMALL_VIT: dict[str, Any] = {"patch-size": 4, "num-hidden-layers": 2, "num-heads": 2, "hidden-size": 8}


def settings_of(kind: str, **settings: Any) -> Any:
    keys = {"kind": kind, **({"stem": "large"} if kind.startswith("resnet") else {}), **settings}
    parsed: Any = TypeAdapter(ModelSettings).validate_python(keys)
    return parsed


def build(settings: PretrainableSettings, *, channels: int = 3) -> nn.Module:
    return build_model(settings, schema_of((channels, 32, 32)), num_outputs=2, seed=1)


@cache
def published(kind: str) -> State:
    """What a file of torchvision holds, with 1000 classes and random weights."""
    torch.manual_seed(0)
    if kind == "vit":
        network: nn.Module = torchvision.models.VisionTransformer(32, 4, 2, 2, 8, 32)
    else:
        network = torchvision.models.get_model(kind.replace("-", "_"))
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return network.state_dict()


def old_densenet(state: State) -> State:
    """Names as in the file that torchvision publishes."""
    renamed = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): each for name, each in state.items()}
    return {name: each for name, each in renamed.items() if not name.endswith("num_batches_tracked")}


def old_vit(state: State) -> State:
    return {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): each
        for name, each in state.items()
    }


CASES: dict[str, tuple[PretrainableSettings, Callable[[State], State]]] = {
    "resnet18": (settings_of("resnet18"), dict),
    "resnet50": (settings_of("resnet50"), dict),
    "densenet121": (settings_of("densenet121"), dict),
    "densenet121, names of old": (settings_of("densenet121"), old_densenet),
    "efficientnet-b0": (settings_of("efficientnet-b0"), dict),
    "vit": (settings_of("vit", **SMALL_VIT), dict),
    "vit, names of old": (settings_of("vit", **SMALL_VIT), old_vit),
}


@pytest.mark.parametrize(
    "name", [name if name.startswith("vit") else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_all_but_the_head_and_batch_norms_statistics_come_from_the_file(name: str) -> None:
    settings, as_in_file = CASES[name]
    arrays, model = published(settings.kind), build(settings)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    left_out = fit_weights(model, as_in_file(arrays), settings.LAYOUT)

    head = {key for key in before if key.startswith(settings.LAYOUT.head)}
    expected = {key: before[key] if key in head else arrays[key] for key in before}
    assert head
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    in_file = [settings.LAYOUT.name(key) for key in as_in_file(arrays)]
    assert set(left_out) == head | {key for key in in_file if key.rpartition(".")[2] in STATISTICS}


def test_with_batch_norm_the_network_is_that_of_the_file() -> None:
    settings = settings_of("resnet18", norm="batch")
    reference, model = torchvision.models.resnet18(), build(settings).eval()
    reference.load_state_dict(published("resnet18"))
    images = torch.rand(2, 3, 64, 64)

    left_out = fit_weights(model, published("resnet18"), settings.LAYOUT)

    reference.fc, model.fc = nn.Identity(), nn.Identity()
    torch.testing.assert_close(model(images), reference.eval()(images))
    assert left_out == ["fc.weight", "fc.bias"]


def test_batch_norms_of_an_older_file_start_to_count_at_zero() -> None:
    settings = settings_of("resnet18", norm="batch")
    arrays = {name: each for name, each in published("resnet18").items() if not name.endswith("num_batches_tracked")}
    model = build(settings)

    fit_weights(model, arrays, settings.LAYOUT)

    assert int(model.state_dict()["bn1.num_batches_tracked"]) == 0
    assert torch.equal(model.state_dict()["bn1.running_var"], arrays["bn1.running_var"])


def test_for_grey_images_the_first_weights_are_summed_over_the_colours() -> None:
    settings, arrays = settings_of("resnet18"), published("resnet18")
    model = build(settings, channels=1)

    fit_weights(model, arrays, settings.LAYOUT)

    assert torch.equal(model.state_dict()["conv1.weight"], arrays["conv1.weight"].sum(dim=1, keepdim=True))


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {**state, name: change(state[name])}


@pytest.mark.parametrize(
    ("settings", "edit", "rule"),
    [
        ({}, without("layer1.0.conv1.weight"), "misses: layer1.0.conv1.weight; expected"),
        ({}, without("conv1.weight"), "misses: conv1.weight; expected"),
        ({}, lambda state: {**state, "layer9.weight": torch.ones(2)}, "unknown: layer9.weight; expected"),
        ({}, changed("bn1.weight", lambda each: each[:7]), r"of another shape: bn1.weight \[7\] for \[64\]"),
        ({}, changed("conv1.weight", lambda each: each[:, :1]), r"conv1.weight \[64, 1, 7, 7\] for \[64, 3, 7, 7\]"),
        ({"stem": "small"}, dict, r"of another shape: conv1.weight \[64, 3, 7, 7\] for \[64, 3, 3, 3\]; expected"),
        ({"width": 8}, dict, r"of another shape: .* and 5\d more; expected"),
        ({}, changed("bn1.bias", lambda each: each * torch.nan), "not finite: bn1.bias; expected"),
        ({}, lambda _: {}, "misses: conv1.weight, bn1.weight, bn1.bias, layer1.0.conv1.weight and"),
    ],
)
def test_arrays_that_do_not_fit_are_named_and_nothing_is_changed(
    settings: dict[str, Any], edit: Callable[[State], State], rule: str
) -> None:
    parsed = settings_of("resnet18", **settings)
    model = build(parsed)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    with pytest.raises(SettingError, match=rule):
        fit_weights(model, edit(published("resnet18")), parsed.LAYOUT)

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "file", ["../resnet18.pth", "/etc/resnet18.pth", "a/b.pth", "resnet18.pkl", ".pth", "..pth", ""]
)
def test_a_file_of_weights_is_a_name_without_a_folder(file: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        WeightsFile.model_validate({"file": file, "sha256": "0" * 64})
