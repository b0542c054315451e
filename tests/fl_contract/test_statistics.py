"""Statistics merge into those of one table, suppress small counts, and refuse what no patients can have."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl_contract.errors import MessageError
from fl_contract.features import NUM_BINS, Column
from fl_contract.messages import CONFIG, METRICS, read_statistics, statistics_content
from fl_contract.statistics import FeatureStatistics, join_bins, quantile

SUMS = Column(name="sums", scale="standard")
MEDIAN = Column(name="median", scale="robust", fill="median")
PAIN = Column(name="pain", fill="most-frequent", num_categories=3)
PLAIN = Column(name="plain")
COLUMNS = (SUMS, MEDIAN, PAIN, PLAIN)

NUMBERS = st.one_of(st.floats(-1, 1), st.just(float("nan")))


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    """A hospital's records: numbers and gaps, of the third column categories."""
    rows = draw(st.integers(1, 30))
    table = draw(arrays(np.float64, (rows, 4), elements=NUMBERS))
    table[:, 2] = draw(arrays(np.float64, rows, elements=st.sampled_from([0.0, 1.0, 2.0, float("nan")])))
    return table


TABLES = st.lists(tables(), min_size=1, max_size=4)
BIN = 2 / NUM_BINS


def of(values: list[float], column: Column) -> FeatureStatistics:
    return FeatureStatistics.of(np.array(values).reshape(-1, 1), [column])


@settings(deadline=None, max_examples=50)
@given(tables=TABLES)
def test_hospitals_together_have_the_statistics_of_one_table(tables: list[np.ndarray]) -> None:
    parts = [FeatureStatistics.of(table, COLUMNS) for table in tables]
    merged = FeatureStatistics.merge(parts)
    backwards = FeatureStatistics.merge(parts[::-1])

    pooled = np.concatenate(tables)
    whole = FeatureStatistics.of(pooled, COLUMNS)
    values = pooled[~np.isnan(pooled[:, 0]), 0]
    assert merged.counts[0] == len(values)
    assert merged.means[0] == pytest.approx(values.mean() if len(values) else 0.0, abs=1e-9)
    deviation = values.std() if len(values) else 0.0
    if deviation > 1e-4:
        assert merged.deviations[0] == pytest.approx(deviation, rel=1e-6)
    elif deviation < 1e-7:
        assert merged.deviations[0] == 1.0
    assert merged.counts.tolist() == whole.counts.tolist()
    assert [each.tolist() for each in merged.histograms] == [each.tolist() for each in whole.histograms]
    assert np.array_equal(merged.sums, backwards.sums)
    assert np.array_equal(merged.square_sums, backwards.square_sums)


@settings(deadline=None, max_examples=50)
@given(tables=TABLES, share=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]))
def test_a_quantile_of_all_hospitals_is_within_half_a_bin_of_numpys(tables: list[np.ndarray], share: float) -> None:
    values = np.concatenate(tables)[:, 1]
    values = values[~np.isnan(values)]
    merged = FeatureStatistics.merge(FeatureStatistics.of(table, COLUMNS) for table in tables)

    found = quantile(merged.histograms[1], share)

    assert found == pytest.approx(np.quantile(values, share) if len(values) else 0.0, abs=BIN / 2 + 1e-12)


@settings(deadline=None, max_examples=50)
@given(tables=TABLES)
def test_the_most_frequent_category_is_that_of_one_table(tables: list[np.ndarray]) -> None:
    merged = FeatureStatistics.merge(FeatureStatistics.of(table, COLUMNS) for table in tables)

    pain = np.concatenate(tables)[:, 2]
    counts = [int((pain == number).sum()) for number in range(3)]
    assert merged.histograms[2].tolist() == counts
    assert merged.most_frequent(2) == counts.index(max(counts))


