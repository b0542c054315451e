"""Every model kind builds the same weights from the same seed, disturbs no randomness, and travels unchanged."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from pydantic import TypeAdapter
from schemas import schema_of
from torch import nn

from fl_contract.messages import from_array_record, to_array_record
from fl_contract.models import ModelSettings, buffer_names, build_model
from fl_contract.study import STUDIES, load_study

KINDS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "logistic": ({"kind": "logistic"}, (5,)),
    "logistic on images": ({"kind": "logistic"}, (1, 4, 4)),
    "mlp": ({"kind": "mlp", "hidden-size": 7, "num-hidden-layers": 3}, (5,)),
    "mlp on images": ({"kind": "mlp"}, (3, 6, 5)),
    "small-cnn": ({"kind": "small-cnn", "width": 4}, (1, 8, 8)),
    "small-cnn with group norm": ({"kind": "small-cnn", "width": 8, "norm": "group"}, (3, 9, 13)),
    "small-cnn with batch norm": ({"kind": "small-cnn", "width": 4, "norm": "batch"}, (1, 4, 7)),
    "resnet18": ({"kind": "resnet18", "width": 8}, (1, 8, 8)),
    "resnet18 with the large stem": ({"kind": "resnet18", "width": 8, "stem": "large"}, (3, 33, 40)),
}
BATCH_NORM = KINDS["small-cnn with batch norm"]


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Settings and the shape of one patient's tensor."""
    settings: tuple[dict[str, Any], tuple[int, ...]] = request.param
    return settings


def build(kind: tuple[dict[str, Any], tuple[int, ...]], *, outputs: int = 3, seed: int = 1) -> nn.Module:
    settings: ModelSettings = TypeAdapter(ModelSettings).validate_python(kind[0])
    return build_model(settings, schema_of(kind[1]), num_outputs=outputs, seed=seed)


def state_bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def test_the_same_seed_builds_the_same_weights(kind: tuple[dict[str, Any], tuple[int, ...]]) -> None:
    first = build(kind)
    torch.rand(3)  # whatever happened in between

    assert state_bits(first) == state_bits(build(kind))


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("logistic")])
def test_another_seed_builds_other_weights(name: str) -> None:
    assert state_bits(build(KINDS[name], seed=1)) != state_bits(build(KINDS[name], seed=2))


def test_building_leaves_the_random_state_alone(
    kind: tuple[dict[str, Any], tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded_accelerators: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_accelerators.append)
    before = torch.get_rng_state()

    build(kind)

    assert torch.equal(torch.get_rng_state(), before)
    assert seeded_accelerators == []


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("outputs", [1, 10])
def test_a_batch_gives_one_row_a_patient(
    kind: tuple[dict[str, Any], tuple[int, ...]], outputs: int, batch: int
) -> None:
    model = build(kind, outputs=outputs).eval()

    assert model(torch.rand(batch, *kind[1])).shape == (batch, outputs)


def test_the_state_travels_through_flowers_records(kind: tuple[dict[str, Any], tuple[int, ...]]) -> None:
    model = build(kind)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    received = from_array_record(to_array_record(arrays))
    other = build(kind, seed=99)
    other.load_state_dict({name: torch.from_numpy(array) for name, array in received.items()})

    assert state_bits(other) == state_bits(model)


def test_logistic_regression_starts_at_even_odds() -> None:
    model = build(KINDS["logistic"], outputs=1)

    assert torch.equal(model(torch.rand(4, 5)), torch.zeros(4, 1))


def test_a_perceptron_has_the_layers_that_it_is_asked_for() -> None:
    shapes = [tuple(p.shape) for p in build(KINDS["mlp"]).parameters()]

    assert shapes == [(7, 5), (7,), (7, 7), (7,), (7, 7), (7,), (3, 7), (3,)]


@pytest.mark.parametrize(("norm", "layer"), [("none", None), ("group", nn.GroupNorm), ("batch", nn.BatchNorm2d)])
def test_a_network_has_the_normalisation_that_it_is_asked_for(norm: str, layer: type[nn.Module] | None) -> None:
    model = build(({"kind": "small-cnn", "width": 8, "norm": norm}, (1, 8, 8)))

    found = [module for module in model.modules() if isinstance(module, nn.GroupNorm | nn.BatchNorm2d)]

    assert [type(module) for module in found] == ([layer, layer] if layer else [])
    assert [module.num_channels // module.num_groups for module in found if isinstance(module, nn.GroupNorm)] == (
        [4, 4] if norm == "group" else []
    )


@pytest.mark.parametrize(("stem", "kernel"), [("large", 7), ("small", 3)])
def test_a_resnet_has_torchvisions_names_and_shapes(stem: str, kernel: int) -> None:
    reference = torchvision.models.resnet18(num_classes=3, norm_layer=lambda channels: nn.GroupNorm(8, channels))
    model = build(({"kind": "resnet18", "stem": stem}, (3, 32, 32)))

    shapes = {name: tuple(value.shape) for name, value in reference.state_dict().items()}
    shapes["conv1.weight"] = (64, 3, kernel, kernel)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shapes
    assert list(model.state_dict()) == list(shapes)


def test_a_resnet_with_the_published_stem_computes_what_torchvisions_does() -> None:
    reference = torchvision.models.resnet18(num_classes=3, norm_layer=lambda channels: nn.GroupNorm(8, channels))
    model = build(({"kind": "resnet18", "stem": "large"}, (3, 40, 40)))
    model.load_state_dict(reference.state_dict())
    images = torch.rand(2, 3, 40, 40)

    torch.testing.assert_close(model(images), reference(images))


def test_a_resnet_changes_nothing_in_place() -> None:
    model = build(KINDS["resnet18"])

    assert not any(getattr(module, "inplace", False) for module in model.modules())


def test_buffers_are_the_state_that_is_not_trained(kind: tuple[dict[str, Any], tuple[int, ...]]) -> None:
    model = build(kind)

    names = buffer_names(model)

    assert names == {name for name, _ in model.named_buffers()}
    assert bool(names) == (kind is BATCH_NORM)


def test_the_statistics_of_batch_norm_are_buffers() -> None:
    endings = {name.rpartition(".")[2] for name in buffer_names(build(BATCH_NORM))}

    assert endings == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.toml")))
def test_every_shipped_study_builds_its_model(name: str) -> None:
    study = load_study(name)
    outputs, shape = study.num_outputs, study.data_schema.input_shape

    model = study.build_model()

    assert model(torch.zeros(2, *shape)).shape == (2, outputs)
    assert all(np.isfinite(tensor.numpy()).all() for tensor in model.state_dict().values())
