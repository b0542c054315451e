"""A reply that breaks any rule is refused with a sentence that names the rule, and none of the reply's numbers."""

import io
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fl_contract.array_record import Arrays, to_array_record
from fl_contract.errors import ReplyError
from fl_contract.messages import ARRAYS, METRICS
from fl_contract.metrics.measurement import MAX_EXAMPLES
from strategies.blocks import Resident, resident
from strategies.reply_check import MAX_WHOLE_NUMBER, check_reply

SECRET = 7.25
"""Stands for a patient's value: no message may hold it."""

REFERENCE: Arrays = {
    "weight": np.zeros((2, 3), np.float32),
    "bias": np.zeros((), np.float32),
    "steps": np.array(0, np.int64),
}


def good_arrays() -> Arrays:
    return {
        "weight": np.full((2, 3), SECRET, np.float32),
        "bias": np.array(SECRET, np.float32),
        "steps": np.array(7, np.int64),
    }


def message_of(arrays: ArrayRecord | None, metrics: MetricRecord | None) -> Message:
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {}
    if arrays is not None:
        records[ARRAYS] = arrays
    if metrics is not None:
        records[METRICS] = metrics
    return Message(RecordDict(records), dst_node_id=1, message_type="train")


def reply_with(**changed: np.ndarray | None) -> Message:
    arrays = {**good_arrays(), **changed}
    kept = {name: array for name, array in arrays.items() if array is not None}
    return message_of(to_array_record(kept), MetricRecord({"num-examples": 5}))


def reply_with_raw(data: bytes, stype: str = "numpy.ndarray") -> Message:
    record = to_array_record(good_arrays())
    record["bias"] = Array(dtype="float32", shape=(), stype=stype, data=data)
    return message_of(record, MetricRecord({"num-examples": 5}))


def reply_with_count(value: Any) -> Message:
    metrics = MetricRecord({"num-examples": 5})
    metrics.__dict__["_data"]["num-examples"] = value  # past Flower's own check: a damaged or foreign message
    return message_of(to_array_record(good_arrays()), metrics)


def weight_with(value: float) -> np.ndarray:
    array = np.full((2, 3), SECRET, np.float32)
    array[1, 2] = value
    return array


def saved(save: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def npy_header(text: str) -> bytes:
    header = text.encode() + b" " * (118 - len(text) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def shaped(shape: str, descr: str = "'<f4'") -> bytes:
    return npy_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")


OBJECTS = saved(lambda file: np.save(file, np.array([SECRET, None], dtype=object), allow_pickle=True))
ARCHIVE = saved(lambda file: np.savez(file, bias=np.array(SECRET)))
EMPTY_ARCHIVE = saved(lambda file: zipfile.ZipFile(file, "w").close())
ROW = np.arange(3, dtype=np.float32)
WHOLE = saved(lambda file: np.save(file, np.array(SECRET, np.float32)))


def test_a_good_reply_is_read_in_the_order_of_the_model() -> None:
    arrays = dict(reversed(good_arrays().items()))

    read, num_examples = check_reply(message_of(to_array_record(arrays), MetricRecord({"num-examples": 5})), REFERENCE)

    assert list(read) == list(REFERENCE)
    assert all(np.array_equal(read[name], arrays[name]) for name in REFERENCE)
    assert num_examples == 5.0


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(lambda file: np.save(file, np.asfortranarray(good_arrays()["weight"] + ROW))), id="order F"),
        pytest.param(shaped("(2,3)") + (good_arrays()["weight"] + ROW).tobytes(), id="another head"),
    ],
)
def test_a_weight_in_another_form_is_read(data: bytes) -> None:
    record = to_array_record(good_arrays())
    record["weight"] = Array(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=data)

    read, _ = check_reply(message_of(record, MetricRecord({"num-examples": 5})), REFERENCE)

    assert np.array_equal(read["weight"], good_arrays()["weight"] + ROW)
    assert read["bias"] == np.float32(SECRET)


def test_blocks_of_a_reply_are_those_of_its_arrays() -> None:
    read, _ = check_reply(reply_with(weight=good_arrays()["weight"] + ROW), REFERENCE)

    for name in REFERENCE:
        whole = resident(read).block(name, slice(0, read[name].size))
        assert np.array_equal(whole, Resident(dict(read)).block(name, slice(0, read[name].size)))
    assert resident(read).block("weight", slice(2, 4)).tolist() == [SECRET + 2, SECRET]


@pytest.mark.parametrize("count", [1, 0.5, MAX_EXAMPLES])
def test_any_number_of_examples_above_zero_is_taken(count: float) -> None:
    assert check_reply(reply_with_count(count), REFERENCE)[1] == count


