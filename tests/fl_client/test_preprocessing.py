"""Records become tensors by public ranges alone, and a record that breaks the schema refuses the whole data set."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fl_client.data.records import Records
from fl_client.data_rules import training_refusals
from fl_client.inputs import record_contents
from fl_client.preprocessing import prepare
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.schema import ImageSchema, TableSchema

TABLE = TableSchema.parse(
    {
        "kind": "table",
        "label": "outcome",
        "classes": ["alive", "dead"],
        "features": [
            {"name": "age", "unit": "years", "minimum": 0.0, "maximum": 100.0},
            {"name": "crp", "unit": "mg/l", "minimum": 1.0, "maximum": 100.0, "scale": "log"},
        ],
    },
    origin="test",
)


def image_schema(channels: int = 1) -> ImageSchema:
    raw = {"kind": "image", "label": "digit", "classes": ["0", "1", "2"], "height": 4, "width": 5, "maximum": 16.0}
    return ImageSchema.parse(raw | {"channels": channels}, origin="test")


def table_of(*rows: tuple[float, float], labels: list[str] | None = None) -> Records:
    return Records(
        features=np.array(rows, dtype=np.float64).reshape(-1, 2),
        feature_names=("age", "crp"),
        labels=np.array(labels or ["alive"] * len(rows), dtype=np.str_),
    )


def images_of(pixels: NDArray[Any]) -> Records:
    return Records(features=pixels, feature_names=(), labels=np.array(["0"] * len(pixels)))


def refusal_of(records: Records, schema: TableSchema | ImageSchema) -> RefusalError:
    with pytest.raises(RefusalError) as caught:
        prepare(records, schema)
    return caught.value


@pytest.mark.parametrize(
    ("age", "scaled"),
    [(0.0, -1.0), (25.0, -0.5), (50.0, 0.0), (100.0, 1.0), (-7.0, -1.0), (140.0, 1.0)],
)
def test_a_linear_feature_maps_its_range_onto_minus_one_to_one(age: float, scaled: float) -> None:
    examples = prepare(table_of((age, 10.0)), TABLE)

    # The range is 100 years long and its middle is 50.
    assert examples.inputs[0, 0].item() == scaled


@pytest.mark.parametrize(
    ("crp", "scaled"),
    [(1.0, -1.0), (10.0, 0.0), (10.0**1.5, 0.5), (100.0, 1.0), (0.0, -1.0), (-3.0, -1.0), (5000.0, 1.0)],
)
def test_a_log_feature_maps_its_range_by_orders_of_magnitude(crp: float, scaled: float) -> None:
    examples = prepare(table_of((50.0, crp)), TABLE)

    # The range is two orders of magnitude long and its middle is 10.
    assert examples.inputs[0, 1].item() == pytest.approx(scaled, abs=1e-7)


def test_scaling_uses_no_statistic_of_the_patients() -> None:
    alone = prepare(table_of((30.0, 20.0)), TABLE)
    among_others = prepare(table_of((30.0, 20.0), (99.0, 1.0), (0.0, 80.0)), TABLE)

    assert torch.equal(alone.inputs[0], among_others.inputs[0])


def test_examples_have_the_types_that_models_take() -> None:
    examples = prepare(table_of((30.0, 20.0), (40.0, 20.0), labels=["dead", "alive"]), TABLE)

    assert (examples.inputs.dtype, examples.inputs.shape) == (torch.float32, (2, 2))
    assert (examples.labels.dtype, examples.labels.tolist()) == (torch.int64, [1, 0])
    assert len(examples) == 2


def test_columns_are_found_by_name_and_others_are_left_out() -> None:
    records = Records(
        features=np.array([[3.0, 100.0, 25.0]]), feature_names=("ward", "crp", "age"), labels=np.array(["alive"])
    )

    assert prepare(records, TABLE).inputs.tolist() == [[-0.5, 1.0]]


def test_no_records_give_no_examples() -> None:
    examples = prepare(table_of(), TABLE)

    assert (len(examples), examples.inputs.shape) == (0, (0, 2))


OWN: dict[str, Any] = {
    "name": "age",
    "minimum": 0.0,
    "maximum": 100.0,
    "scale": "site-standard",
    "missing": "site-mean",
}


def schema_with(*features: dict[str, Any]) -> TableSchema:
    raw = {"kind": "table", "label": "outcome", "classes": ["alive", "dead"], "features": list(features)}
    return TableSchema.parse(raw, origin="test")


def ages(*values: float) -> Records:
    return Records(
        features=np.array(values).reshape(-1, 1), feature_names=("age",), labels=np.array(["alive"] * len(values))
    )


@pytest.mark.parametrize(
    ("train", "test", "scaled"),
    [
        # Training mean 50 and deviation 20; 140 is taken as 100, a gap as the mean.
        ((30.0, 70.0), (50.0, 90.0, 140.0, np.nan), (0.0, 2.0, 2.5, 0.0)),
        # Gaps do not count for mean and deviation.
        ((30.0, np.nan, 70.0), (90.0,), (2.0,)),
        # A feature that never varies is only shifted; the range of 100 is 2 long.
        ((40.0, 40.0), (40.0, 90.0), (0.0, 1.0)),
        # Without a single value it is left as the range maps it.
        ((np.nan,), (75.0, np.nan), (0.5, 0.0)),
    ],
)
def test_a_hospital_standardises_held_out_records_by_its_training_records(
    train: tuple[float, ...], test: tuple[float, ...], scaled: tuple[float, ...]
) -> None:
    examples = prepare(ages(*test), schema_with(OWN), train=ages(*train))

    assert examples.inputs[:, 0].tolist() == pytest.approx(scaled, abs=1e-6)


def test_a_hospitals_own_statistics_cannot_be_forgotten() -> None:
    with pytest.raises(ValueError, match="feature 'age' is standardised by training records; none were given"):
        prepare(ages(1.0), schema_with(OWN))


def test_a_category_stays_its_position_and_a_gap_that_is_filled_in_later_a_gap() -> None:
    feature: dict[str, Any] = {"name": "age", "categories": ["young", "old", "none"], "missing": "most-frequent"}

    inputs = prepare(ages(2.0, np.nan, 0.0), schema_with(feature)).inputs

    assert torch.equal(inputs.nan_to_num(-9.0), torch.tensor([[2.0], [-9.0], [0.0]]))


def test_what_is_no_category_and_a_category_that_is_missing_are_counted_apart() -> None:
    schema = schema_with({"name": "age", "categories": ["young", "old"]})

    refusal = refusal_of(ages(0.0, 1.0, np.nan, 2.0, 0.5, -1.0, np.inf), schema)

    assert refusal.code is RefusalCode.INVALID_DATA
    assert refusal.detail.split("\n") == [
        "feature 'age': 1 records have no category; expected one of ['young', 'old']",
        "feature 'age': 4 values are no category of the study; expected one of ['young', 'old']",
    ]


def test_a_missing_column_is_named() -> None:
    records = Records(features=np.array([[77.25]]), feature_names=("age",), labels=np.array(["alive"]))

    refusal = refusal_of(records, TABLE)

    assert refusal.code is RefusalCode.INVALID_DATA
    assert refusal.detail == "columns ['crp'] are missing; the study needs them"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_counted_and_never_dropped(bad: float) -> None:
    refusal = refusal_of(table_of((77.25, 10.0), (77.25, bad), (77.25, bad)), TABLE)

    assert refusal.code is RefusalCode.INVALID_DATA
    assert refusal.detail == "feature 'crp': 2 values are NaN or infinite; expected finite numbers"


def test_an_unknown_class_is_counted_and_never_named() -> None:
    records = table_of((77.25, 10.0), (77.25, 10.0), labels=["alive", "patient 4711 moved"])

    refusal = refusal_of(records, TABLE)

    assert refusal.code is RefusalCode.INVALID_DATA
    assert "label 'outcome': 1 records" in refusal.detail
    assert "expected one of ['alive', 'dead']" in refusal.detail
    assert "4711" not in refusal.detail


def test_pixels_are_scaled_from_black_to_white() -> None:
    pixels = np.zeros((1, 4, 5))
    pixels[0, 0, :4] = [16.0, 8.0, 99.0, -4.0]

    examples = prepare(images_of(pixels), image_schema())

    assert examples.inputs.shape == (1, 1, 4, 5)
    assert examples.inputs[0, 0, 0].tolist() == [1.0, 0.0, 1.0, -1.0, -1.0]


def test_colours_come_before_rows_and_columns() -> None:
    pixels = np.zeros((2, 4, 5, 3))
    pixels[1, 2, 3] = [4.0, 8.0, 12.0]

    examples = prepare(images_of(pixels), image_schema(channels=3))

    assert examples.inputs.shape == (2, 3, 4, 5)
    # 2 * 4 / 16 - 1, 2 * 8 / 16 - 1, 2 * 12 / 16 - 1
    assert examples.inputs[1, :, 2, 3].tolist() == [-0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("shape", "channels", "found"),
    [
        ((1, 5, 4), 1, r"[5, 4, 1]"),
        ((1, 4, 5), 3, r"[4, 5, 1]"),
        ((1, 4, 5, 3), 1, r"[4, 5, 3]"),
        ((1, 3, 4, 5), 3, r"[3, 4, 5]"),
    ],
)
def test_an_image_of_another_size_is_refused(shape: tuple[int, ...], channels: int, found: str) -> None:
    refusal = refusal_of(images_of(np.full(shape, 7.75)), image_schema(channels))

    assert refusal.code is RefusalCode.INVALID_DATA
    assert refusal.detail == f"images are {found}; expected height, width, channels [4, 5, {channels}]"


def test_a_pixel_that_is_no_number_is_counted() -> None:
    pixels = np.full((2, 4, 5), 7.75)
    pixels[1, 3, :2] = np.nan

    refusal = refusal_of(images_of(pixels), image_schema())

    assert refusal.code is RefusalCode.INVALID_DATA
    assert refusal.detail == "feature 'pixel': 2 values are NaN or infinite; expected finite numbers"


@pytest.mark.parametrize(
    ("labels", "codes"),
    [
        ([], [RefusalCode.TOO_FEW_PATIENTS]),
        ([0, 1] * 4 + [1], [RefusalCode.TOO_FEW_PATIENTS]),
        ([0, 1] * 5, []),
        ([0] * 9 + [1], []),
        ([1] * 10, [RefusalCode.ONE_CLASS]),
        ([1], [RefusalCode.TOO_FEW_PATIENTS, RefusalCode.ONE_CLASS]),
    ],
    ids=["none", "nine", "ten", "ten, one of a class", "one class", "one"],
)
def test_a_hospital_trains_with_enough_patients_of_both_classes_only(
    labels: list[int], codes: list[RefusalCode]
) -> None:
    records = table_of(*[(30.0, 20.0)] * len(labels), labels=[("alive", "dead")[label] for label in labels])

    refusals = training_refusals(TABLE, records, min_examples=10, allow_one_class=False)

    assert [refusal.code for refusal in refusals] == codes


def test_one_class_is_allowed_where_the_policy_says_so() -> None:
    records = table_of(*[(30.0, 20.0)] * 10, labels=["dead"] * 10)

    assert training_refusals(TABLE, records, min_examples=10, allow_one_class=True) == []
    (refusal,) = training_refusals(TABLE, records, min_examples=10, allow_one_class=False)
    assert refusal.detail == (
        "every training record has outcome='dead'; expected two classes, or policy.allow-one-class = true"
    )


def test_a_volume_is_scaled_with_its_depth_after_the_channel() -> None:
    raw = {"kind": "image", "label": "digit", "classes": ["0", "1", "2"], "depth": 4, "height": 5, "width": 6}
    schema = ImageSchema.parse(raw | {"maximum": 240.0}, origin="test")
    voxels = np.arange(2 * 4 * 5 * 6, dtype=np.uint8).reshape(2, 4, 5, 6)

    inputs = prepare(images_of(voxels), schema).inputs

    # 240 values from 0 to 239: value / 120 - 1.
    assert inputs.shape == (2, 1, 4, 5, 6)
    assert torch.equal(inputs.reshape(-1), (torch.arange(240, dtype=torch.float64) / 120 - 1).float())
    assert refusal_of(images_of(voxels[:, :, :4]), schema).detail == (
        "images are [4, 4, 6, 1]; expected depth, height, width, channels [4, 5, 6, 1]"
    )
    assert refusal_of(images_of(voxels), image_schema()).detail == (
        "images are [4, 5, 6]; expected height, width, channels [4, 5, 1]"
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_pixels_give_the_same_inputs_and_contents_however_they_are_held(dtype: Any) -> None:
    pixels = np.random.default_rng(2).integers(0, 17, (70, 4, 5))

    wide, held = images_of(pixels.astype(np.float64)), images_of(pixels.astype(dtype))

    assert torch.equal(prepare(wide, image_schema()).inputs, prepare(held, image_schema()).inputs)
    assert list(record_contents(wide)) == list(record_contents(held))
