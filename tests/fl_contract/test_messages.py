"""What one side writes into Flower's records the other reads back; what is missing or mistyped is refused by name."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from measurements import of_classes
from schemas import THREE_CLASSES, TWO_CLASSES

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.errors import MessageError, RefusalCode
from fl_contract.messages import (
    ARRAYS,
    CONFIG,
    METRICS,
    Capacity,
    PrivacySpent,
    Request,
    SitePlan,
    TrainReply,
    ask_local_steps,
    evaluation_content,
    privacy_spent,
    read_evaluation,
    read_roster,
    refusal_of_reply,
    request_arrays,
    roster_content,
    site_of_reply,
)
from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.histogram import NUM_BINS
from fl_contract.metrics.measurement import MAX_EXAMPLES

REQUEST = Request(run="run-1", fingerprint="abc", site="north", server_round=3)
PLAN = SitePlan(site="north", num_examples=100, noise_multiplier=1.5)
SPENT = PrivacySpent(epsilon=0.5, delta=1e-3, steps=4)


def message_of(content: RecordDict) -> Message:
    return Message(content, dst_node_id=7, message_type="train")


def config_of(values: dict[str, Any]) -> Message:
    return message_of(RecordDict({CONFIG: ConfigRecord(values)}))


def metrics_of(values: dict[str, Any]) -> Message:
    return message_of(RecordDict({METRICS: MetricRecord(values)}))


def evaluation(*, num_classes: int = 1) -> Evaluation:
    logits = np.random.default_rng(0).normal(size=(5, num_classes))
    return Evaluation.of(logits, np.array([0, 1, 1, 0, num_classes - 1]), loss_sum=2.5)


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def test_a_request_is_read_as_it_was_written() -> None:
    assert Request.from_message(message_of(RecordDict({CONFIG: REQUEST.to_config()}))) == REQUEST


def test_a_site_plan_is_read_as_it_was_written() -> None:
    assert SitePlan.from_message(message_of(PLAN.to_content())) == PLAN


@pytest.mark.parametrize("sites", [[], ["north"], ["north", "south-2"]])
def test_a_roster_is_read_as_it_was_written(sites: list[str]) -> None:
    assert read_roster(message_of(roster_content(sites))) == sites


@pytest.mark.parametrize("spent", [None, SPENT])
def test_a_train_reply_is_read_as_it_was_written(spent: PrivacySpent | None) -> None:
    arrays = {"w": np.array([1.5, 2.5], np.float32)}
    reply = message_of(TrainReply(site="north", arrays=arrays, num_examples=9, spent=spent).to_content())

    assert privacy_spent(reply) == spent
    assert site_of_reply(reply) == "north"
    assert request_arrays(reply)["w"].tolist() == [1.5, 2.5]
    assert reply.content.metric_records[METRICS]["num-examples"] == 9


@pytest.mark.parametrize("num_classes", [1, 3])
def test_an_evaluation_is_read_as_it_was_written(num_classes: int) -> None:
    sent = evaluation(num_classes=num_classes)
    reply = message_of(evaluation_content("north", sent))

    read = of_classes(read_evaluation(reply, TWO_CLASSES if num_classes == 1 else THREE_CLASSES))

    assert read.to_numbers() == sent.to_numbers()
    assert (read.num_examples, read.loss_sum) == (5, 2.5)
    assert read.scores.counts.dtype == np.int64
    assert np.array_equal(read.scores.counts, sent.scores.counts)
    assert site_of_reply(reply) == "north"
    assert reply.content.metric_records[METRICS]["loss"] == 0.5  # for plain Flower


READERS: dict[str, tuple[Callable[[Message], object], Callable[[dict[str, Any]], Message], dict[str, Any]]] = {
    "request": (Request.from_message, config_of, dict(REQUEST.to_config())),
    "plan": (SitePlan.from_message, config_of, dict(PLAN.to_content().config_records[CONFIG])),
    "roster": (read_roster, config_of, {"sites": ["north"]}),
    "spent": (privacy_spent, metrics_of, {"epsilon": 0.5, "delta": 1e-3, "steps": 4}),
    "evaluation": (
        partial(read_evaluation, task=TWO_CLASSES),
        metrics_of,
        dict(evaluation_content("north", evaluation()).metric_records[METRICS]),
    ),
}


@pytest.mark.parametrize(
    ("reader", "key"),
    [
        *[("request", key) for key in ("run", "fingerprint", "site", "server-round")],
        *[("plan", key) for key in ("site", "num-examples", "noise-multiplier")],
        ("roster", "sites"),
        *[("spent", key) for key in ("delta", "steps")],
        *[("evaluation", key) for key in ("num-examples", "loss-sum", "num-correct", "score-counts")],
        *[("evaluation", key) for key in ("brier-sum", "brier-square-sum", "true-positives", "true-negatives")],
    ],
)
def test_a_missing_field_is_refused_by_name(reader: str, key: str) -> None:
    read, message, fields = READERS[reader]
    read(message(fields))  # whole, it is read

    with pytest.raises(MessageError, match=f"^{key}=None; expected (str|int|float|list)$"):
        read(message(without(fields, key)))


@pytest.mark.parametrize(
    ("reader", "key", "value", "kind"),
    [
        ("request", "run", 1, "str"),
        ("request", "fingerprint", b"abc", "str"),
        ("request", "site", ["north"], "str"),
        ("request", "server-round", "3", "int"),
        ("request", "server-round", 3.0, "int"),
        ("request", "server-round", True, "int"),
        ("plan", "num-examples", 5.0, "int"),
        ("plan", "num-examples", True, "int"),
        ("plan", "noise-multiplier", 1, "float"),
        ("plan", "noise-multiplier", False, "float"),
        ("roster", "sites", "north", "list"),
        ("spent", "epsilon", 1, "float"),
        ("spent", "steps", 4.0, "int"),
        ("evaluation", "num-examples", 5.0, "int"),
        ("evaluation", "loss-sum", 2, "float"),
        ("evaluation", "num-correct", [3], "int"),
        ("evaluation", "score-counts", 3, "list"),
        ("evaluation", "brier-sum", 2, "float"),
        ("evaluation", "brier-square-sum", [1.0], "float"),
        ("evaluation", "threshold", 1, "float"),
        ("evaluation", "true-positives", 1.0, "int"),
        ("evaluation", "true-negatives", [2], "int"),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(reader: str, key: str, value: object, kind: str) -> None:
    read, message, fields = READERS[reader]

    with pytest.raises(MessageError, match=f"^{key}=.+; expected {kind}$"):
        read(message({**fields, key: value}))


@pytest.mark.parametrize(
    "sites",
    [[1, 2], [b"north"], [True], [0.5], ["süd"], [""], ["North"], ["../x"], ["[/b]"], ["a" * 65], ["north\n"], ["a b"]],
)
def test_a_roster_of_anything_but_names_of_hospitals_is_refused(sites: list[Any]) -> None:
    with pytest.raises(MessageError, match=r"^site=.{1,40}; expected 1 to 64 lower-case letters, digits and hyphens$"):
        read_roster(config_of({"sites": sites}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epsilon", math.nan),
        ("epsilon", math.inf),
        ("epsilon", -0.1),
        ("delta", math.nan),
        ("delta", -0.1),
        ("delta", 1.1),
        ("steps", -1),
    ],
)
def test_a_privacy_spend_out_of_range_is_refused(key: str, value: float) -> None:
    read, message, fields = READERS["spent"]

    with pytest.raises(
        MessageError, match=f"{key}={value}.*; expected a finite epsilon of at least 0, a delta from 0 to 1"
    ):
        read(message({**fields, key: value}))


@pytest.mark.parametrize("read", [Request.from_message, SitePlan.from_message, read_roster])
def test_a_message_without_settings_is_refused(read: Callable[[Message], object]) -> None:
    with pytest.raises(MessageError, match=r"^record 'config' is missing; the message holds \[\]$"):
        read(message_of(RecordDict()))


@pytest.mark.parametrize("read", [privacy_spent, partial(read_evaluation, task=TWO_CLASSES)])
def test_a_message_without_metrics_is_refused(read: Callable[[Message], object]) -> None:
    with pytest.raises(MessageError, match=r"^record 'metrics' is missing; the message holds \[\]$"):
        read(message_of(RecordDict()))


def test_a_request_without_a_model_is_refused() -> None:
    with pytest.raises(MessageError, match=r"^record 'arrays' is missing"):
        request_arrays(config_of({}))


def counts_of(*, without_class: int = 2, with_class: int = 3, columns: int = 1) -> list[int]:
    counts = np.zeros((columns, 2, NUM_BINS), np.int64)
    counts[:, 0, 0], counts[:, 1, 0] = without_class, with_class
    return [int(count) for count in counts.ravel()]


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"num-examples": 0}, "num-examples=0; expected 1 to"),
        ({"num-examples": -5}, "num-examples=-5; expected 1 to"),
        ({"num-examples": MAX_EXAMPLES + 1}, "num-examples=1099511627777; expected 1 to 1099511627776"),
        ({"num-examples": 6}, "num-examples=6 and 5 scores of class 0; expected the same"),
        ({"score-counts": counts_of(with_class=2)}, "num-examples=5 and 4 scores of class 0; expected the same"),
        (
            # Their sum would be 5 in 64 bits.
            {"score-counts": [2**62] * 4 + [5] + [0] * (2 * NUM_BINS - 5)},
            "score-counts holds what is no whole number of at most 1099511627776",
        ),
        (
            {"score-counts": counts_of() + counts_of(with_class=1)},
            "num-examples=5 and 3 scores of class 1; expected the same",
        ),
        ({"score-counts": counts_of(columns=3)}, "num-examples=5 and 9 labels; expected one class for each patient"),
        ({"score-counts": []}, f"score-counts has 0 entries; expected a multiple of {2 * NUM_BINS}"),
        ({"score-counts": [5]}, "score-counts has 1 entries; expected a multiple"),
        ({"score-counts": [0.5] * 2 * NUM_BINS}, "score-counts holds what is no whole number"),
        ({"score-counts": [2**70] * 2 * NUM_BINS}, "score-counts holds what is no whole number"),
        ({"score-counts": [6, -1] + [0] * (2 * NUM_BINS - 2)}, "score histogram holds a negative count"),
        ({"loss-sum": math.nan}, "loss-sum=(nan|inf); expected a finite number"),
        ({"loss-sum": math.inf}, "loss-sum=(nan|inf); expected a finite number"),
        ({"loss-sum": -0.5}, "loss-sum is out of range"),
        ({"num-correct": -1}, "num-correct is out of range"),
        ({"num-correct": 6}, "num-correct is out of range"),
        ({"num-correct": 3}, "num-correct is not the sum of true-positives and true-negatives"),
        ({"true-positives": 1, "num-correct": 3}, "true-positives is out of range; the score-counts leave 0 to 0"),
        ({"true-positives": -1, "num-correct": 1}, "true-positives is out of range; the score-counts leave 0 to 0"),
        ({"true-negatives": 1, "num-correct": 1}, "true-negatives is out of range; the score-counts leave 2 to 2"),
        ({"brier-sum": math.nan}, "brier-sum=nan; expected a finite number"),
        ({"brier-sum": 2.9}, "brier-sum is out of range; the score-counts leave 3 to 3"),
        ({"brier-sum": 3.1}, "brier-sum is out of range; the score-counts leave 3 to 3"),
        ({"brier-square-sum": 3.1}, "brier-square-sum is out of range; brier-sum leaves 1.8 to 3"),
        ({"brier-square-sum": 1.7}, "brier-square-sum is out of range; brier-sum leaves 1.8 to 3"),
        ({"threshold": 0.0}, "threshold=0.0; expected above 0 and below 1"),
        ({"threshold": 1.0}, "threshold=1.0; expected above 0 and below 1"),
        ({"threshold": 0.25}, "threshold=0.25; expected the study's, 0.5"),
    ],
)
def test_an_evaluation_that_contradicts_itself_is_refused(changed: dict[str, Any], rule: str) -> None:
    fields: dict[str, Any] = {"num-examples": 5, "loss-sum": 2.5, "score-counts": counts_of()}
    fields |= {"num-correct": 2, "threshold": 0.5, "true-positives": 0, "true-negatives": 2}
    fields |= {"brier-sum": 3.0, "brier-square-sum": 3.0}  # three patients with the class in the bin of no chance
    assert read_evaluation(metrics_of(fields), TWO_CLASSES).num_examples == 5  # as it stands, it is read

    with pytest.raises(MessageError, match=f"^{rule}"):
        read_evaluation(metrics_of({**fields, **changed}), TWO_CLASSES)


def test_two_classes_without_decisions_are_refused() -> None:
    read, message, fields = READERS["evaluation"]

    with pytest.raises(MessageError, match=r"^threshold=None; expected the study's, 0\.5$"):
        read(message(without(fields, "threshold")))


@pytest.mark.parametrize(
    ("threshold", "rule"),
    [
        (None, "threshold=None; expected float"),
        (0.0, "threshold=0.0; expected above 0 and below 1"),
        (0.25, "threshold=0.25; expected the study's, 0.5"),
    ],
)
def test_noised_counts_by_another_threshold_are_refused(threshold: float | None, rule: str) -> None:
    fields: dict[str, Any] = {"noised-cells": [1] * 16, "noise-scale": 2.0, "threshold": 0.5}
    assert read_evaluation(metrics_of(fields), TWO_CLASSES).noised is not None

    changed = without(fields, "threshold") if threshold is None else fields | {"threshold": threshold}

    with pytest.raises(MessageError, match=f"^{rule}$"):
        read_evaluation(metrics_of(changed), TWO_CLASSES)


@pytest.mark.parametrize(
    "array",
    [
        np.array(1.5, np.float32),
        np.array(3, np.int64),
        np.zeros((0, 3), np.float16),
        np.arange(6, dtype=np.float64).reshape(2, 3).T,
        np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2],
        np.array([True, False]),
        np.array([-0.0, np.nan, np.inf, np.nextafter(0, 1)], np.float64),
    ],
    ids=["0-d float", "0-d int", "empty", "transposed", "strided", "bool", "extreme"],
)
def test_an_array_keeps_shape_type_and_bits(array: np.ndarray) -> None:
    read = from_array_record(to_array_record({"x": array}))["x"]

    assert (read.shape, read.dtype) == (array.shape, array.dtype)
    assert read.tobytes() == array.tobytes()


def test_arrays_keep_their_order() -> None:
    arrays: Arrays = {name: np.zeros(1) for name in ("c", "a", "b")}

    assert list(from_array_record(to_array_record(arrays))) == ["c", "a", "b"]


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "touched"), "w"))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Touch()], dtype=object), allow_pickle=True)
    record = ArrayRecord({"x": Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=buffer.getvalue())})

    with pytest.raises(MessageError, match=r"^array 'x' cannot be read; its bytes are not a NumPy array$"):
        from_array_record(record)

    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({CONFIG: ConfigRecord({"site": 3})})])
def test_a_reply_of_another_client_names_no_site(content: RecordDict) -> None:
    assert site_of_reply(message_of(content)) is None


def error_reply(code: int) -> Message:
    return Message(Error(code=code, reason="patient 17 at /data"), reply_to=message_of(RecordDict()))


def test_an_error_reply_names_no_site() -> None:
    assert site_of_reply(error_reply(100)) is None


@pytest.mark.parametrize("code", list(RefusalCode))
def test_a_refusal_is_read_as_its_label_and_our_sentence(code: RefusalCode) -> None:
    assert refusal_of_reply(error_reply(int(code))) == (code.label, code.sentence)


@pytest.mark.parametrize("code", [0, 1, 2, 99, 199])
def test_a_code_of_flower_is_kept_without_its_text(code: int) -> None:
    expected = (f"flower-{code}", "The node gave no answer of ours (Flower's own code).")

    assert refusal_of_reply(error_reply(code)) == expected


def test_a_hospital_that_did_not_approve_the_bundle_is_said_to_have_not() -> None:
    assert refusal_of_reply(error_reply(7)) == ("flower-7", "The hospital has not approved this bundle.")


def test_the_record_names_are_flowers_own_defaults() -> None:
    # Flower's strategies and client templates look for these.
    assert (ARRAYS, CONFIG, METRICS) == ("arrays", "config", "metrics")


def test_a_node_that_speaks_for_too_many_hospitals_is_refused() -> None:
    with pytest.raises(MessageError, match="speaks for 1001 hospitals; expected at most 1000"):
        read_roster(message_of(roster_content([f"hospital-{number}" for number in range(1001)])))


@pytest.mark.parametrize("run", ["", "a b", "x" * 65, "../run", "run\n"])
def test_a_request_s_identity_is_short_and_plain(run: str) -> None:
    request = Request(run=run, fingerprint="abc")

    with pytest.raises(MessageError, match=r"^run=.+; expected 1 to 64 letters, digits, '-' or '_'$"):
        Request.from_message(message_of(RecordDict({"config": request.to_config()})))


@pytest.mark.parametrize("noise", [float("nan"), float("inf"), -0.1])
def test_a_plan_s_noise_is_a_finite_number(noise: float) -> None:
    plan = SitePlan(site="north", num_examples=10, noise_multiplier=noise)

    with pytest.raises(MessageError, match=r"^noise-multiplier=.+; expected a finite number of at least 0$"):
        SitePlan.from_message(message_of(plan.to_content()))


@pytest.mark.parametrize("num_examples", [0, -1, 2**40 + 1])
def test_a_plan_s_number_of_examples_is_in_range(num_examples: int) -> None:
    plan = SitePlan(site="north", num_examples=num_examples, noise_multiplier=0.0)

    with pytest.raises(MessageError, match=r"^num-examples=.+; expected 1 to 1099511627776$"):
        SitePlan.from_message(message_of(plan.to_content()))


@pytest.mark.parametrize("steps", [None, 1, 100_000])
def test_the_steps_that_are_asked_for_arrive(steps: int | None) -> None:
    request = replace(REQUEST, local_steps=steps)

    assert Request.from_message(message_of(RecordDict({CONFIG: request.to_config()}))) == request


def test_steps_are_put_into_a_request_that_was_made() -> None:
    message = message_of(RecordDict({CONFIG: REQUEST.to_config()}))

    ask_local_steps(message, 7)

    assert Request.from_message(message) == replace(REQUEST, local_steps=7)


@pytest.mark.parametrize(
    "capacity", [None, Capacity(num_cores=1, has_gpu=True), Capacity(num_cores=4096, has_gpu=False)]
)
def test_what_a_hospital_tells_of_its_machine_arrives(capacity: Capacity | None) -> None:
    plan = replace(PLAN, capacity=capacity)

    assert SitePlan.from_message(message_of(plan.to_content())) == plan


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"num-cores": 0, "has-gpu": False}, "num-cores=0; expected 1 to 4096"),
        ({"num-cores": 4097, "has-gpu": False}, "num-cores=4097; expected 1 to 4096"),
        ({"num-cores": True, "has-gpu": False}, "num-cores=True; expected int"),
        ({"num-cores": 4.0, "has-gpu": False}, "num-cores=4.0; expected int"),
        ({"num-cores": 4, "has-gpu": 1}, "has-gpu=1; expected bool"),
        ({"num-cores": 4}, "has-gpu=None; expected bool"),
        ({"has-gpu": True}, "num-cores=None; expected int"),
    ],
)
def test_a_hint_that_is_not_one_is_refused(fields: dict[str, Any], rule: str) -> None:
    content = PLAN.to_content()
    for key, value in fields.items():
        content.config_records[CONFIG][key] = value

    with pytest.raises(MessageError, match=f"^{rule}"):
        SitePlan.from_message(message_of(content))
