"""The only place that decides whether a hospital's reply may enter an average."""

import math

import numpy as np
from flwr.app import Message

from fl_contract.errors import MessageError, ReplyError
from fl_contract.messages import ARRAYS, METRICS, NUM_EXAMPLES, Arrays, from_array_record


def check_reply(message: Message, reference: Arrays) -> tuple[Arrays, float]:
    """Read a reply's arrays and its number of examples.

    Guarantees:
        - The arrays have the names, shapes and types of ``reference``, in its order, and are finite.
        - The number of examples is finite and above 0.

    Args:
        message: A reply with content, from any Flower client that sends one array record and one metric record.
        reference: The model that the coordinator sent out.

    Raises:
        ReplyError: The first rule that the reply breaks, with the array's name but none of its values.
    """
    if ARRAYS not in message.content.array_records or METRICS not in message.content.metric_records:
        raise ReplyError(f"records {sorted(message.content)}; expected {ARRAYS!r} and {METRICS!r}")
    record = message.content.array_records[ARRAYS]
    if set(record) != set(reference):
        odd = sorted(set(record) ^ set(reference))
        raise ReplyError(f"arrays {odd} are missing or not expected; expected those of the model")
    try:
        received = from_array_record(record)
    except MessageError as error:
        raise ReplyError(str(error)) from error
    arrays = {name: received[name] for name in reference}
    for name, array in arrays.items():
        _check_array(name, array, reference)
    return arrays, _num_examples(message)


def _check_array(name: str, array: np.ndarray, reference: Arrays) -> None:
    expected = reference[name]
    if array.shape != expected.shape:
        raise ReplyError(f"array {name!r} has shape {list(array.shape)}; expected {list(expected.shape)}")
    if array.dtype != expected.dtype:
        raise ReplyError(f"array {name!r} has type {array.dtype}; expected {expected.dtype}")
    if not np.isfinite(array).all():
        raise ReplyError(f"array {name!r} holds NaN or infinity; expected finite numbers")


def _num_examples(message: Message) -> float:
    value = message.content.metric_records[METRICS].get(NUM_EXAMPLES)
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ReplyError(f"{NUM_EXAMPLES}={value!r}; expected a finite number above 0")
    return float(value)
