"""What every architecture promises; a new one joins by a line in ``CASES``, and one without a line fails."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import pytest
import torch
from pydantic import TypeAdapter
from schemas import modalities, schema_of, triples
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from fl_contract.array_record import from_array_record, to_array_record
from fl_contract.errors import SettingError
from fl_contract.models import ModelSettings, buffer_names, build_model
from fl_contract.models.layers import head_names
from fl_contract.schema import Schema
from fl_contract.settings import read_toml
from fl_contract.study import Study
from fl_contract.study_file import STUDIES
from privacy.book_keeping import book_keeping
from privacy.dp_sgd import train_privately
from privacy.errors import UnsupportedModelError
from privacy.model_check import check_dp_compatible
from privacy.plan import PrivacyPlan
from privacy.units import UnitBatch, Units

Private = Literal["yes", "no: layer", "no: model"]
"""Whether a model is private, and if not what says so: one of its layers, or the architecture."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An architecture with settings of a study.

    Attributes:
        settings: Of ``[model]``.
        schema: Of the records.
        num_outputs: Of the model.
        private: Whether it trains with differential privacy.
        is_random: Whether its first weights are drawn.
    """

    settings: dict[str, Any]
    schema: Schema
    num_outputs: int = 3
    private: Private = "yes"
    is_random: bool = True


SURVIVAL = schema_of((5,), task="survival", time_unit="days")
NUMBER = schema_of((5,), task="regression", target={"minimum": 0.0, "maximum": 1.0})


def pixels(*shape: int) -> Schema:
    return schema_of(shape, task="segmentation", classes=["a", "b", "c"])


CASES = {
    "logistic": Case(settings={"kind": "logistic"}, schema=schema_of((5,)), is_random=False),
    "logistic, images": Case(settings={"kind": "logistic"}, schema=schema_of((1, 4, 4)), is_random=False),
    "logistic, two classes": Case(
        settings={"kind": "logistic"}, schema=schema_of((5,), classes=["a", "b"]), num_outputs=1, is_random=False
    ),
    "linear": Case(settings={"kind": "linear"}, schema=NUMBER, num_outputs=1, is_random=False),
    "mlp": Case(settings={"kind": "mlp", "hidden-size": 7, "num-hidden-layers": 3}, schema=schema_of((5,))),
    "mlp, normalised": Case(settings={"kind": "mlp", "norm": "layer"}, schema=schema_of((5,))),
    "mlp, images": Case(settings={"kind": "mlp"}, schema=schema_of((3, 6, 5))),
    "mlp, series": Case(settings={"kind": "mlp"}, schema=schema_of((2, 6))),
    "cox": Case(settings={"kind": "cox"}, schema=SURVIVAL, num_outputs=1, is_random=False),
    "cox, deep": Case(settings={"kind": "cox", "num-hidden-layers": 2}, schema=SURVIVAL, num_outputs=1),
    "multimodal": Case(settings={"kind": "multimodal"}, schema=modalities(genomic=6, clinical=3, medication=1)),
    "small-cnn": Case(settings={"kind": "small-cnn", "width": 4}, schema=schema_of((1, 8, 8))),
    "small-cnn, group": Case(settings={"kind": "small-cnn", "width": 8, "norm": "group"}, schema=schema_of((3, 9, 13))),
    "small-cnn, batch": Case(
        settings={"kind": "small-cnn", "width": 4, "norm": "batch"}, schema=schema_of((1, 4, 7)), private="no: layer"
    ),
    "small-cnn, volumes": Case(
        settings={"kind": "small-cnn", "width": 4, "norm": "group"}, schema=schema_of((1, 5, 9, 4))
    ),
    "resnet18": Case(settings={"kind": "resnet18", "width": 8}, schema=schema_of((1, 8, 8))),
    "resnet18, large stem": Case(
        settings={"kind": "resnet18", "width": 8, "stem": "large"}, schema=schema_of((3, 33, 40))
    ),
    "resnet34": Case(settings={"kind": "resnet34", "width": 8}, schema=schema_of((1, 12, 12))),
    "resnet50": Case(settings={"kind": "resnet50", "width": 8}, schema=schema_of((3, 16, 12))),
    "resnet50, batch": Case(
        settings={"kind": "resnet50", "width": 8, "norm": "batch"}, schema=schema_of((1, 12, 12)), private="no: layer"
    ),
    "densenet121": Case(settings={"kind": "densenet121", "growth-rate": 8}, schema=schema_of((1, 32, 32))),
    "efficientnet-b0": Case(settings={"kind": "efficientnet-b0"}, schema=schema_of((1, 33, 32))),
    "vit": Case(
        settings={"kind": "vit", "patch-size": 4, "num-hidden-layers": 2, "num-heads": 2, "hidden-size": 8},
        schema=schema_of((1, 12, 12)),
        private="no: model",
    ),
    "unet": Case(settings={"kind": "unet", "width": 8, "num-levels": 2}, schema=pixels(3, 9, 6)),
    "unet, volumes": Case(settings={"kind": "unet", "width": 8, "num-levels": 2}, schema=pixels(1, 4, 5, 7)),
    "cnn1d": Case(settings={"kind": "cnn1d", "width": 4}, schema=schema_of((2, 11))),
    "cnn1d, group": Case(settings={"kind": "cnn1d", "norm": "group", "num-blocks": 1}, schema=schema_of((1, 3))),
    "gru": Case(settings={"kind": "gru", "hidden-size": 6, "num-hidden-layers": 2}, schema=schema_of((2, 7))),
    "transe": Case(
        settings={"kind": "transe", "embedding-size": 4},
        schema=triples(entities=6, relations=2),
        num_outputs=6,
        private="no: model",
    ),
    "python": Case(
        settings={"kind": "python", "path": "own_models:build", "options": {"hidden_size": 5}},
        schema=schema_of((2, 3)),
    ),
}
BATCH = 3
NOT_PRIVATE = [name for name, case in CASES.items() if case.private.startswith("no")]
PRIVATE = [
    pytest.param(name, marks=pytest.mark.slow if name.startswith("efficientnet") else ())
    for name, case in CASES.items()
    if name not in NOT_PRIVATE
]

every_case = pytest.mark.parametrize("name", CASES)


def build(name: str, *, seed: int = 1) -> nn.Module:
    return copy.deepcopy(_build(name, seed))


@cache
def _build(name: str, seed: int) -> nn.Module:
    case = CASES[name]
    return build_model(settings_of(case), case.schema, num_outputs=case.num_outputs, seed=seed)


def settings_of(case: Case) -> Any:
    settings: ModelSettings = TypeAdapter(ModelSettings).validate_python(case.settings)
    return settings


def inputs_of(case: Case, count: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if case.schema.kind == "triples":
        return torch.stack([torch.arange(count) % 6, torch.arange(count) % 2], dim=1)
    return torch.randn(count, *case.schema.input_shape, generator=generator)


def outputs_shape(case: Case) -> tuple[int, ...]:
    pixels_of_one = case.schema.input_shape[1:] if case.schema.task == "segmentation" else ()
    return (case.num_outputs, *pixels_of_one)


def loss_per_record(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).mean(dim=1)


def targets_of(case: Case) -> Tensor:
    return torch.randn(BATCH, *outputs_shape(case), generator=torch.Generator().manual_seed(4))


def study_of(case: Case, mechanism: str) -> Study:
    raw = read_toml(STUDIES / "digits.toml")
    raw["schema"] = case.schema.model_dump(mode="json", by_alias=True)
    raw["model"] = case.settings
    raw["privacy"]["mechanism"] = mechanism
    return Study.parse(raw, origin="study")


def state_bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


# --- the suite is complete -------------------------------------------------------------------------------------------


def test_every_architecture_of_the_registry_has_a_case() -> None:
    registered = set(get_args(get_args(ModelSettings)[0]))

    assert {type(settings_of(case)) for case in CASES.values()} == registered


def test_every_architecture_s_task_is_one_that_its_data_can_have() -> None:
    for settings in get_args(get_args(ModelSettings)[0]):
        of_data = {
            task for kind in get_args(get_args(Schema)[0]) if kind_name(kind) in settings.TAKES for task in kind.TASKS
        }
        assert of_data >= settings.TASKS, settings


def kind_name(schema: Any) -> str:
    (name,) = get_args(schema.model_fields["kind"].annotation)
    return str(name)


# --- building --------------------------------------------------------------------------------------------------------


@every_case
def test_it_is_built_from_a_study_s_settings(name: str) -> None:
    study = study_of(CASES[name], "none")

    assert study.model == settings_of(CASES[name])
    assert Study.parse(study.to_table(), origin="again").fingerprint == study.fingerprint


@every_case
@pytest.mark.parametrize("count", [1, BATCH])
def test_a_batch_gives_the_outputs_of_each_record(name: str, count: int) -> None:
    model = build(name).eval()

    outputs = model(inputs_of(CASES[name], count))

    assert outputs.shape == (count, *outputs_shape(CASES[name]))
    assert outputs.isfinite().all()


@every_case
def test_the_same_seed_builds_the_same_weights(name: str) -> None:
    first = build(name)
    torch.rand(3)  # whatever happened in between
    case = CASES[name]
    second = build_model(settings_of(case), case.schema, num_outputs=case.num_outputs, seed=1)

    assert state_bits(first) == state_bits(second)


@every_case
def test_another_seed_builds_other_weights_unless_they_start_at_zero(name: str) -> None:
    assert (state_bits(build(name, seed=1)) != state_bits(build(name, seed=2))) == CASES[name].is_random


@every_case
def test_building_leaves_the_random_state_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded_accelerators: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_accelerators.append)
    before = torch.get_rng_state()
    case = CASES[name]

    build_model(settings_of(case), case.schema, num_outputs=case.num_outputs, seed=1)

    assert torch.equal(torch.get_rng_state(), before)
    assert seeded_accelerators == []


ONE_LAYER = ["logistic", "logistic, images", "logistic, two classes", "linear", "cox"]


@pytest.mark.parametrize("name", [name for name in CASES if name not in [*ONE_LAYER, "transe"]])
def test_the_last_layer_with_weights_is_the_head_that_gives_the_outputs(name: str) -> None:
    model, given = build(name).eval(), []
    (layer,) = {array.rpartition(".")[0] for array in head_names(model, "")}
    model.get_submodule(layer).register_forward_hook(lambda *called: given.append(called[2]))

    outputs = model(inputs_of(CASES[name]))

    assert torch.equal(given[0], outputs)


@pytest.mark.parametrize("name", ONE_LAYER)
def test_a_model_of_one_layer_is_all_head(name: str) -> None:
    with pytest.raises(SettingError, match="would share nothing"):
        head_names(build(name), "")


def test_hospitals_with_triples_share_entities_and_keep_relations() -> None:
    assert head_names(build("transe"), "") == {"relations.weight"}  # as FedE, Chen et al., arXiv 2010.12882


# --- travelling ------------------------------------------------------------------------------------------------------


@every_case
def test_the_state_travels_through_flowers_records_to_the_bit(name: str) -> None:
    model = build(name)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    received = from_array_record(to_array_record(arrays))
    other = build(name, seed=2)
    other.load_state_dict({name: torch.from_numpy(array) for name, array in received.items()})

    assert state_bits(other) == state_bits(model)


@every_case
def test_buffers_are_the_state_that_is_not_trained(name: str) -> None:
    model = build(name)

    assert buffer_names(model) == {name for name, _ in model.named_buffers()}
    assert bool(buffer_names(model)) == (CASES[name].private == "no: layer")  # BatchNorm's


# --- training and measuring ------------------------------------------------------------------------------------------


@every_case
def test_training_changes_every_parameter_and_keeps_all_finite(name: str) -> None:
    model, inputs, targets = build(name).train(), inputs_of(CASES[name]), targets_of(CASES[name])
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    for _ in range(3):  # a last layer that starts at zero lets nothing through at first
        optimizer.zero_grad()
        loss_per_record(model(inputs), targets).mean().backward()
        optimizer.step()

    assert [key for key, value in model.named_parameters() if torch.equal(value, before[key])] == []
    assert [key for key, value in model.state_dict().items() if not value.isfinite().all()] == []


@every_case
def test_what_is_measured_of_a_record_does_not_depend_on_the_others(name: str) -> None:
    model, inputs = build(name).eval(), inputs_of(CASES[name])

    together = model(inputs)

    alone = torch.cat([model(inputs[row : row + 1]) for row in range(BATCH)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# --- differential privacy --------------------------------------------------------------------------------------------


def by_hand(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[list[Tensor]]:
    """Each record's own gradient."""
    losses = [loss_per_record(model(inputs[row : row + 1]), targets[row : row + 1]) for row in range(BATCH)]
    return [list(torch.autograd.grad(loss.sum(), list(model.parameters()))) for loss in losses]


