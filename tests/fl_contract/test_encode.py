"""Categories become one-hot columns or embeddings inside the model, which privacy and Flower's records take as any."""

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from fl_contract.array_record import from_array_record, to_array_record
from fl_contract.models import ModelSettings, build_model
from fl_contract.models.encode import CategoryEmbedding, OneHot
from fl_contract.schema import TableSchema
from fl_contract.settings import read_toml
from fl_contract.study import Study
from fl_contract.study_file import STUDIES
from fl_contract.tasks.classification import loss_per_example
from privacy.dp_sgd import train_privately
from privacy.model_check import check_dp_compatible
from privacy.plan import PrivacyPlan
from privacy.units import Units

FEATURES: list[dict[str, Any]] = [
    {"name": "age", "minimum": 0.0, "maximum": 100.0},
    {"name": "pain", "categories": ["typical", "atypical", "none"]},
    {"name": "crp", "minimum": 1.0, "maximum": 100.0, "scale": "log"},
    {"name": "sex", "categories": ["f", "m"]},
]
SCHEMA = TableSchema.parse(
    {"kind": "table", "label": "ill", "classes": ["no", "yes"], "features": FEATURES}, origin="test"
)
NUM_CATEGORIES = (0, 3, 0, 2)
RECORDS = torch.tensor([[0.5, 2.0, -0.25, 0.0], [-1.0, 0.0, 1.0, 1.0]])
ENCODED = torch.tensor([[0.5, 0, 0, 1, -0.25, 1, 0], [-1, 1, 0, 0, 1, 0, 1]])


def study_with(model: dict[str, Any], features: list[dict[str, Any]], mechanism: str = "none") -> Study:
    raw = read_toml(STUDIES / "breast-cancer.toml")
    raw["schema"]["features"], raw["model"] = features, model
    raw["privacy"]["mechanism"] = mechanism
    return Study.parse(raw, origin="test")


def test_categories_become_columns_in_the_place_of_their_feature() -> None:
    assert torch.equal(OneHot(NUM_CATEGORIES)(RECORDS), ENCODED)


def test_what_is_no_category_is_in_no_column() -> None:
    assert torch.equal(OneHot([2])(torch.tensor([[2.0], [0.5], [-1.0]])), torch.zeros(3, 2))


def test_encoding_has_nothing_that_travels() -> None:
    assert OneHot(NUM_CATEGORIES).state_dict() == {}


def test_an_embedding_is_the_column_of_the_records_category() -> None:
    layer = CategoryEmbedding(NUM_CATEGORIES, 2)
    pain, sex = layer.parameters()

    numbers = layer(ENCODED)

    assert numbers.shape == (2, 2 + 2 * 2)
    assert torch.equal(numbers[0].detach(), torch.cat([RECORDS[0, [0, 2]], pain[:, 2], sex[:, 0]]).detach())
    assert torch.equal(numbers[1].detach(), torch.cat([RECORDS[1, [0, 2]], pain[:, 0], sex[:, 1]]).detach())


def test_an_embedding_of_categories_alone_needs_no_number() -> None:
    assert CategoryEmbedding([2, 3], 4)(torch.eye(5)[:2]).shape == (2, 8)


def test_the_shape_of_a_record_and_of_what_the_network_sees_differ_by_the_categories() -> None:
    assert (SCHEMA.input_shape, SCHEMA.encoded_shape) == ((4,), (7,))


MODELS: list[dict[str, Any]] = [
    {"kind": "logistic"},
    {"kind": "mlp"},
    {"kind": "mlp", "embedding-size": 3},
]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_study_with_categories_builds_takes_records_and_travels(model: dict[str, Any]) -> None:
    study = study_with(model, FEATURES)
    built = study.build_model()

    received = from_array_record(to_array_record({name: each.numpy() for name, each in built.state_dict().items()}))
    other = study.build_model()
    other.load_state_dict({name: torch.from_numpy(array) for name, array in received.items()})

    assert all(name.startswith("network.") for name in received)
    assert built(RECORDS).shape == (2, 1)
    assert torch.equal(other(RECORDS), built(RECORDS))


@pytest.mark.parametrize("kind", ["logistic", "mlp", "cox"])
def test_networks_of_tables_are_as_wide_as_numbers_and_categories_together(kind: str) -> None:
    settings: ModelSettings = TypeAdapter(ModelSettings).validate_python({"kind": kind})

    assert build_model(settings, SCHEMA, num_outputs=1, seed=1)(ENCODED).shape == (2, 1)


def test_gaps_are_filled_in_before_categories_are_encoded() -> None:
    features = [FEATURES[0] | {"missing": "median"}, FEATURES[1] | {"missing": "most-frequent"}]
    model = study_with({"kind": "logistic"}, features).build_model()
    model.load_state_dict({"standardise.fill": torch.tensor([0.5, 2.0])}, strict=False)

    encoded = model.get_submodule("encode")(model.get_submodule("standardise")(torch.full((1, 2), math.nan)))

    assert encoded.tolist() == [[0.5, 0, 0, 1]]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_private_study_trains_on_categories(model: dict[str, Any]) -> None:
    study = study_with(model, FEATURES, mechanism="dp-sgd")
    built = study.build_model()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    plan = PrivacyPlan.calibrate(
        unit="record", epsilon=5.0, delta=1e-3, clip_norm=1.0, sampling_rate=1.0, steps_per_round=2, num_rounds=1,
        nominal_units=2,
    )  # fmt: skip

    check_dp_compatible(built)
    result = train_privately(
        built,
        torch.optim.SGD(built.parameters(), lr=0.1),
        plan,
        Units.records(2),
        lambda rows: (RECORDS[rows], torch.tensor([0, 1])[rows]),
        loss_per_example,
    )

    assert result.steps_run == 2
    assert all(not torch.equal(tensor, before[name]) for name, tensor in built.state_dict().items())


def test_embeddings_are_clipped_by_the_layers_that_privacy_knows() -> None:
    built = study_with(MODELS[2], FEATURES, mechanism="dp-sgd").build_model()

    assert {type(layer) for layer in built.modules() if list(layer.parameters(recurse=False))} == {nn.Linear}
