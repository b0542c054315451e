"""A coded reply becomes the hospital's model again, but for the codec's error; no other record becomes anything."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fl_contract.array_record import Arrays, to_array_record
from fl_contract.codecs.codec import CodecSeed
from fl_contract.codecs.float16 import Float16
from fl_contract.codecs.int8 import Int8
from fl_contract.codecs.top_k import TopK
from fl_contract.codecs.zstd import compress
from fl_contract.coded_update import SERIALISATION, UPDATE, UpdateForm, codec_seed, update_form
from fl_contract.errors import ReplyError
from fl_contract.study import Study
from fl_contract.study_file import Scalar, load_study

SEED = CodecSeed(seed=1, site="hospital-1", server_round=1)
FORM = UpdateForm(codec=Float16(((2, 3), (), (0,))), zstd=False, trained=("w", "b", "none"))
PACKED = UpdateForm(codec=FORM.codec, zstd=True, trained=FORM.trained)


def reference() -> Arrays:
    return {
        "mean": np.array([1.0, 2.0], dtype=np.float32),
        "w": np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32),
        "steps": np.array(4, dtype=np.int64),
        "b": np.array(0.5, dtype=np.float64),
        "none": np.zeros(0, dtype=np.float32),
    }


def trained() -> Arrays:
    """All differences are numbers of float16, so that nothing is lost."""
    return reference() | {
        "w": reference()["w"] + np.float32(0.25),
        "b": np.array(-0.5),
        "steps": np.array(9, dtype=np.int64),
    }


def coded(form: UpdateForm = FORM) -> ArrayRecord:
    return form.encode(trained(), reference(), None, SEED)[0]


def raw(
    content: bytes, *, dtype: str = "uint8", shape: tuple[int, ...] | None = None, stype: str = SERIALISATION
) -> Array:
    return Array(dtype=dtype, shape=shape or (len(content),), stype=stype, data=content)


def test_the_model_comes_back_with_names_order_shapes_and_types() -> None:
    decoded = FORM.decode(coded(), reference(), SEED)

    assert list(decoded) == list(reference())
    for name, array in trained().items():
        assert (decoded[name].dtype, decoded[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(decoded[name], array)


def test_only_the_update_and_what_else_changed_travels() -> None:
    """Seven numbers of two bytes, and the counter in NumPy's own format: 128 bytes and 8; and the names."""
    record = coded()

    assert set(record) == {UPDATE, "steps"}
    assert record.count_bytes() == 7 * 2 + len(UPDATE) + 128 + 8 + len("steps")


def test_zstd_on_top_gives_the_same_model() -> None:
    decoded = PACKED.decode(coded(PACKED), reference(), SEED)

    np.testing.assert_array_equal(decoded["w"], trained()["w"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e30], ids=["NaN", "infinity", "-infinity", "too large"])
def test_an_update_that_diverges_is_not_coded(value: float) -> None:
    arrays = trained()
    arrays["w"][1, 2] = value
    form = UpdateForm(codec=Int8(((2, 3),)), zstd=False, trained=("w",))

    with pytest.raises(ValueError, match="NaN, infinity or a number beyond 1e"):
        form.encode(arrays, reference(), None, SEED)


def test_what_was_not_sent_is_added_to_the_next_update() -> None:
    form = UpdateForm(codec=TopK(((2, 3),), 0.1), zstd=False, trained=("w",))
    arrays = reference() | {"w": reference()["w"] + np.array([[3, 0, 0], [0, 2, 0]], dtype=np.float32)}

    _, left = form.encode(arrays, reference(), None, SEED)
    second, nothing = form.encode(reference(), reference(), left, SEED)

    assert left is not None
    assert nothing is not None
    np.testing.assert_array_equal(left, [0, 0, 0, 0, 2, 0])
    np.testing.assert_array_equal(form.decode(second, reference(), SEED)["w"], [[1, 2, 3], [4, 7, 6]])
    assert not nothing.any()


Change = Callable[[ArrayRecord], None]