@pytest.mark.parametrize("limit", [MAX_WHOLE_NUMBER, -MAX_WHOLE_NUMBER])
def test_whole_numbers_up_to_the_limit_are_taken(limit: int) -> None:
    assert check_reply(reply_with(steps=np.array(limit)), REFERENCE)[0]["steps"] == limit


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        ({"weight": weight_with(np.nan)}, "array 'weight' holds NaN or infinity; expected finite numbers"),
        ({"weight": weight_with(np.inf)}, "array 'weight' holds NaN or infinity; expected finite numbers"),
        ({"weight": weight_with(-np.inf)}, "array 'weight' holds NaN or infinity; expected finite numbers"),
        ({"bias": np.array(np.nan, np.float32)}, "array 'bias' holds NaN or infinity; expected finite numbers"),
        ({"bias": np.array([SECRET], np.float32)}, r"array 'bias' has shape \[1\]; expected \[\]"),
        ({"weight": np.full((3, 2), SECRET, "f4")}, r"array 'weight' has shape \[3, 2\]; expected \[2, 3\]"),
        ({"weight": np.full(6, SECRET, "f4")}, r"array 'weight' has shape \[6\]; expected \[2, 3\]"),
        ({"weight": np.zeros((0, 3), "f4")}, r"array 'weight' has shape \[0, 3\]; expected \[2, 3\]"),
        ({"weight": np.full((2, 3), SECRET)}, "array 'weight' has type float64; expected float32"),
        ({"weight": np.full((2, 3), SECRET, "f2")}, "array 'weight' has type float16; expected float32"),
        ({"weight": np.full((2, 3), SECRET, ">f4")}, "array 'weight' has type >f4; expected float32"),
        ({"weight": np.full((2, 3), "7.25")}, "array 'weight' has type <U4; expected float32"),
        ({"weight": np.full((2, 3), 7.25 + 1j)}, "array 'weight' has type complex128; expected float32"),
        ({"bias": np.array(True)}, "array 'bias' has type bool; expected float32"),
        ({"steps": np.array(SECRET, np.float32)}, "array 'steps' has type float32; expected int64"),
        ({"steps": np.array(2**50 + 1)}, r"array 'steps' holds a whole number beyond 2\*\*50"),
        ({"steps": np.array(np.iinfo(np.int64).min)}, r"array 'steps' holds a whole number beyond 2\*\*50"),
        ({"bias": None}, r"arrays \['bias'\] are missing or not expected"),
        ({"extra": np.array(SECRET)}, r"arrays \['extra'\] are missing or not expected"),
        ({"bias": None, "Bias": np.array(SECRET)}, r"arrays \['Bias', 'bias'\] are missing or not expected"),
    ],
)
def test_an_array_that_does_not_fit_the_model_is_refused(array: dict[str, np.ndarray | None], rule: str) -> None:
    with pytest.raises(ReplyError, match=f"^{rule}") as caught:
        check_reply(reply_with(**array), REFERENCE)

    assert str(SECRET) not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"7.25", id="text"),
        pytest.param(b"\x80\x04K\x07.", id="a pickle"),
        pytest.param(OBJECTS, id="an object array"),
        pytest.param(ARCHIVE, id="a zip archive of arrays"),
        pytest.param(EMPTY_ARCHIVE, id="an empty zip archive"),
        pytest.param(b"PK\x03\x04", id="a damaged zip archive"),
        pytest.param(WHOLE[:-1], id="one byte short"),
        pytest.param(WHOLE[:20], id="cut in the header"),
        pytest.param(shaped("(10**15,)"), id="an expression in the header"),
        pytest.param(shaped("(1000000000000000,)"), id="more than fits into memory"),
        pytest.param(shaped("(10000000000000000000000000,)"), id="more than can be counted"),
        pytest.param(shaped("(-1,)"), id="a negative length"),
        pytest.param(shaped("()", "','"), id="a type that cannot be parsed"),
        pytest.param(shaped("()", "'nonsense'"), id="an unknown type"),
        pytest.param(shaped("()", "-" * 9000 + "1"), id="a nested header"),
        pytest.param(shaped("()", "(" * 3000), id="an unclosed header"),
        pytest.param(npy_header("{[]: 1}"), id="a header that is not a dict"),
    ],
)
def test_bytes_that_are_not_a_numpy_array_are_refused(data: bytes) -> None:
    with pytest.raises(ReplyError, match=r"^array 'bias' cannot be read; its bytes are not a NumPy array$") as caught:
        check_reply(reply_with_raw(data), REFERENCE)

    assert str(SECRET) not in str(caught.value)


def test_another_serialisation_is_refused() -> None:
    with pytest.raises(ReplyError, match=r"^array 'bias' has serialisation 'pickle'; expected 'numpy\.ndarray'$"):
        check_reply(reply_with_raw(WHOLE, stype="pickle"), REFERENCE)


@pytest.mark.parametrize(
    "value", [0, -1, 0.0, -0.5, np.nan, np.inf, -np.inf, MAX_EXAMPLES + 1, 10**400, "5", True, None, [5], [5.0]]
)
def test_a_number_of_examples_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(ReplyError, match=r"^num-examples=.+; expected a finite number above 0, at most \d+$"):
        check_reply(reply_with_count(value), REFERENCE)


def test_a_missing_number_of_examples_is_refused() -> None:
    with pytest.raises(ReplyError, match=r"^num-examples=None; expected a finite number above 0"):
        check_reply(message_of(to_array_record(good_arrays()), MetricRecord({"loss": 0.5})), REFERENCE)


@pytest.mark.parametrize(
    ("message", "held"),
    [
        (lambda: message_of(None, MetricRecord({"num-examples": 5})), r"\['metrics'\]"),
        (lambda: message_of(to_array_record(good_arrays()), None), r"\['arrays'\]"),
        (lambda: message_of(None, None), r"\[\]"),
    ],
)
def test_a_missing_record_is_refused(message: Callable[[], Message], held: str) -> None:
    with pytest.raises(ReplyError, match=rf"^records {held}; expected 'arrays' and 'metrics'$"):
        check_reply(message(), REFERENCE)
