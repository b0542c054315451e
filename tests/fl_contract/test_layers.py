"""Which arrays of a network are its normalisation, which its head, and which of a study's model travel."""

import re
from typing import Any

import pytest
from torch import nn

from fl_contract.errors import SettingError
from fl_contract.exchanged import exchanged_names, kept_names
from fl_contract.models.layers import head_names, norm_names
from fl_contract.settings import read_toml
from fl_contract.study import Study
from fl_contract.study_file import STUDIES, Scalar, load_study


class Shared(nn.Module):
    """One normalisation layer under two names, and a weight of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(nn.Linear(2, 1).weight.detach())
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.again = self.norm


@pytest.mark.parametrize(
    ("layer", "arrays"),
    [
        (nn.BatchNorm1d(2), {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}),
        (nn.BatchNorm2d(2, affine=False), {"running_mean", "running_var", "num_batches_tracked"}),
        (nn.InstanceNorm2d(2, affine=True), {"weight", "bias"}),
        (nn.GroupNorm(1, 2), {"weight", "bias"}),
        (nn.LayerNorm(2), {"weight", "bias"}),
        (nn.RMSNorm(2), {"weight"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_all_arrays_of_normalisation_are_named(layer: nn.Module, arrays: set[str]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(layer, nn.Tanh()), nn.Linear(2, 2))

    assert norm_names(model) == {f"1.0.{name}" for name in arrays}


def test_a_layer_under_two_names_stays_under_both() -> None:
    assert norm_names(Shared()) == {"norm.weight", "norm.bias", "again.weight", "again.bias"}


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.LayerNorm(2, elementwise_affine=False)], ids=["none", "no arrays"])
def test_a_model_without_arrays_of_normalisation_is_refused(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 2), layer)

    with pytest.raises(SettingError, match="no normalisation layer that could stay"):
        norm_names(model)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("", {"last.1.weight", "last.1.bias"}),
        ("last", {"last.0.weight", "last.0.bias", "last.1.weight", "last.1.bias"}),
        ("last.0", {"last.0.weight", "last.0.bias"}),
        ("first", {"first.weight", "first.bias"}),
    ],
)
def test_the_head_is_the_last_layer_with_weights_or_the_named_part(head: str, expected: set[str]) -> None:
    model = nn.Sequential()
    model.add_module("first", nn.Linear(2, 2))
    model.add_module("last", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Tanh()))

    assert head_names(model, head) == expected


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            "fc",
            "strategy.head='fc' is no layer with weights of the model; expected one of ['0', '1']",
        ),
        (nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)), "1", "strategy.head='1' is no layer with weights"),
        (nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), "", "all weights of the model are in its head"),
        (nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), "0", "all weights of the model are in its"),
    ],
    ids=["unknown", "without weights", "one layer", "everything"],
)
def test_a_head_that_is_none_or_everything_is_refused(model: nn.Module, head: str, message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        head_names(model, head)


PLAIN: dict[str, Scalar] = {"privacy.mechanism": "none", "model.kind": "mlp"}


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ({"strategy.name": "fedavg"}, []),
        ({"strategy.name": "ditto"}, []),
        ({"strategy.name": "fedper"}, ["3.bias", "3.weight"]),
        ({"strategy.name": "fedrep"}, ["3.bias", "3.weight"]),
        ({"strategy.name": "fedrep", "strategy.head": "1"}, ["1.bias", "1.weight"]),
        ({"strategy.name": "fedper", "simulation.trainers": "pooled"}, []),
        ({"strategy.name": "fedper", "simulation.trainers": "hospital-2"}, []),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_stays_does_not_travel(overrides: dict[str, Scalar], kept: list[str]) -> None:
    study = load_study("breast-cancer", overrides={**PLAIN, **overrides})
    model: Any = study.build_model()

    travelling = exchanged_names(study, model)

    assert sorted(kept_names(study, model)) == kept
    assert travelling == tuple(name for name in model.state_dict() if name not in kept)


@pytest.mark.parametrize("name", ["fedbn", "fedper", "fedrep"])
def test_reading_a_study_imports_no_model_to_look_for_what_stays(name: str) -> None:
    raw = read_toml(STUDIES / "breast-cancer.toml")
    raw["strategy"], raw["model"] = {"name": name}, {"kind": "python", "path": "no_such_module:build"}

    assert Study.parse(raw, origin="test").is_personal


def test_a_model_of_one_s_own_says_its_head_like_any_other() -> None:
    raw = read_toml(STUDIES / "breast-cancer.toml")
    raw["strategy"], raw["model"] = {"name": "fedper"}, {"kind": "python", "path": "own_models:build"}
    study = Study.parse(raw, origin="test")

    assert kept_names(study, study.build_model()) == {"3.weight", "3.bias"}
