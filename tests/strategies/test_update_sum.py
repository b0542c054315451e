"""The mean of models is the same however they come, off by roundings of their updates alone, and keeps types."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_contract.messages import Arrays
from strategies import blocks
from strategies.blocks import Resident, flatten
from strategies.spool import Spool
from strategies.update_sum import ModelMean, UpdateSum, sum_type

EVERYTHING = slice(0, 100)

Round = tuple[list[NDArray[np.floating]], list[float], NDArray[np.floating]]


def mean_of(
    models: list[NDArray[np.floating]], weights: list[float], origin: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Of flat arrays, added one at a time."""
    total = UpdateSum({"w": origin}, {"w": np.empty(origin.size, sum_type(origin.dtype))})
    for model, weight in zip(models, weights, strict=True):
        total.add([Resident({"w": model})], [weight])
    return total.mean("w", EVERYTHING, sum_type(origin.dtype))


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    """Models of up to 9 hospitals of 5 numbers, their weights, and the model that was sent out."""
    value = st.floats(-(2.0**60), 2.0**60, width=32) | st.floats(-1, 1, width=32)
    model = st.lists(value, min_size=5, max_size=5).map(lambda values: np.array(values, np.float32))
    models = draw(st.lists(model, min_size=1, max_size=9))
    weights = draw(st.lists(st.floats(1e-3, 2**40), min_size=len(models), max_size=len(models)))
    return models, weights, draw(model)


@settings(deadline=None)
@given(rounds(), st.data())
def test_calls_and_places_do_not_matter_to_the_bit(round_: Round, data: st.DataObject) -> None:
    models, weights, origin = round_
    one_by_one = mean_of(models, weights, origin)
    in_file = data.draw(st.lists(st.booleans(), min_size=len(models), max_size=len(models)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(models)))) | {len(models)})

    with Spool() as spool:
        sources = [
            spool.put({"w": model}) if waits else Resident({"w": model})
            for model, waits in zip(models, in_file, strict=True)
        ]
        grouped = UpdateSum({"w": origin}, {"w": np.empty(5, np.float32)})
        for start, end in zip([0, *cuts], cuts, strict=False):
            grouped.add(sources[start:end], weights[start:end])

    assert grouped.mean("w", EVERYTHING, np.float32).tobytes() == one_by_one.tobytes()


@settings(deadline=None)
@given(rounds())
def test_the_mean_is_off_by_roundings_of_the_updates_alone(round_: Round) -> None:
    models, weights, origin = round_
    start = origin.astype(float)
    total = math.fsum(weights)
    exact = start + sum(w * (x - start) for w, x in zip(weights, models, strict=True)) / total
    size = sum(w * abs(x - start) for w, x in zip(weights, models, strict=True)) / total

    mean = mean_of(models, weights, origin)

    tiny = 2.0**-100  # products of small weights and updates below float32's range
    bound = (len(models) + 4) * 2.0**-24 * size + 2.0**-24 * abs(exact) + tiny
    assert (abs(mean.astype(float) - exact) <= bound).all()


def test_a_small_update_of_a_large_weight_survives() -> None:
    # In float32 the next number after 4096 is 4096 + 2**-11. The sum of three weights is about 12288, where numbers
    # are 2**-10 apart, so a float32 sum of weights could lose one update of 2**-11; the sum of updates has all three.
    origin = np.array([4096.0], np.float32)

    mean = mean_of([origin + np.float32(2.0**-11)] * 3, [1.0] * 3, origin)

    assert mean[0] == np.float32(4096 + 2.0**-11)


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
    assert mean_of([np.array([1.0]), np.array([5.0])], [3, 1], np.array([7.0])).tolist() == [2.0]


def test_trained_arrays_and_others_may_count_differently() -> None:
    origin: Arrays = {"w": np.zeros(1, np.float32), "n": np.zeros(1, np.int64)}
    mean = ModelMean(origin, {"w"}, flatten({name: np.empty_like(array) for name, array in origin.items()}))

    mean.add([Resident({"w": np.array([1], "f4"), "n": np.array([1])})], [(3.0, 1.0)])
    mean.add([Resident({"w": np.array([5], "f4"), "n": np.array([5])})], [(1.0, 1.0)])

    assert mean.mean("w", EVERYTHING, np.float64).tolist() == [2.0]  # (3 * 1 + 1 * 5) / 4
    assert mean.mean("n", EVERYTHING, np.float64).tolist() == [3.0]  # (1 + 5) / 2


def test_a_variance_does_not_become_negative() -> None:
    # As a sum of updates, 1 + (-1 + 2**-30), which float32 rounds to -1, and twice that, over 2, is 0 or below.
    small = np.array([2.0**-30], np.float32)
    mean = ModelMean({"variance": np.ones(1, np.float32)}, set(), {"variance": np.empty(1, np.float32)})

    mean.add([Resident({"variance": small})] * 3, [(0.3, 0.3)] * 3)

    assert mean.mean("variance", EVERYTHING, np.float64)[0] == pytest.approx(2.0**-30, rel=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 3, 6])
def test_a_sum_that_is_watched_says_that_it_is_not_finite(
    bad: float, position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 3)
    odd = np.zeros(7, np.float32)
    odd[position] = bad
    models = [Resident({"w": np.ones(7, np.float32)}), Resident({"w": odd}), Resident({"w": -odd})]

    for count in (1, 2, 3):
        total = UpdateSum({"w": np.zeros(7, np.float32)}, {"w": np.empty(7, np.float32)})
        assert total.add(models[:count], [1.0] * count, watch=True) is (count == 1)


def test_adding_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="mean of no models is not defined; add at least one"):
        UpdateSum({"w": np.zeros(2)}, {"w": np.empty(2)}).mean("w", EVERYTHING, np.float64)