@settings(deadline=None, max_examples=50)
@given(table=tables(), min_count=st.integers(1, 12))
def test_no_count_that_leaves_is_below_the_least(table: np.ndarray, min_count: int) -> None:
    exact = FeatureStatistics.of(table, COLUMNS)

    sent = exact.suppress(COLUMNS, min_count=min_count)

    for histogram, before in zip(sent.histograms, exact.histograms, strict=True):
        assert not ((histogram > 0) & (histogram < min_count)).any()
        assert histogram.sum() == (before.sum() if before.sum() >= min_count else 0)
    assert not ((sent.counts > 0) & (sent.counts < min_count)).any()
    assert (sent.sums[sent.counts == 0] == 0).all()
    if min_count == 1:
        assert [each.tolist() for each in sent.histograms] == [each.tolist() for each in exact.histograms]


@settings(deadline=None, max_examples=50)
@given(
    histogram=arrays(np.int64, 40, elements=st.integers(0, 6)),
    min_count=st.integers(1, 12),
    share=st.sampled_from([0.25, 0.5, 0.75]),
)
def test_joining_moves_a_quantile_by_a_group_at_most(histogram: np.ndarray, min_count: int, share: float) -> None:
    joined = join_bins(histogram, min_count=min_count)

    if histogram.sum() >= min_count:
        # A value moves within its group; groups lie one after another, so none is wider than what they skip together.
        places, after = (np.repeat(np.arange(40), counts) for counts in (histogram, joined))
        widest = max(
            (places[np.flatnonzero(after == middle)].max() - places[np.flatnonzero(after == middle)].min())
            for middle in np.unique(after)
        )
        assert np.abs(places - after).max() <= widest
        moved = abs(quantile(joined, share) - quantile(histogram, share))
        assert moved <= 2 / 40 * widest + 1e-12


@pytest.mark.parametrize(
    ("histogram", "joined"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([0, 10, 0, 12], [0, 10, 0, 12]),
        # 4 and 6 make a group, whose mean is (4 * 0 + 6 * 2) / 10.
        ([4, 0, 6, 10], [0, 10, 0, 10]),
        # The end is too few and joins the group before it, with a mean of 37 / 19.
        ([0, 10, 0, 9], [0, 0, 19, 0]),
        ([0, 0, 11, 1], [0, 0, 12, 0]),
        # The start joins the group after it.
        ([9, 0, 0, 27], [0, 0, 36, 0]),
        # 66 / 10.
        ([1] * 4 + [0] * 6 + [6], [0] * 7 + [10] + [0] * 3),
        # Bins that hold enough are not joined with a group that does too; 2 and 2 are none. 1.5 is rounded to 2.
        ([12, 5, 5, 15], [12, 0, 10, 15]),
        ([3, 12, 2, 0, 2, 15], [0, 19, 0, 0, 0, 15]),
    ],
)
def test_bins_are_joined_until_they_hold_ten(histogram: list[int], joined: list[int]) -> None:
    assert join_bins(np.array(histogram), min_count=10).tolist() == joined


@pytest.mark.parametrize(
    ("counts", "sent"),
    [
        ([10, 30, 12], [10, 30, 12]),
        # What is rare is counted with the most frequent, so that no difference gives it away.
        ([9, 30, 0], [0, 39, 0]),
        ([9, 8, 12], [0, 0, 29]),
        ([4, 4, 3], [11, 0, 0]),
        ([4, 4, 1], [0, 0, 0]),
    ],
)
def test_rare_categories_are_reported_as_none(counts: list[int], sent: list[int]) -> None:
    exact = of([float(number) for number, count in enumerate(counts) for _ in range(count)], PAIN)

    suppressed = exact.suppress([PAIN], min_count=10)

    assert suppressed.histograms[0].tolist() == sent
    assert suppressed.counts[0] == sum(sent)


@pytest.mark.parametrize(
    ("values", "median", "quartile_distance"),
    [
        ([], 0.0, 1.0),
        ([1.0], 1 - BIN / 2, 1.0),
        ([-1.0], -1 + BIN / 2, 1.0),
        # Between two values, as numpy.
        ([-1.0, 1.0], 0.0, 1 - BIN / 2),
        # All in one bin: what never varies is not divided.
        ([0.0, 0.001], BIN / 2, 1.0),
        # 0, 1, 2, 3, 4 fifths: quartiles at 1 and 3.
        ([0.001, 0.201, 0.401, 0.601, 0.801], 0.401, 0.4),
    ],
)
def test_medians_and_quartiles_of_few_values(values: list[float], median: float, quartile_distance: float) -> None:
    statistics = of(values, MEDIAN)

    assert statistics.median(0) == pytest.approx(median, abs=1e-12)
    assert statistics.quartile_distance(0) == pytest.approx(quartile_distance, abs=1e-12)


