"""Sums merge in any order, suppress small counts, and refuse what no patients can have."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl_contract.errors import MessageError
from fl_contract.messages import CONFIG, METRICS, read_statistics, statistics_content
from fl_contract.statistics import FeatureSums

TABLES = st.lists(
    st.integers(1, 9).flatmap(
        lambda rows: arrays(np.float64, (rows, 3), elements=st.one_of(st.floats(-1, 1), st.just(float("nan"))))
    ),
    min_size=1,
    max_size=4,
)


@given(tables=TABLES)
def test_hospitals_together_have_the_statistics_of_one_table(tables: list[np.ndarray]) -> None:
    merged = FeatureSums.merge(FeatureSums.of(table, min_count=1) for table in tables)
    backwards = FeatureSums.merge(FeatureSums.of(table, min_count=1) for table in tables[::-1])

    pooled = np.concatenate(tables)
    for column in range(3):
        values = pooled[~np.isnan(pooled[:, column]), column]
        assert merged.counts[column] == len(values)
        assert merged.means[column] == pytest.approx(values.mean() if len(values) else 0.0, abs=1e-9)
        deviation = values.std() if len(values) else 0.0
        if deviation > 1e-4:
            assert merged.deviations[column] == pytest.approx(deviation, rel=1e-6)
        elif deviation < 1e-7:
            assert merged.deviations[column] == 1.0
    assert np.array_equal(merged.sums, backwards.sums)
    assert np.array_equal(merged.square_sums, backwards.square_sums)


@pytest.mark.parametrize(("num_known", "expected"), [(9, 0), (10, 10)])
def test_a_count_below_the_least_leaves_as_nothing(num_known: int, expected: int) -> None:
    inputs = np.full((30, 1), np.nan)
    inputs[:num_known] = 0.5

    sums = FeatureSums.of(inputs, min_count=10)

    assert (sums.counts[0], sums.sums[0], sums.square_sums[0]) == (expected, 0.5 * expected, 0.25 * expected)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("counts", [-1, 4], "counts hold what is not a whole number"),
        ("counts", [0.5, 1.5], "counts hold what is not a whole number"),
        ("counts", [4], "statistics of 1 features; expected 2"),
        ("sums", [9.0, 0.0], "a sum larger than its count"),
        ("sums", [float("nan"), 0.0], "sums or square-sums hold what is not a finite number"),
        ("square-sums", [-1.0, 0.0], "a sum of squares is negative"),
        ("square-sums", [5.0, 0.0], "a sum of squares is negative or larger"),
    ],
)
def test_impossible_statistics_are_refused_at_the_coordinator(field: str, value: list[float], rule: str) -> None:
    fields: dict[str, Any] = {"counts": [4, 4], "sums": [1.0, -1.0], "square-sums": [1.0, 0.5]} | {field: value}
    content = RecordDict({METRICS: MetricRecord(fields), CONFIG: ConfigRecord({"site": "north"})})

    with pytest.raises(MessageError, match=rule):
        read_statistics(Message(content, 1, "query.statistics"), num_features=2)


def test_statistics_are_read_as_they_were_written() -> None:
    sent = FeatureSums.of(np.array([[0.5, -1.0], [0.25, np.nan]]), min_count=1)

    read = read_statistics(Message(statistics_content("north", sent), 1, "query.statistics"), num_features=2)

    assert np.array_equal(read.counts, sent.counts)
    assert np.array_equal(read.sums, sent.sums)
    assert np.array_equal(read.square_sums, sent.square_sums)
