"""A hospital's table is read as it is, from two files or one; whatever is wrong with it stays at the hospital."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from schemas import category, numbers

from fl_client.data.records import SiteRecords
from fl_client.data.table_file import TableFileSource
from fl_client.source_settings import TableSourceSettings
from fl_contract.errors import RefusalCode, RefusalError

TABLE = pd.DataFrame(
    {
        "age": [70, 61, 55, 48],
        "sex": [1.0, 0.0, 1.0, 0.0],
        "note": ["a", "b", "c", "d"],
        "outcome": ["1", "0", "1", "0"],
        "person": ["007", "008", "008", "010"],
        "fold": ["train", "train", "train", "test"],
    }
)


def load(folder: Path, **changes: Any) -> SiteRecords:
    raw: dict[str, Any] = {"kind": "table", "train": "patients.csv", "fold": "fold", "label": "outcome"} | changes
    settings = {key: value for key, value in raw.items() if value is not None}
    source = TableSourceSettings.parse(settings, origin="test")
    return TableFileSource(source, folder=folder, features=numbers("sex", "age")).load()


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(RefusalError) as caught:
        load(folder, **changes)
    assert caught.value.code is RefusalCode.INVALID_DATA
    return caught.value.detail


def as_csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False)


def as_parquet(table: pd.DataFrame, path: Path) -> None:
    table.to_parquet(path, index=False)


@pytest.mark.parametrize(("write", "suffix"), [(as_csv, "csv"), (as_parquet, "parquet")])
def test_a_fold_column_divides_one_file(
    tmp_path: Path, write: Callable[[pd.DataFrame, Path], None], suffix: str
) -> None:
    write(TABLE, tmp_path / f"patients.{suffix}")

    site = load(tmp_path, train=f"patients.{suffix}")

    assert site.train.feature_names == ("sex", "age")
    assert np.array_equal(site.train.features, [[1, 70], [0, 61], [1, 55]])
    assert site.train.labels.tolist() == ["1", "0", "1"]
    assert np.array_equal(site.test.features, [[0, 48]])
    assert site.train.patients is None


def test_training_and_held_out_records_can_be_two_files(tmp_path: Path) -> None:
    as_csv(TABLE[:3], tmp_path / "train.csv")
    as_parquet(TABLE[3:], tmp_path / "test.parquet")

    site = load(tmp_path, train="train.csv", test="test.parquet", fold=None)

    assert (len(site.train), len(site.test)) == (3, 1)


def test_patients_are_kept_as_they_are_written(tmp_path: Path) -> None:
    as_csv(TABLE, tmp_path / "patients.csv")

    site = load(tmp_path, patient="person")

    assert site.train.patients is not None
    assert site.train.patients.tolist() == ["007", "008", "008"]
    assert site.train.take(np.array([2])).patients == ["008"]


def test_numbers_as_labels_of_a_parquet_file_are_their_text(tmp_path: Path) -> None:
    as_parquet(TABLE.assign(outcome=[1, 0, 1, 0]), tmp_path / "patients.parquet")

    assert load(tmp_path, train="patients.parquet").train.labels.tolist() == ["1", "0", "1"]


def test_a_gap_stays_a_gap_for_the_schema_to_refuse(tmp_path: Path) -> None:
    as_csv(TABLE.assign(age=[70, np.nan, 55, 48]), tmp_path / "patients.csv")

    assert np.isnan(load(tmp_path).train.features[1, 1])


@pytest.mark.parametrize(
    ("change", "settings", "detail"),
    [
        ({}, {"train": "absent.csv"}, "absent.csv: cannot be read"),
        ({}, {"label": "diagnosis"}, "columns ['diagnosis'] are missing"),
        ({}, {"patient": "mrn"}, "columns ['mrn'] are missing"),
        ({"sex": ["m", "f", "m", "f"]}, {}, "column 'sex' of feature 'sex': 4 rows hold a text"),
        ({"fold": ["train", "valid", "test", "test"]}, {}, "column 'fold': 1 rows hold no fold"),
        ({"outcome": ["1", None, None, "0"]}, {}, "column 'outcome' is empty in 2 rows"),
        (
            {"fold": ["train", "train", "test", "test"]},
            {"patient": "person"},
            "1 patients are in training and held-out",
        ),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, change: dict[str, Any], settings: dict[str, str | None], detail: str
) -> None:
    as_csv(TABLE.assign(**change), tmp_path / "patients.csv")

    assert detail in refusal(tmp_path, **settings)


def test_a_patient_in_both_folds_is_found_where_one_file_holds_numbers_and_the_other_text(tmp_path: Path) -> None:
    as_csv(TABLE[:2].assign(person=["7", "8"]), tmp_path / "train.csv")
    as_parquet(TABLE[2:].assign(person=[8, 9]), tmp_path / "test.parquet")

    found = refusal(tmp_path, train="train.csv", test="test.parquet", fold=None, patient="person")

    assert "1 patients are in training and held-out" in found


def test_a_missing_feature_is_named(tmp_path: Path) -> None:
    as_csv(TABLE.drop(columns="age"), tmp_path / "patients.csv")

    assert "columns ['age'] are missing" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["patients.csv", "patients.parquet"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00broken\x00\n\xff")

    assert f"{name}: cannot be read" in refusal(tmp_path, train=name)


def test_a_hospitals_own_columns_units_and_codes_become_the_studys(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "alter": ["70", "?", "55", "-9"],
            "geschlecht": ["M", "F", " M", "NA"],
            "outcome": ["none", "NA", "3", "01"],
            "fold": ["train", "train", "train", "test"],
        }
    )
    as_csv(table, tmp_path / "patients.csv")
    columns: dict[str, Any] = {
        "age": {"column": "alter", "missing": ["?", -9]},
        "sex": {"column": "geschlecht", "codes": {"M": 1, "F": 0, "NA": 0.5}},
    }

    site = load(tmp_path, columns=columns, labels={"none": "0", "NA": "0", "1": "1", "3": "1"})

    # "NA" is a code of this hospital, not an empty cell; "01" is the number 1.
    assert np.array_equal(site.train.features, [[1.0, 70.0], [0.0, np.nan], [1.0, 55.0]], equal_nan=True)
    assert site.train.labels.tolist() == ["0", "0", "1"]
    assert np.array_equal(site.test.features, [[0.5, np.nan]], equal_nan=True)
    assert site.test.labels.tolist() == ["1"]


def test_everything_that_is_wrong_with_the_values_is_said_at_once(tmp_path: Path) -> None:
    as_csv(TABLE.assign(age=["x", "y", 3, 4], sex=["m", "f", "m", "f"]), tmp_path / "patients.csv")

    lines = refusal(tmp_path, labels={"1": "ill"}).split("\n")

    assert [line.split(";")[0] for line in lines] == [
        "column 'sex' of feature 'sex': 4 rows hold a text or code without a meaning",
        "column 'age' of feature 'age': 2 rows hold a text or code without a meaning",
        "label column 'outcome': 2 rows hold a code that source.labels does not list",
    ]


def test_what_is_wrong_with_each_of_two_files_is_said_at_once(tmp_path: Path) -> None:
    as_csv(TABLE.assign(sex="m"), tmp_path / "train.csv")
    as_csv(TABLE.drop(columns="age"), tmp_path / "test.csv")

    second, first = refusal(tmp_path, train="train.csv", test="test.csv", fold=None).split("\n")

    assert "column 'sex' of feature 'sex': 4 rows" in first
    assert "test.csv: columns ['age'] are missing" in second


@pytest.mark.parametrize("text", ["", "NA", "NaN", "NULL", "null", "N/A", "nan"])
def test_what_programs_write_for_an_empty_cell_is_a_gap(tmp_path: Path, text: str) -> None:
    as_csv(TABLE.assign(age=["70", text, "55", "48"]), tmp_path / "patients.csv")

    assert np.isnan(load(tmp_path).train.features[1, 1])


def test_rows_with_more_fields_than_the_header_are_refused_and_never_shifted(tmp_path: Path) -> None:
    as_csv(TABLE, tmp_path / "patients.csv")
    header, *rows = (tmp_path / "patients.csv").read_text().splitlines()
    (tmp_path / "patients.csv").write_text("\n".join([header, *(f"9,{row}" for row in rows)]))

    assert "rows hold more fields than the first one names" in refusal(tmp_path)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    as_csv(pd.concat([TABLE, TABLE[["age", "note"]]], axis=1), tmp_path / "patients.csv")

    assert "columns ['age'] are there more than once" in refusal(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_columns_name(tmp_path: Path) -> None:
    TABLE.to_csv(tmp_path / "patients.csv", index=False, encoding="utf-8-sig")

    assert load(tmp_path).train.features[0].tolist() == [1, 70]


@pytest.mark.parametrize(("write", "suffix"), [(as_csv, "csv"), (as_parquet, "parquet")])
def test_a_column_of_categories_keeps_its_gaps_and_any_text_may_be_one(
    tmp_path: Path, write: Callable[[pd.DataFrame, Path], None], suffix: str
) -> None:
    write(TABLE.assign(pain=pd.Series(["NA", None, "none", "NA"], dtype=object)), tmp_path / f"patients.{suffix}")
    raw = {"kind": "table", "train": f"patients.{suffix}", "fold": "fold", "label": "outcome"}
    settings = TableSourceSettings.parse(raw, origin="test")

    pain = category("pain", "none", "NA", missing="most-frequent")
    site = TableFileSource(settings, folder=tmp_path, features=[pain, *numbers("age")]).load()

    np.testing.assert_array_equal(site.train.features, [[1, 70], [np.nan, 61], [0, 55]])
    np.testing.assert_array_equal(site.test.features, [[1, 48]])


@pytest.mark.parametrize(("missing", "num_unknown"), [([], 2), (["NA"], 0)])
def test_a_text_for_a_gap_in_a_column_of_categories_has_to_be_named(
    tmp_path: Path, missing: list[str], num_unknown: int
) -> None:
    as_csv(TABLE.assign(pain=["NA", "", "none", "NA"]), tmp_path / "patients.csv")
    columns = {"pain": {"missing": missing}}
    raw = {"kind": "table", "train": "patients.csv", "fold": "fold", "label": "outcome", "columns": columns}
    source = TableFileSource(
        TableSourceSettings.parse(raw, origin="test"), folder=tmp_path, features=[category("pain", "none", "some")]
    )

    if num_unknown:
        with pytest.raises(RefusalError, match=f"column 'pain' of feature 'pain': {num_unknown} rows hold a text"):
            source.load()
    else:
        np.testing.assert_array_equal(source.load().train.features, [[np.nan], [np.nan], [0]])


def test_codes_that_the_study_does_not_know_are_refused_before_the_file_is_opened(tmp_path: Path) -> None:
    raw = {"kind": "table", "train": "absent.csv", "fold": "fold", "label": "outcome"}
    settings = TableSourceSettings.parse(raw | {"columns": {"pain": {"codes": {"1": "sharp"}}}}, origin="test")

    with pytest.raises(RefusalError, match=r"source\.columns\.'pain'\.codes gives \['sharp'\]; expected categories"):
        TableFileSource(settings, folder=tmp_path, features=[category("pain", "none", "some")]).load()
