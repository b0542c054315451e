"""The only place that decides whether a hospital's reply may enter an average."""

import math
from collections.abc import Collection, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord

from fl_contract.array_record import Arrays, ArrayViews, RecordViews, is_like, view_array
from fl_contract.errors import MessageError, ReplyError
from fl_contract.messages import ARRAYS, LOSS, METRICS, NUM_EXAMPLES
from fl_contract.metrics.measurement import MAX_EXAMPLES
from strategies.blocks import Blocks, Resident, is_finite, places

MAX_WHOLE_NUMBER = 2**50
"""Of a whole-number array; beyond it a mean in float64 could be off by one, or leave the type's range."""

MAX_LOSS = 1e9
"""In nats, of a model that is good for anything; its powers stay within float64."""


def check_reply(message: Message, reference: Arrays) -> tuple[ArrayViews, float]:
    """As `read_reply`, and every number is finite (`check_finite`).

    Raises:
        ReplyError: The first rule that the reply breaks, with the array's name but none of its values.
    """
    arrays, num_examples = read_reply(message, reference)
    check_finite(Resident(arrays), reference)
    return arrays, num_examples


def read_reply(message: Message, reference: Arrays) -> tuple[ArrayViews, float]:
    """Read a reply's arrays, as views of the bytes that its record holds, and its number of examples.

    Guarantees:
        - The arrays have the names, shapes and types of ``reference``, in its order; whole numbers lie within
          `MAX_WHOLE_NUMBER`.
        - The number of examples is above 0 and at most `MAX_EXAMPLES`.

    Args:
        message: A reply with content, from any Flower client that sends one array record and one metric record.
        reference: The model that the coordinator sent out.

    Raises:
        ReplyError: The first rule that the reply breaks, with the array's name but none of its values.
    """
    record = message.content.get(ARRAYS)
    if not isinstance(record, ArrayRecord) or not isinstance(message.content.get(METRICS), MetricRecord):
        raise ReplyError(f"records {sorted(message.content)}; expected {ARRAYS!r} and {METRICS!r}")
    received = dict(record.items())
    if received.keys() != reference.keys():
        odd = sorted(received.keys() ^ reference.keys())
        raise ReplyError(f"arrays {odd} are missing or not expected; expected those of the model")
    arrays: ArrayViews = RecordViews(record, reference)
    for name, expected in reference.items():
        if not is_like(received[name], expected):
            arrays = _view_all(received, reference)
            break
    _check_whole_numbers(arrays, reference)
    return arrays, read_num_examples(message)


def _view_all(received: Mapping[str, Array], reference: Arrays) -> Arrays:
    """Of a reply whose arrays are not as the model's, or are in another order than C, or have another head."""
    arrays = {}
    for name, expected in reference.items():
        try:
            array = arrays[name] = view_array(name, received[name])
        except MessageError as error:
            raise ReplyError(str(error)) from error
        if array.shape != expected.shape:
            raise ReplyError(f"array {name!r} has shape {list(array.shape)}; expected {list(expected.shape)}")
        if array.dtype != expected.dtype:
            raise ReplyError(f"array {name!r} has type {array.dtype}; expected {expected.dtype}")
    return arrays


def check_finite(model: Blocks, reference: Arrays) -> None:
    """Refuse a model with NaN or infinity in it.

    Raises:
        ReplyError: The first such array.
    """
    for name, array in reference.items():
        if array.dtype.kind == "f" and not all(is_finite(model.block(name, place)) for place in places(array.size)):
            raise ReplyError(f"array {name!r} holds NaN or infinity; expected finite numbers")


def check_update_norm(arrays: ArrayViews, reference: Arrays, *, trained: Collection[str], largest: float) -> None:
    """Refuse a model that moved too far.

    Args:
        arrays: The reply's.
        reference: The model that was sent out.
        trained: Names of the arrays that training moves.
        largest: Bound on the L2 norm over all of them, in weight units.

    Raises:
        ReplyError: The update is longer.
    """
    squares = [
        float(np.square(np.subtract(new[place], old[place], dtype=np.float64)).sum())
        for name in trained
        for new, old in [(arrays[name].reshape(-1), reference[name].reshape(-1))]
        for place in places(old.size)
    ]
    if (norm := math.sqrt(math.fsum(squares))) > largest:
        raise ReplyError(f"the update's norm is {norm:.3g}; expected at most {largest:g} (federation.max-update-norm)")


def _check_whole_numbers(arrays: ArrayViews, reference: Arrays) -> None:
    for name, expected in reference.items():
        if expected.dtype.kind in "iu":
            array = arrays[name]
            if ((array > MAX_WHOLE_NUMBER) | (array < -MAX_WHOLE_NUMBER)).any():
                raise ReplyError(f"array {name!r} holds a whole number beyond 2**50; expected at most that")


def read_num_examples(message: Message) -> float:
    """The number of examples that a reply with a metric record was made from.

    Raises:
        ReplyError: It is absent, not a number, or out of range.
    """
    value = message.content[METRICS].get(NUM_EXAMPLES)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_EXAMPLES:
        raise ReplyError(f"{NUM_EXAMPLES}={value!r}; expected a finite number above 0, at most {MAX_EXAMPLES}")
    return float(value)


def read_loss(message: Message) -> float:
    """The training loss that a reply with a metric record states.

    Raises:
        ReplyError: It is absent, not a number, or out of range.
    """
    value = message.content.metric_records[METRICS].get(LOSS)
    if not isinstance(value, float) or not 0 <= value <= MAX_LOSS:
        raise ReplyError(f"{LOSS}={value!r}; expected a number from 0 to {MAX_LOSS:g}, the hospital's training loss")
    return value
