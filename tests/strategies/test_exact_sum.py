"""The mean of models is exact, the same in any order of replies, and keeps types and shapes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_contract.messages import Arrays
from strategies.exact_sum import ExactSum

Models = list[tuple[Arrays, int]]


def mean_of(models: list[tuple[Arrays, float]] | Models) -> Arrays:
    total = ExactSum(models[0][0])
    for arrays, weight in models:
        total.add(arrays, weight)
    return total.mean()


@st.composite
def weighted_models(draw: st.DrawFn, dtype: type[np.floating] = np.float32) -> Models:
    """Up to 6 models in the range of the promise: 6**2 times the largest term is below 2**53 times the smallest.

    Values are 1 to 2 times 2**scale to 2**(scale + 23), of either sign, or zero; weights are below 2**20. So terms
    differ by less than 2**(24 + 20), and 36 * 2**44 is below 2**50.
    """
    num_models = draw(st.integers(1, 6))
    scale = draw(st.sampled_from([-126, -60, 0, 60, 103]))
    value = st.builds(
        lambda sign, mantissa, exponent: dtype(sign * (1 + mantissa * 2.0**-23) * 2.0 ** (scale + exponent)),
        st.sampled_from([-1, 0, 1]),
        st.integers(0, 2**23 - 1),
        st.integers(0, 23),
    )
    return [
        ({"w": np.array(draw(st.lists(value, min_size=3, max_size=3)), dtype=dtype)}, draw(st.integers(1, 2**20 - 1)))
        for _ in range(num_models)
    ]


@settings(deadline=None)
@given(st.data())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mean_does_not_depend_on_the_order_of_replies(dtype: type[np.floating], data: st.DataObject) -> None:
    models = data.draw(weighted_models(dtype))
    shuffled = data.draw(st.permutations(models))

    assert mean_of(models)["w"].tobytes() == mean_of(shuffled)["w"].tobytes()


def test_a_small_reply_survives_between_two_that_cancel() -> None:
    # Added from left to right in float64, 1e10 + 2**-24 is 1e10, and the 2**-24 is lost.
    models: Models = [({"w": np.array([value], np.float32)}, 1) for value in (1e10, 2.0**-24, -1e10)]

    # 2**-24 / 3, rounded to float32.
    assert mean_of(models)["w"][0] == np.float32(2.0**-24 / 3)


@settings(deadline=None)
@given(weighted_models())
def test_the_mean_is_the_exact_one(models: Models) -> None:
    # A float32 times a whole number below 2**29 is exact in float64, and fsum rounds the sum of such terms once.
    total_weight = math.fsum(weight for _, weight in models)
    exact = [math.fsum(weight * float(arrays["w"][k]) for arrays, weight in models) / total_weight for k in range(3)]

    assert mean_of(models)["w"].tobytes() == np.array(exact, dtype=np.float32).tobytes()


@settings(deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=4),
    st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=4),
    st.lists(st.integers(-(2**50), 2**50), min_size=1, max_size=4),
    st.integers(1, 2**40) | st.floats(1e-3, 1e3),
)
def test_one_reply_alone_comes_back_unchanged(
    singles: list[float], halves: list[float], wholes: list[int], weight: float
) -> None:
    model: Arrays = {"f4": np.array(singles, "f4"), "f2": np.array(halves, "f2"), "i8": np.array(wholes, "i8")}

    mean = mean_of([(model, weight)])

    for name, array in model.items():
        assert mean[name].tobytes() == (array + array.dtype.type(0)).tobytes()  # -0.0 comes back as 0.0


@settings(deadline=None)
@given(st.floats(1e-300, 1e290), st.integers(1, 2**40))
def test_one_float64_reply_alone_comes_back_to_within_one_rounding(value: float, weight: int) -> None:
    mean = mean_of([({"w": np.array([value])}, weight)])

    assert abs(mean["w"][0] - value) <= math.ulp(value)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 0, 1)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64", "uint8", "bool"])
def test_types_and_shapes_are_kept(dtype: str, shape: tuple[int, ...]) -> None:
    model = {"x": np.ones(shape, dtype)}

    mean = mean_of([(model, 3), (model, 5)])

    assert mean["x"].dtype == np.dtype(dtype)
    assert mean["x"].shape == shape
    assert np.array_equal(mean["x"], model["x"])


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([1, 2], "int64", 2),  # 1.5
        ([2, 3], "int64", 2),  # 2.5
        ([-1, -2], "int64", -2),  # -1.5
        ([-2, -3], "int32", -2),  # -2.5
        ([1, 1, 0], "int64", 1),  # 0.67
        ([254, 255], "uint8", 254),  # 254.5
        ([True, False], "bool", False),  # 0.5
        ([True, True, False], "bool", True),  # 0.67
    ],
)
def test_whole_numbers_are_rounded_to_the_nearest_halves_to_even(values: list[int], dtype: str, expected: int) -> None:
    mean = mean_of([({"n": np.array(value, dtype)}, 1) for value in values])

    assert mean["n"] == expected


def test_weights_are_divided_by_their_sum() -> None:
    # (3 * 1 + 1 * 5) / 4 = 2
    mean = mean_of([({"w": np.array([1.0], np.float32)}, 3), ({"w": np.array([5.0], np.float32)}, 1)])

    assert mean["w"].tolist() == [2.0]


def test_the_replies_are_not_changed() -> None:
    array: NDArray[np.float32] = np.array([1.0, 2.0], np.float32)

    mean_of([({"w": array}, 2), ({"w": array}, 3)])

    assert array.tolist() == [1.0, 2.0]


def test_adding_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="mean of no replies is not defined; add at least one"):
        ExactSum({"w": np.zeros(2)}).mean()


def test_the_length_is_the_number_of_replies() -> None:
    total = ExactSum({"w": np.zeros(1)})

    total.add({"w": np.zeros(1)}, 7.0)
    total.add({"w": np.zeros(1)}, 7.0)

    assert len(total) == 2
