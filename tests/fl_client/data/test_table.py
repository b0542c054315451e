"""A table is built chunk by chunk: every row is there once, in order, or nothing is."""

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_client.data.table import TableBuilder, TableColumns
from fl_contract.errors import RefusalError

COLUMNS = TableColumns(features=("age", "sex"), label="outcome", fold="fold", patient="person")


def texts(**columns: list[object]) -> dict[str, NDArray[np.object_]]:
    return {name: np.array(values, dtype=object) for name, values in columns.items()}


def test_rows_of_many_chunks_keep_their_order_and_their_texts_in_full() -> None:
    table = TableBuilder(COLUMNS)
    table.add(
        np.array([[1.0, 2.0], [3.0, np.nan]]),
        texts(outcome=["ill", "well"], fold=["train", "test"], person=["a", "b"]),
    )
    table.add(np.array([[5.0, 6.0]]), texts(outcome=["very ill"], fold=["train"], person=["abc"]))

    site = table.build()

    assert site.train.features.tolist() == [[1, 2], [5, 6]]
    assert site.train.labels.tolist() == ["ill", "very ill"]
    assert site.train.patients is not None
    assert site.train.patients.tolist() == ["a", "abc"]
    assert np.array_equal(site.test.features, [[3, np.nan]], equal_nan=True)


def test_empty_values_are_counted_over_all_chunks() -> None:
    table = TableBuilder(COLUMNS)
    for label in (None, "ill", np.nan):
        table.add(np.ones((1, 2)), texts(outcome=[label], fold=["train"], person=["a"]))

    with pytest.raises(RefusalError, match="column 'outcome' is empty in 2 rows"):
        table.build()


def test_a_table_without_rows_is_refused() -> None:
    table = TableBuilder(COLUMNS)
    table.add(np.empty((0, 2)), texts(outcome=[], fold=[], person=[]))

    with pytest.raises(RefusalError, match="the table has no rows"):
        table.build()


def test_a_fold_without_rows_is_empty_and_still_says_whose_its_records_are() -> None:
    table = TableBuilder(COLUMNS)
    table.add(np.ones((1, 2)), texts(outcome=["ill"], person=["a"]), fold="train")

    test = table.build().test

    assert (len(test), test.features.shape) == (0, (0, 2))
    assert test.patients is not None


def test_a_column_that_is_there_twice_is_refused() -> None:
    with pytest.raises(RefusalError, match=r"x: columns \['age'\] are there more than once"):
        COLUMNS.check(["age", "sex", "age", "outcome", "fold", "person"], origin="x")


@pytest.mark.slow
def test_features_take_the_memory_of_one_array() -> None:
    columns = TableColumns(features=tuple(f"x{number}" for number in range(40)), label="y", fold=None, patient=None)
    table = TableBuilder(columns)
    chunk, labels = np.ones((5_000, 40)), texts(y=["a"] * 5_000)  # 1.6 MB

    tracemalloc.start()
    for _ in range(50):
        table.add(chunk, labels, fold="train")
    features = table.build().train.features
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert features.nbytes == 80e6
    assert peak < 1.1 * features.nbytes