def put(name: str, array: Array | np.ndarray) -> Change:
    def change(record: ArrayRecord) -> None:
        record[name] = array if isinstance(array, Array) else Array(array)

    return change


def drop(name: str) -> Change:
    return lambda record: record.__delitem__(name)


GOOD = coded()[UPDATE].data
DAMAGES: Mapping[str, tuple[Change, str]] = {
    "no update": (drop(UPDATE), "arrays \\['.update'\\] are not of the form"),
    "one byte less": (put(UPDATE, raw(GOOD[:-1])), "'.update'"),
    "one byte more": (put(UPDATE, raw(GOOD + b"\0")), "'.update'"),
    "a false length": (put(UPDATE, raw(GOOD, shape=(10**12,))), "'.update'"),
    "another type": (put(UPDATE, raw(GOOD, dtype="float32")), "'.update'"),
    "NumPy's own format": (put(UPDATE, np.zeros(14, dtype=np.uint8)), "'.update'"),
    "another serialisation": (put(UPDATE, raw(GOOD, stype="pickle")), "'.update'"),
    "NaN": (put(UPDATE, raw(np.full(7, np.nan, dtype="<f2").tobytes())), "holds NaN or infinity"),
    "infinity": (put(UPDATE, raw(np.full(7, np.inf, dtype="<f2").tobytes())), "holds NaN or infinity"),
    "plain weights": (put("w", reference()["w"]), r"\['w'\]"),
    "an unknown array": (put("patients", np.zeros(3)), r"\['patients'\]"),
    "another shape": (put("mean", np.zeros(3, dtype=np.float32)), r"\['mean'\]"),
    "another kind of number": (put("mean", np.zeros(2)), r"\['mean'\]"),
    "a damaged array": (
        put("steps", Array(dtype="int64", shape=(), stype="numpy.ndarray", data=b"\x93NUMPY")),
        "'steps' cannot be read",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_record_of_another_form_is_refused(name: str) -> None:
    change, reason = DAMAGES[name]
    record = coded()
    change(record)

    with pytest.raises(ReplyError, match=reason):
        FORM.decode(record, reference(), SEED)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(compress(bytes(10**5)), "does not decompress to the 14 bytes", id="a bomb"),
        pytest.param(bytes(40), "no Zstandard frame", id="no frame"),
        pytest.param(bytes(10**5), "'.update'", id="too long"),
    ],
)
def test_a_compressed_update_of_another_form_is_refused(content: bytes, reason: str) -> None:
    record = to_array_record({})
    record[UPDATE] = raw(content)
    form = UpdateForm(codec=PACKED.codec, zstd=True, trained=PACKED.trained)

    with pytest.raises(ReplyError, match=reason):
        form.decode(record, reference(), SEED)


def test_weights_that_the_update_makes_infinite_are_left_to_the_check_of_replies() -> None:
    form = UpdateForm(codec=Int8(((1,),)), zstd=False, trained=("w",))
    before = {"w": np.array([3e38], dtype=np.float32)}
    record = to_array_record({})
    record[UPDATE] = raw(np.array([3e36], dtype="<f4").tobytes() + bytes([100]))

    assert np.isinf(form.decode(record, before, SEED)["w"]).all()


def study(overrides: Mapping[str, Scalar], name: str = "breast-cancer") -> Study:
    return load_study(name, overrides={"privacy.mechanism": "none", **overrides})


def test_a_study_without_a_codec_has_no_form() -> None:
    assert update_form(study({})) is None


def test_the_form_of_a_study_codes_what_is_trained() -> None:
    """A network with BatchNorm: its statistics are no part of the update."""
    form = update_form(study({"communication.codec": "int8", "model.norm": "batch"}, name="digits"))

    assert form is not None
    assert form.trained
    assert not [name for name in form.trained if "running" in name or "tracked" in name]


def test_both_ends_draw_from_the_same_seed() -> None:
    ours = study({"communication.codec": "rotation"})

    assert codec_seed(ours, site="a", server_round=3) == CodecSeed(seed=ours.seed, site="a", server_round=3)