def test_only_what_the_study_needs_is_counted() -> None:
    statistics = FeatureStatistics.of(np.full((20, 4), 0.5) * [1, 1, 2, 1], COLUMNS)

    assert statistics.counts.tolist() == [20, 20, 20, 0]
    assert statistics.sums.tolist() == [10, 0, 0, 0]
    assert statistics.square_sums.tolist() == [5, 0, 0, 0]
    assert [len(histogram) for histogram in statistics.histograms] == [0, NUM_BINS, 3, 0]


@pytest.mark.parametrize(("num_known", "expected"), [(9, 0), (10, 10)])
def test_a_count_below_the_least_leaves_as_nothing(num_known: int, expected: int) -> None:
    column = Column(name="x", scale="standard", fill="median")

    sent = of([0.5] * num_known + [np.nan] * (30 - num_known), column).suppress([column], min_count=10)

    assert (sent.counts[0], sent.sums[0], sent.square_sums[0]) == (expected, 0.5 * expected, 0.25 * expected)
    assert sent.histograms[0].sum() == expected


def test_statistics_of_other_features_are_not_added() -> None:
    with pytest.raises(ValueError, match="statistics are of different features"):
        FeatureStatistics.merge([of([0.0], PAIN), of([0.0], MEDIAN)])


TWO = (Column(name="x", scale="standard"), Column(name="pain", fill="most-frequent", num_categories=3))


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("counts", [-1, 4], "counts hold what is not a whole number"),
        ("counts", [0.5, 1.5], "counts hold what is not a whole number"),
        ("counts", [2**41, 4], "counts hold what is not a whole number"),
        ("counts", [4], "statistics of 1 features; expected 2"),
        ("sums", [9.0, 0.0], "a sum larger than its count"),
        ("sums", [float("nan"), 0.0], "sums or square-sums hold what is not a finite number"),
        ("sums", [3.0, 0.0], "a squared sum is larger than count times sum of squares"),
        ("square-sums", [-1.0, 0.0], "a sum of squares is negative"),
        ("square-sums", [5.0, 0.0], "a sum of squares is negative or larger"),
        ("histograms", None, "histograms"),
        ("histograms", 4, "histograms"),
        ("histograms", [4, 0], "histograms of 2 bins; expected 3"),
        ("histograms", [4, 0, 0, 0], "histograms of 4 bins; expected 3"),
        ("histograms", [2, 1, 0], "another total than its feature's count"),
        ("histograms", [5, -1, 0], "histograms hold what is not a whole number"),
        ("histograms", [1.0, 3.0, 0.0], "histograms hold what is not a whole number"),
    ],
)
def test_impossible_statistics_are_refused_at_the_coordinator(field: str, value: Any, rule: str) -> None:
    fields: dict[str, Any] = {"counts": [4, 4], "sums": [1.0, 0.0], "square-sums": [1.0, 0.0], "histograms": [3, 0, 1]}
    fields = {key: each for key, each in (fields | {field: value}).items() if each is not None}
    content = RecordDict({METRICS: MetricRecord(fields), CONFIG: ConfigRecord({"site": "north"})})

    with pytest.raises(MessageError, match=rule):
        read_statistics(Message(content, 1, "query.statistics"), TWO)


@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS[:1], COLUMNS[1:2]])
def test_statistics_are_read_as_they_were_written(columns: tuple[Column, ...]) -> None:
    table = np.array([[0.5, -1.0, 2.0, 0.0], [0.25, np.nan, 0.0, 0.0]])[:, : len(columns)]
    sent = FeatureStatistics.of(table, columns)

    read = read_statistics(Message(statistics_content("north", sent), 1, "query.statistics"), columns)

    assert np.array_equal(read.counts, sent.counts)
    assert np.array_equal(read.sums, sent.sums)
    assert np.array_equal(read.square_sums, sent.square_sums)
    assert [each.tolist() for each in read.histograms] == [each.tolist() for each in sent.histograms]
