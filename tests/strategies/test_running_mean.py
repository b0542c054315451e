"""The mean of models is the same however they come, off by roundings alone, and keeps types."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_contract.array_record import Arrays
from strategies import running_mean
from strategies.blocks import Resident, flatten, places
from strategies.running_mean import LazyMean, ModelMean, RunningMean, mean_type
from strategies.spool import Spool

EVERYTHING = slice(0, 100)

Round = tuple[list[NDArray[Any]], list[float]]


def mean_of(models: list[NDArray[Any]], weights: list[float]) -> NDArray[Any]:
    """Of flat arrays, added one at a time."""
    dtype = mean_type(models[0].dtype)
    total = RunningMean({"w": np.empty(models[0].size, dtype)})
    for model, weight in zip(models, weights, strict=True):
        total.add([Resident({"w": model})], [weight])
    return total.mean("w", EVERYTHING, dtype)


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    """Models of up to 9 hospitals of 5 numbers, and their weights."""
    value = st.floats(-(2.0**60), 2.0**60, width=32) | st.floats(-1, 1, width=32)
    model = st.lists(value, min_size=5, max_size=5).map(lambda values: np.array(values, np.float32))
    models = draw(st.lists(model, min_size=1, max_size=9))
    weights = draw(st.lists(st.floats(1e-3, 2**40), min_size=len(models), max_size=len(models)))
    return models, weights


@settings(deadline=None)
@given(rounds(), st.data())
def test_calls_and_places_do_not_matter_to_the_bit(round_: Round, data: st.DataObject) -> None:
    models, weights = round_
    one_by_one = mean_of(models, weights)
    in_file = data.draw(st.lists(st.booleans(), min_size=len(models), max_size=len(models)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(models)))) | {len(models)})

    with Spool() as spool:
        sources = [
            spool.put({"w": model}) if waits else Resident({"w": model})
            for model, waits in zip(models, in_file, strict=True)
        ]
        grouped = RunningMean({"w": np.empty(5, np.float32)})
        for start, end in zip([0, *cuts], cuts, strict=False):
            grouped.add(sources[start:end], weights[start:end])

    assert grouped.mean("w", EVERYTHING, np.float32).tobytes() == one_by_one.tobytes()


@settings(deadline=None)
@given(rounds())
def test_the_mean_is_off_by_roundings_alone(round_: Round) -> None:
    models, weights = round_
    exact = sum(w * x.astype(float) for w, x in zip(weights, models, strict=True)) / math.fsum(weights)

    mean = mean_of(models, weights)

    tiny = 2.0**-100  # products of small shares and numbers below float32's range
    bound = 8 * len(models) * 2.0**-24 * np.abs(models).max(axis=0).astype(float) + tiny
    assert (abs(mean.astype(float) - exact) <= bound).all()


@pytest.mark.parametrize("block", [1, 3, 8, 100])
def test_small_arrays_together_have_the_means_that_they_have_alone(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_mean, "MEAN_BLOCK", block)
    generator = np.random.default_rng(0)
    kinds = {"a": (5, "f4"), "b": (1, "f2"), "none": (0, "f4"), "c": (9, "f8"), "d": (2, "f4")}
    models = [{name: generator.normal(size=size).astype(kind) for name, (size, kind) in kinds.items()} for _ in "123"]
    types = {name: mean_type(array.dtype) for name, array in models[0].items()}
    running = RunningMean({name: np.empty(size, types[name]) for name, (size, _) in kinds.items()})
    lazy = LazyMean(types, {name: np.empty_like(array) for name, array in models[0].items()})
    for total in (running, lazy):
        total.add([Resident(model) for model in models], [1.0, 2.0, 5.0])

    for name, (size, _) in kinds.items():
        alone = mean_of([model[name] for model in models], [1.0, 2.0, 5.0])
        for place in places(size, block):
            for total in (running, lazy):
                assert total.mean(name, place, types[name]).tobytes() == alone[place].tobytes()


def test_equal_numbers_have_their_own_value_as_their_mean() -> None:
    # In float32 the next number after 4096 is 4096 + 2**-11. The sum of three of them is about 12288, where numbers
    # are 2**-10 apart, so that a float32 sum would not have their mean.
    value = np.array([4096 + 2.0**-11], np.float32)

    assert mean_of([value] * 3, [1.0, 0.3, 7.0])[0] == value[0]


@settings(deadline=None)
@given(
    st.sampled_from(["f2", "f4", "f8", "i8", "u1", "?"]),
    st.integers(-(2**50), 2**50) | st.integers(0, 1),
    st.integers(1, 2**40) | st.floats(1e-3, 1e3),
)
def test_one_model_alone_comes_back_unchanged(kind: str, value: int, weight: float) -> None:
    dtype = np.dtype(kind)
    limits = {"f2": (-60000, 60000), "u1": (0, 255), "?": (0, 1)}
    model = np.array([np.clip(value, *limits.get(kind, (-(2**50), 2**50)))], dtype)
    for trained in [{"x"}, set()] if dtype.kind == "f" else [set()]:
        mean = ModelMean({"x": np.ones(1, dtype)}, trained, {"x": np.empty(1, dtype)})
        mean.add([Resident({"x": model})], [(weight, weight)])

        assert mean.mean("x", slice(0, 1), np.float64).astype(dtype).tobytes() == model.tobytes()


def test_weights_are_divided_by_their_sum() -> None:
    # (3 * 1 + 1 * 5) / 4 = 2
    assert mean_of([np.array([1.0]), np.array([5.0])], [3, 1]).tolist() == [2.0]


def test_trained_arrays_and_others_may_count_differently() -> None:
    origin: Arrays = {"w": np.zeros(1, np.float32), "n": np.zeros(1, np.int64)}
    mean = ModelMean(origin, {"w"}, flatten({name: np.empty_like(array) for name, array in origin.items()}))

    mean.add([Resident({"w": np.array([1], "f4"), "n": np.array([1])})], [(3.0, 1.0)])
    mean.add([Resident({"w": np.array([5], "f4"), "n": np.array([5])})], [(1.0, 1.0)])

    assert mean.mean("w", EVERYTHING, np.float64).tolist() == [2.0]  # (3 * 1 + 1 * 5) / 4
    assert mean.mean("n", EVERYTHING, np.float64).tolist() == [3.0]  # (1 + 5) / 2


def test_a_variance_does_not_become_negative() -> None:
    small = np.array([2.0**-30], np.float32)
    mean = ModelMean({"variance": np.ones(1, np.float32)}, set(), {"variance": np.empty(1, np.float32)})

    mean.add([Resident({"variance": small})] * 3, [(0.3, 0.3)] * 3)

    assert mean.mean("variance", EVERYTHING, np.float64)[0] == pytest.approx(2.0**-30, rel=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 3, 6])
def test_a_sum_that_is_watched_says_that_it_is_not_finite(
    bad: float, position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_mean, "MEAN_BLOCK", 3)
    odd = np.zeros(7, np.float32)
    odd[position] = bad
    models = [Resident({"w": np.ones(7, np.float32)}), Resident({"w": odd}), Resident({"w": -odd})]

    for count in (1, 2, 3):
        total = RunningMean({"w": np.empty(7, np.float32)})
        assert total.add(models[:count], [1.0] * count, watch=True) is (count == 1)


def test_adding_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="mean of no models is not defined; add at least one"):
        RunningMean({"w": np.empty(2)}).mean("w", EVERYTHING, np.float64)
