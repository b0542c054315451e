"""A hospital's own columns, units and codes become the study's; nothing is guessed, filled in or dropped."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from schemas import category, numbers

from fl_client.column_settings import ColumnSettings
from fl_client.data.mapping import (
    code_refusals,
    map_categories,
    map_column,
    map_features,
    map_labels,
    say_unknown_values,
    site_columns,
)
from fl_client.source_settings import TableSourceSettings
from fl_contract.errors import SettingError
from fl_contract.features import TableFeature

SEX = {"male": 1, "female": 0}


def settings_of(raw: Mapping[str, Any]) -> ColumnSettings:
    return ColumnSettings.parse(raw, origin="test")


@pytest.mark.parametrize(
    ("values", "settings", "mapped", "num_unknown"),
    [
        # As it is.
        ([1, 2.5, None], {}, [1, 2.5, np.nan], 0),
        (["1", " 2.5 ", None], {}, [1, 2.5, np.nan], 0),
        ([True, False], {}, [1, 0], 0),
        ([True, None], {}, [1, np.nan], 0),
        ([Decimal("1.5"), None], {}, [1.5, np.nan], 0),
        ([], {}, [], 0),
        ([None, None], {}, [np.nan, np.nan], 0),
        # An infinity is left for the schema's check to refuse.
        ([np.inf], {}, [np.inf], 0),
        # Another unit: mmol/l of cholesterol in mg/dl, degrees Fahrenheit in Celsius.
        ([5.0, 6.0], {"factor": 38.67}, [193.35, 232.02], 0),
        ([212.0, 32.0], {"factor": 5 / 9, "offset": -160 / 9}, [100, 0], 0),
        # Codes, as texts and as numbers.
        (["male", "female ", None], {"codes": SEX}, [1, 0, np.nan], 0),
        (["Male", "x", "male"], {"codes": SEX}, [np.nan, np.nan, 1], 2),
        ([1, 2, 9], {"codes": {"1": 1, "2": 0}}, [1, 0, np.nan], 1),
        (["01", "2.0"], {"codes": {"1": 1, "2": 0}}, [1, 0], 0),
        ([1.0, 2.0], {"codes": {"01": 7, "2.0": 8}}, [7, 8], 0),
        # Codes for a missing value, before the unit is changed.
        ([0, -9, 5], {"missing": [0, -9, "?"], "factor": 2, "offset": 1}, [np.nan, np.nan, 11], 0),
        (["0.0", "-9", "?", "5"], {"missing": [0, -9, "?"]}, [np.nan, np.nan, np.nan, 5], 0),
        (["?", "male"], {"codes": SEX, "missing": ["?"]}, [np.nan, 1], 0),
        ([0, 5], {"missing": ["0"]}, [np.nan, 5], 0),
        # What is no number is counted, whatever looks like one.
        (["1,5", "1_000", "nan", "inf", "0x10", "?", "3"], {}, [np.nan] * 6 + [3], 6),
        ([pd.Timestamp("2020-02-03"), pd.NaT], {}, [np.nan, np.nan], 1),
        ([pd.Timedelta("3 days")], {}, [np.nan], 1),
    ],
)
def test_a_column_becomes_the_studys_numbers(
    values: list[Any], settings: dict[str, Any], mapped: list[float], num_unknown: int
) -> None:
    numbers, found = map_column(pd.Series(values), settings_of(settings))

    assert numbers.dtype == np.float64
    np.testing.assert_allclose(numbers, mapped, atol=1e-12)
    assert found == num_unknown


@pytest.mark.parametrize("dtype", ["Int64", "Float32", "int8", "category", "object"])
def test_any_type_of_column_that_holds_numbers_is_read(dtype: str) -> None:
    numbers, unknown = map_column(pd.Series([1, 0, 3], dtype=dtype), settings_of({"missing": [0]}))

    np.testing.assert_array_equal(numbers, [1, np.nan, 3])
    assert unknown == 0


def test_one_column_can_give_several_features() -> None:
    table = pd.DataFrame({"cp": ["1", "4", "?"]})
    columns = {
        name: settings_of({"column": "cp", "codes": codes, "missing": ["?"]})
        for name, codes in (("cp_1", {"1": 1, "4": 0}), ("cp_4", {"1": 0, "4": 1}))
    }

    assert site_columns(["cp_1", "age", "cp_4"], columns) == {"cp_1": "cp", "age": "age", "cp_4": "cp"}
    np.testing.assert_array_equal(
        map_features(table, numbers("cp_1", "cp_4"), columns)[0], [[1, 0], [0, 1], [np.nan, np.nan]]
    )


def test_chunks_are_mapped_as_the_whole_table() -> None:
    table = pd.DataFrame({"sex": ["male", "female", None, "male"], "chol": [5.0, 0.0, 6.0, 7.0]})
    columns = {"sex": settings_of({"codes": SEX}), "chol": settings_of({"factor": 38.67, "missing": [0]})}

    chunks = [map_features(table[rows : rows + 1], numbers("chol", "sex"), columns)[0] for rows in range(4)]

    np.testing.assert_array_equal(np.concatenate(chunks), map_features(table, numbers("chol", "sex"), columns)[0])


def test_every_feature_with_a_value_of_no_meaning_has_a_line_with_a_count_and_no_value() -> None:
    table = pd.DataFrame({"sex": ["m", "male", "patient 4711"], "chol": ["high", "5", "6"]})

    columns = {"sex": settings_of({"codes": SEX})}

    _, num_unknown = map_features(table, numbers("chol", "sex"), columns)

    assert say_unknown_values(num_unknown, numbers("chol", "sex"), columns) == [
        "column 'chol' of feature 'chol': 1 rows hold a text or code without a meaning; "
        "expected numbers, or a code for a missing value in source.columns.'chol'.missing",
        "column 'sex' of feature 'sex': 2 rows hold a text or code without a meaning; "
        "expected the codes that it lists, or a code for a missing value in source.columns.'sex'.missing",
    ]


PAIN = category("cp", "typical", "atypical", "none")
PAIN_CODES = {"1": "typical", "2": "atypical", "4": "none"}


@pytest.mark.parametrize(
    ("values", "settings", "mapped", "num_unknown"),
    [
        # The names themselves; a gap stays one.
        (["none", " typical", None], {}, [2, 0, np.nan], 0),
        ([None, None], {}, [np.nan, np.nan], 0),
        ([], {}, [], 0),
        # Codes, and names beside them; a code may mean what another name says.
        ([1, 2.0, 4], {"codes": PAIN_CODES}, [0, 1, 2], 0),
        (["01", "none", "typical"], {"codes": PAIN_CODES}, [0, 2, 0], 0),
        (["none", "typical"], {"codes": {"none": "typical"}}, [0, 0], 0),
        # Missing before anything else.
        (["?", "none", 9], {"missing": ["?", "none", 9]}, [np.nan] * 3, 0),
        # What is no category is counted: another case, a code that is not listed, a position.
        (["Typical", "typical"], {}, [np.nan, 0], 1),
        ([1, 3, 3], {"codes": PAIN_CODES}, [0, np.nan, np.nan], 2),
        ([0, 1, 2], {}, [np.nan] * 3, 3),
        (["NA", "nan", ""], {}, [np.nan] * 3, 3),
        ([np.inf], {}, [np.nan], 1),
    ],
)
def test_a_column_becomes_positions_of_the_studys_categories(
    values: list[Any], settings: dict[str, Any], mapped: list[float], num_unknown: int
) -> None:
    positions, found = map_categories(pd.Series(values), settings_of(settings), PAIN.categories)

    np.testing.assert_array_equal(positions, mapped)
    assert found == num_unknown


def test_categories_that_are_numbers_are_found_however_they_are_written() -> None:
    positions, found = map_categories(pd.Series(["1", 2, "03", 4.0, True]), settings_of({}), ("1", "2", "3", "4"))

    assert (positions.tolist(), found) == ([0, 1, 2, 3, 0], 0)


def test_a_value_that_is_no_category_has_a_line_with_its_column_and_rule_and_without_the_value() -> None:
    table, columns = pd.DataFrame({"pain": ["typical", "patient 4711", "x"]}), {"cp": settings_of({"column": "pain"})}

    mapped, num_unknown = map_features(table, [PAIN], columns)

    np.testing.assert_array_equal(mapped, [[0], [np.nan], [np.nan]])
    assert say_unknown_values(num_unknown, [PAIN], columns) == [
        "column 'pain' of feature 'cp': 2 rows hold a text or code without a meaning; expected the study's categories, "
        "a code that source.columns.'cp'.codes lists, or a code for a missing value in source.columns.'cp'.missing"
    ]


@pytest.mark.parametrize(
    ("feature", "settings", "line"),
    [
        (PAIN, {"codes": PAIN_CODES}, None),
        (
            PAIN,
            {"codes": {"1": "sharp"}},
            "source.columns.'cp'.codes gives ['sharp']; expected categories of the study",
        ),
        (PAIN, {"codes": {"1": 0}}, "source.columns.'cp'.codes gives [0.0]; expected categories of the study"),
        (PAIN, {"factor": 2.0}, "source.columns.'cp' has a factor or offset; expected codes"),
        (category("cp", "1", "01"), {}, "feature 'cp': the study has two categories that are the same number"),
        (*numbers("cp"), {"codes": {"1": "typical"}}, "source.columns.'cp'.codes gives ['typical']; expected numbers"),
    ],
)
def test_codes_that_a_feature_cannot_take_are_named_before_a_row_is_read(
    feature: TableFeature, settings: dict[str, Any], line: str | None
) -> None:
    lines = code_refusals([feature], {"cp": settings_of(settings)})

    assert [each[: len(line or "")] for each in lines] == ([] if line is None else [line])


@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        (["ill", "well"], {}, ["ill", "well"]),
        ([0, 3, 1], {"0": "well", "1": "ill", "3": "ill"}, ["well", "ill", "ill"]),
        (["0", "3.0", " 1"], {"0": "well", "1": "ill", "3": "ill"}, ["well", "ill", "ill"]),
        ([], {"0": "well"}, []),
    ],
)
def test_a_hospitals_label_codes_become_the_studys_classes(
    values: list[Any], labels: dict[str, str], classes: list[str]
) -> None:
    found, num_unknown = map_labels(pd.Series(values), labels)

    assert (found.tolist(), num_unknown) == (classes, 0)


def test_a_label_code_that_is_not_listed_is_counted() -> None:
    _, num_unknown = map_labels(pd.Series(["0", "patient 4711", None, "4"]), {"0": "well"})

    assert num_unknown == 2


@pytest.mark.parametrize(
    ("chol", "named"),
    [
        ({"factor": 0}, "columns.chol.factor=0; expected another number"),
        ({"factor": "2"}, "columns.chol.factor='2'; expected a number"),
        ({"factor": float("nan")}, "columns.chol.factor=nan; "),
        ({"unit": "mmol/l"}, "columns.chol.unit='mmol/l' is not a known key"),
        ({"column": ""}, "columns.chol.column=''; expected a text of length 1 or more"),
        ({"missing": 0}, "columns.chol.missing=0; expected a list"),
        ({"missing": [True]}, "columns.chol.missing.0=True; expected a text or a number"),
        ({"codes": {"a": True}}, "columns.chol.codes.a=True; expected a number or a text"),
        ({"codes": {"1": 1, "01": 2}}, "columns.chol.codes.1 and 01; expected codes that differ"),
        ({"codes": {"1": 1}, "offset": 2}, "columns.chol.codes and factor or offset; expected one of them"),
        ({"codes": {"1": 1}, "missing": [1.0]}, "columns.chol.codes and missing both hold ['1.0']"),
    ],
)
def test_a_broken_rule_of_a_mapping_is_named(chol: dict[str, Any], named: str) -> None:
    raw = {"kind": "table", "train": "a.csv", "test": "b.csv", "label": "num", "columns": {"chol": chol}}

    with pytest.raises(SettingError) as caught:
        TableSourceSettings.parse(raw, origin="site.toml")

    assert f"site.toml: {named}" in str(caught.value)


def test_label_codes_that_are_the_same_number_are_named() -> None:
    raw = {"kind": "table", "train": "a.csv", "test": "b.csv", "label": "num", "labels": {"1": "ill", "1.0": "well"}}

    with pytest.raises(SettingError, match=r"labels\.1 and 1\.0; expected codes that differ"):
        TableSourceSettings.parse(raw, origin="site.toml")
