"""What every codec promises, whatever it does; a new one joins by a line in ``CODECS``."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_contract.codecs.bfloat16 import Bfloat16
from fl_contract.codecs.codec import Codec, CodecSeed, Shapes, Vector
from fl_contract.codecs.float16 import Float16
from fl_contract.codecs.int8 import Int8
from fl_contract.codecs.power_sgd import PowerSgd
from fl_contract.codecs.rotation import Rotation
from fl_contract.codecs.top_k import TopK
from fl_contract.errors import ReplyError


def make_codec(name: str, shapes: Shapes) -> Codec:
    match name:
        case "float16":
            return Float16(shapes)
        case "bfloat16":
            return Bfloat16(shapes)
        case "int8":
            return Int8(shapes)
        case "rotation-1" | "rotation-2" | "rotation-4":
            return Rotation(shapes, int(name[-1]))
        case "top-k":
            return TopK(shapes, 0.1)
        case "top-k-all":
            return TopK(shapes, 1.0)
        case _:
            return PowerSgd(shapes, 2)


CODECS = {
    # Relative error, |x̂ - x| / |x|, that no update exceeds; one with error feedback never loses more than the whole.
    "float16": 2**-10,
    "bfloat16": 2**-8,
    "int8": 2 * 16 / 127,  # a level is the largest over 127, and a block's norm at least the largest
    "rotation-1": 12.0,
    "rotation-2": 12.0,
    "rotation-4": 12.0,
    "top-k": 1.0,
    "top-k-all": 2**-10,
    "powersgd": 1.001,
}

HALVES = ("float16", "top-k", "top-k-all")
"""Whose numbers are float16, from 6e-8 to 65504."""

SHAPES: dict[str, Shapes] = {
    "nothing": (),
    "an empty array": ((0, 3),),
    "a single number": ((),),
    "one number": ((1,),),
    "a logistic model": ((1, 30), (1,)),
    "just a block": ((128,),),
    "a block and one": ((129,),),
    "a network": ((16, 3, 3, 3), (16,), (40, 16), (40,), (0,), (), (7, 40)),
}


def seed_of(number: int, *, site: str = "hospital-1", server_round: int = 1) -> CodecSeed:
    return CodecSeed(seed=number, site=site, server_round=server_round)


def draw(shapes: Shapes, number: int = 0) -> Vector:
    size = sum(int(np.prod(shape)) for shape in shapes)
    return np.random.default_rng(number).standard_normal(size, dtype=np.float32)


def relative_error(found: Vector, expected: Vector) -> float:
    difference = float(np.linalg.norm(found.astype(np.float64) - expected))
    return difference / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-300)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", CODECS)
def test_an_update_comes_back_in_its_length_from_as_many_bytes_as_were_said(name: str, shapes: Shapes) -> None:
    codec, update = make_codec(name, shapes), draw(shapes)

    payload = codec.encode(update, seed_of(1))
    decoded = codec.decode(payload, seed_of(1))

    assert len(payload) == codec.num_bytes
    assert (str(decoded.dtype), decoded.shape) == ("float32", update.shape)
    assert relative_error(decoded, update) <= CODECS[name]


@pytest.mark.parametrize("name", CODECS)
def test_zeros_come_back_as_zeros(name: str) -> None:
    shapes = SHAPES["a network"]
    codec = make_codec(name, shapes)

    decoded = codec.decode(codec.encode(np.zeros_like(draw(shapes)), seed_of(1)), seed_of(1))

    assert not decoded.any()


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e4, 1e29])
@pytest.mark.parametrize("name", [name for name in CODECS if name not in HALVES])
def test_the_error_is_in_proportion_to_the_update(name: str, scale: float) -> None:
    shapes = SHAPES["a network"]
    codec, update = make_codec(name, shapes), draw(shapes)

    errors = [
        relative_error(codec.decode(codec.encode(each, seed_of(1)), seed_of(1)), each)
        for each in (update, (update * np.float32(scale)).astype(np.float32))
    ]

    assert errors[1] == pytest.approx(errors[0], rel=0.05)


@pytest.mark.parametrize("name", CODECS)
def test_the_same_reply_is_coded_in_the_same_bytes_again(name: str) -> None:
    shapes = SHAPES["a network"]
    update = draw(shapes)

    payloads = [make_codec(name, shapes).encode(update.copy(), seed_of(1)) for _ in range(2)]

    assert payloads[0] == payloads[1]


@pytest.mark.parametrize("name", ["int8", "rotation-1"])
@pytest.mark.parametrize(
    "other", [seed_of(2), seed_of(1, site="hospital-2"), seed_of(1, server_round=2)], ids=["seed", "site", "round"]
)
def test_another_seed_site_or_round_draws_anew(name: str, other: CodecSeed) -> None:
    codec, update = make_codec(name, ((300,),)), draw(((300,),))

    assert codec.encode(update, seed_of(1)) != codec.encode(update, other)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CODECS)),
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=4).map(tuple), max_size=4).map(tuple),
    values=st.lists(
        st.floats(-6e4, 6e4, width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1e-38, 1e-45]), min_size=1
    ),
)
def test_any_update_of_any_model_survives(name: str, shapes: Shapes, values: list[float]) -> None:
    codec = make_codec(name, shapes)
    update = np.resize(np.array(values, dtype=np.float32), codec.size)

    decoded = codec.decode(codec.encode(update, seed_of(1)), seed_of(1))

    bound = CODECS[name] * np.linalg.norm(update.astype(np.float64)) + 1e-7 * np.sqrt(codec.size + 1)
    assert np.linalg.norm(decoded.astype(np.float64) - update) <= bound


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(CODECS)), noise=st.binary(max_size=400), is_fitted=st.booleans())
def test_any_bytes_give_a_vector_or_a_reply_error(name: str, noise: bytes, is_fitted: bool) -> None:
    codec = make_codec(name, SHAPES["a logistic model"])
    payload = (noise * codec.num_bytes)[: codec.num_bytes] if is_fitted else noise

    try:
        decoded = codec.decode(payload, seed_of(1))
    except ReplyError:
        return

    assert decoded.shape == (31,)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("change", [-1, 1], ids=["one byte less", "one byte more"])
def test_another_number_of_bytes_is_refused(name: str, change: int) -> None:
    codec = make_codec(name, SHAPES["a logistic model"])
    payload = codec.encode(draw(SHAPES["a logistic model"]), seed_of(1))

    with pytest.raises(ReplyError, match="bytes; expected"):
        codec.decode((payload + b"\0")[: len(payload) + change], seed_of(1))


@pytest.mark.parametrize("name", [name for name in CODECS if make_codec(name, ()).KEEPS_RESIDUAL])
def test_error_feedback_sends_the_whole_update_in_the_end(name: str) -> None:
    """What has arrived and what is left make what was to be sent, in every round; and what is left is bounded."""
    shapes = SHAPES["a network"]
    codec, update = make_codec(name, shapes), draw(shapes)
    arrived, left = np.zeros_like(update), np.zeros_like(update)

    for server_round in range(1, 41):
        total = update + left
        sent = codec.decode(codec.encode(total, seed_of(1, server_round=server_round)), seed_of(1))
        arrived, left = arrived + sent, total - sent

        np.testing.assert_allclose(arrived + left, server_round * update, rtol=1e-3, atol=1e-3)

    assert relative_error((arrived / 40).astype(np.float32), update) < 0.35