def clipped_sums(model: nn.Module, inputs: Tensor, targets: Tensor, batch: UnitBatch, clip_norm: float) -> list[Tensor]:
    with book_keeping(model) as clipping:
        sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
        clipping.add_clipped(sums, loss_per_record(model(inputs), targets), batch, clip_norm)
    return sums


@pytest.mark.parametrize("name", PRIVATE)
def test_records_are_clipped_by_their_own_gradients(name: str) -> None:
    case = CASES[name]
    model, inputs, targets = build(name).double().train(), inputs_of(case).double(), targets_of(case).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 1e-12  # drops nothing, but still takes the way of training
    gradients = by_hand(model, inputs, targets)
    norms = [float(torch.stack([part.norm() for part in each]).norm()) for each in gradients]
    clip_norm = sorted(norms)[1]  # clips one record of three

    sums = clipped_sums(model, inputs, targets, Units.records(BATCH).sample(1.0), clip_norm)

    factors = [min(1.0, clip_norm / norm) for norm in norms]
    for position, total in enumerate(sums):
        expected = sum(
            (factor * each[position] for factor, each in zip(factors, gradients, strict=True)),
            start=torch.zeros_like(total),
        )
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6 * clip_norm)


@pytest.mark.parametrize("name", PRIVATE)
def test_it_takes_a_private_step(name: str) -> None:
    case, model = CASES[name], build(name)
    before = state_bits(model)
    inputs, targets = inputs_of(case), targets_of(case)
    plan = PrivacyPlan(
        unit="record",
        epsilon=8.0,
        delta=1e-4,
        clip_norm=1.0,
        sampling_rate=1.0,
        steps_per_round=1,
        num_rounds=1,
        noise_multiplier=2.0,
        nominal_units=BATCH,
    )

    result = train_privately(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        plan,
        Units.records(BATCH),
        lambda rows: (inputs[rows], targets[rows]),
        loss_per_record,
    )

    assert result.method == "book-keeping"
    assert {key for key, bits in state_bits(model).items() if bits != before[key]} == set(before) - buffer_names(model)
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("name", NOT_PRIVATE)
def test_or_it_names_the_layer_and_what_to_choose_instead(name: str) -> None:
    case = CASES[name]

    if case.private == "no: layer":
        with pytest.raises(UnsupportedModelError, match=r"layer '[\w.]+' is BatchNorm.*; use GroupNorm"):
            check_dp_compatible(build(name))
        return

    with pytest.raises(SettingError, match=r"privacy\.mechanism='dp-sgd' with model\.kind.*layers? '") as caught:
        study_of(case, "dp-sgd")
    assert "or set privacy.mechanism = 'none'" in str(caught.value)
