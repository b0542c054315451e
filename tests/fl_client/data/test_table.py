"""A table is built chunk by chunk: every row is there once, in order, or nothing is."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from schemas import numbers

from fl_client.data.table import TableBuilder
from fl_client.source_settings import TableSourceSettings
from fl_contract.errors import RefusalError

SETTINGS = TableSourceSettings.parse(
    {"kind": "table", "train": "x.csv", "label": "outcome", "fold": "fold", "patient": "person"}, origin="test"
)


def builder() -> TableBuilder:
    return TableBuilder(SETTINGS, numbers("age", "sex"))


def rows_of(features: list[list[float]], **texts: list[object]) -> pd.DataFrame:
    columns = dict(zip(["age", "sex"], np.array(features, dtype=float).reshape(-1, 2).T, strict=True))
    return pd.DataFrame({**columns, **{name: np.array(values, dtype=object) for name, values in texts.items()}})


def test_rows_of_many_chunks_keep_their_order_and_their_texts_in_full() -> None:
    table = builder()
    first = rows_of([[1.0, 2.0], [3.0, np.nan]], outcome=["ill", "well"], fold=["train", "test"], person=["a", "b"])
    table.add(first, origin="x")
    table.add(rows_of([[5.0, 6.0]], outcome=["very ill"], fold=["train"], person=["abc"]), origin="x")

    site = table.build()

    assert site.train.features.tolist() == [[1, 2], [5, 6]]
    assert site.train.labels.tolist() == ["ill", "very ill"]
    assert site.train.patients is not None
    assert site.train.patients.tolist() == ["a", "abc"]
    assert np.array_equal(site.test.features, [[3, np.nan]], equal_nan=True)


def test_empty_values_are_counted_over_all_chunks() -> None:
    table = builder()
    for label in (None, "ill", np.nan):
        table.add(rows_of([[1, 1]], outcome=[label], fold=["train"], person=["a"]), origin="x")

    with pytest.raises(RefusalError, match="column 'outcome' is empty in 2 rows"):
        table.build()


def test_a_table_without_rows_is_refused() -> None:
    table = builder()
    table.add(rows_of([], outcome=[], fold=[], person=[]), origin="x")

    with pytest.raises(RefusalError, match="the table has no rows"):
        table.build()


def test_a_fold_without_rows_is_empty_and_still_says_whose_its_records_are() -> None:
    raw = {"kind": "table", "train": "x.csv", "test": "y.csv", "label": "outcome", "patient": "person"}
    table = TableBuilder(TableSourceSettings.parse(raw, origin="test"), numbers("age", "sex"))
    table.add(rows_of([[1, 1]], outcome=["ill"], person=["a"]), origin="x", fold="train")

    test = table.build().test

    assert (len(test), test.features.shape) == (0, (0, 2))
    assert test.patients is not None


def test_a_column_that_is_there_twice_is_refused() -> None:
    with pytest.raises(RefusalError, match=r"x: columns \['age'\] are there more than once"):
        builder().check(["age", "sex", "age", "outcome", "fold", "person"], origin="x")


@pytest.mark.slow
def test_features_take_the_memory_of_one_array() -> None:
    names = [f"x{number}" for number in range(40)]
    raw = {"kind": "table", "train": "x.csv", "test": "y.csv", "label": "y"}
    table = TableBuilder(TableSourceSettings.parse(raw, origin="test"), numbers(*names))
    chunk = pd.DataFrame(dict.fromkeys(names, np.ones(5_000))).assign(y="a")  # 1.6 MB

    tracemalloc.start()
    for _ in range(50):
        table.add(chunk, origin="x", fold="train")
    features = table.build().train.features
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert features.nbytes == 80e6
    assert peak < 1.2 * features.nbytes


def test_codes_without_a_meaning_are_counted_over_all_chunks_and_named_by_column_alone() -> None:
    raw = {"kind": "table", "train": "x.csv", "test": "y.csv", "label": "y", "labels": {"0": "well"}}
    table = TableBuilder(TableSourceSettings.parse(raw, origin="test"), numbers("age"))
    for _ in range(3):
        table.add(pd.DataFrame({"age": ["old"], "y": ["patient 4711"]}), origin="x", fold="train")

    with pytest.raises(RefusalError) as caught:
        table.build()

    assert caught.value.detail.split("\n") == [
        "column 'age' of feature 'age': 3 rows hold a text or code without a meaning; "
        "expected numbers, or a code for a missing value in source.columns.'age'.missing",
        "label column 'y': 3 rows hold a code that source.labels does not list; list each code",
    ]
