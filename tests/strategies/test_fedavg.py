"""FedAvg folds usable replies into one mean, says why others are left out, and gives no model below the quorum."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import nn

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.errors import QuorumError, RefusalCode, RunError, SettingError
from fl_contract.messages import ARRAYS, CONFIG, METRICS
from fl_contract.models import buffer_names
from strategies.fedavg import FedAvg, weighted_mean
from strategies.participation import Roster, SiteSampling, SiteWeighting

Ask = Callable[..., dict[str, Message]]
ReplyTo = Callable[..., Message]
RunRound = Callable[..., Arrays]
MakeRoster = Callable[..., Roster]


def model_of(*values: float) -> Arrays:
    return {"w": np.array(values, dtype=np.float32)}


def quorum_of(min_sites: int) -> SiteSampling:
    return SiteSampling(min_sites=min_sites, generator=np.random.default_rng(0))


def test_every_chosen_site_gets_the_model_its_name_and_the_round(ask: Ask, roster_of: MakeRoster) -> None:
    strategy = FedAvg(roster=roster_of("b", "a"))

    requests = ask(strategy, model_of(1, 2), server_round=3)

    assert list(requests) == ["a", "b"]
    assert {site: message.metadata.dst_node_id for site, message in requests.items()} == {"b": 1001, "a": 1002}
    for message in requests.values():
        assert message.metadata.message_type == "train"
        assert message.content.config_records[CONFIG]["server-round"] == 3
        assert from_array_record(message.content.array_records[ARRAYS])["w"].tolist() == [1.0, 2.0]


def test_without_a_roster_every_node_is_a_hospital(grid_of: Callable[..., Grid]) -> None:
    strategy = FedAvg()

    requests = strategy.configure_train(1, to_array_record(model_of(0)), ConfigRecord(), grid_of(7, 5))

    assert [message.metadata.dst_node_id for message in requests] == [5, 7]
    assert strategy.outcome.asked == ("5", "7")


def test_hospitals_count_by_their_examples(run_round: RunRound, roster_of: MakeRoster) -> None:
    strategy = FedAvg(roster=roster_of("a", "b"))

    model = run_round(strategy, model_of(0), {"a": model_of(1), "b": model_of(5)}, {"a": 30, "b": 10})

    # (30 * 1 + 10 * 5) / 40 = 2
    assert model["w"].tolist() == [2.0]
    assert strategy.outcome.examples == {"a": 30.0, "b": 10.0}


def test_the_reported_examples_are_those_of_the_used_replies(
    ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    strategy = FedAvg(roster=roster_of("a", "b", "c"))
    requests = ask(strategy, model_of(0))

    replies = [
        reply_to(requests["a"], model_of(1), 30),
        reply_to(requests["b"], model_of(np.nan), 500),
        reply_to(requests["c"], model_of(1), 12),
    ]
    _, metrics = strategy.aggregate_train(1, replies)

    assert metrics is not None
    assert dict(metrics) == {"num-examples": 42}


def test_a_rate_below_one_goes_that_share_of_the_way(run_round: RunRound, roster_of: MakeRoster) -> None:
    strategy = FedAvg(server_learning_rate=0.25, roster=roster_of("a"))

    # 0.75 * 4 + 0.25 * 8 = 5
    assert run_round(strategy, model_of(4), {"a": model_of(8)})["w"].tolist() == [5.0]


def test_buffers_and_whole_numbers_are_averaged_whatever_the_rate(run_round: RunRound, roster_of: MakeRoster) -> None:
    layer = nn.BatchNorm1d(1)
    model = {name: tensor.detach().numpy().copy() for name, tensor in layer.state_dict().items()}
    strategy = FedAvg(server_learning_rate=3.0, buffer_names=buffer_names(layer), roster=roster_of("a", "b"))
    sent = {
        "a": {**model, "running_var": np.array([0.25], "f4"), "num_batches_tracked": np.array(4)},
        "b": {**model, "running_var": np.array([0.75], "f4"), "num_batches_tracked": np.array(7)},
    }

    stepped = run_round(strategy, model, sent)

    # A rate of 3 would make the variance 1 + 3 * (0.5 - 1) = -0.5.
    assert stepped["running_var"].tolist() == [0.5]
    # 5.5, halves to even
    assert stepped["num_batches_tracked"].tolist() == 6
    assert {name: (array.shape, array.dtype) for name, array in stepped.items()} == {
        name: (array.shape, array.dtype) for name, array in model.items()
    }


def break_by_nan(request: Message, reply_to: ReplyTo) -> Message:
    return reply_to(request, model_of(np.nan, 9))


def break_by_shape(request: Message, reply_to: ReplyTo) -> Message:
    return reply_to(request, model_of(9))


def break_by_count(request: Message, reply_to: ReplyTo) -> Message:
    return reply_to(request, model_of(9, 9), 0)


def refuse(request: Message, _: ReplyTo) -> Message:
    return Message(Error(code=int(RefusalCode.BUDGET_EXHAUSTED), reason="patient 17"), reply_to=request)


def fail_in_flower(request: Message, _: ReplyTo) -> Message:
    return Message(Error(code=2, reason="patient 17"), reply_to=request)


@pytest.mark.parametrize(
    ("break_reply", "code", "reason"),
    [
        (break_by_nan, "unusable-reply", "array 'w' holds NaN or infinity; expected finite numbers"),
        (break_by_shape, "unusable-reply", "array 'w' has shape [1]; expected [2]"),
        (break_by_count, "unusable-reply", "num-examples=0; expected a finite number above 0, at most 1099511627776"),
        (refuse, "budget-exhausted", "The round would exceed the hospital's privacy budget."),
        (fail_in_flower, "flower-2", "The node gave no answer of ours (Flower's own code)."),
    ],
)
def test_an_unusable_reply_is_recorded_and_does_not_change_the_mean(
    break_reply: Callable[[Message, ReplyTo], Message],
    code: str,
    reason: str,
    ask: Ask,
    reply_to: ReplyTo,
    run_round: RunRound,
    roster_of: MakeRoster,
) -> None:
    good = {"a": model_of(0.1, 0.7), "c": model_of(0.3, -0.2)}
    without = run_round(FedAvg(roster=roster_of("a", "c")), model_of(1, 1), good, {"a": 3, "c": 4})
    strategy = FedAvg(roster=roster_of("a", "b", "c"))
    requests = ask(strategy, model_of(1, 1))

    replies = [
        reply_to(requests["a"], good["a"], 3),
        break_reply(requests["b"], reply_to),
        reply_to(requests["c"], good["c"], 4),
    ]
    stepped, _ = strategy.aggregate_train(1, replies)

    assert stepped is not None
    assert from_array_record(stepped)["w"].tobytes() == without["w"].tobytes()
    assert strategy.outcome.left_out == {"b": (code, reason)}
    assert set(strategy.outcome.examples) == {"a", "c"}


@pytest.mark.parametrize("named", ["stranger", "a"])
def test_a_reply_in_another_hospitals_name_is_left_out(
    named: str, ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    strategy = FedAvg(roster=roster_of("a", "b"))
    requests = ask(strategy, model_of(0))
    forged = reply_to(requests["b"], model_of(100))
    forged.content.config_records[CONFIG]["site"] = named

    stepped, _ = strategy.aggregate_train(1, [reply_to(requests["a"], model_of(1)), forged])

    assert stepped is not None
    assert from_array_record(stepped)["w"].tolist() == [1.0]
    reason = f"The reply names site '{named}'; expected one that was asked and has not replied yet."
    assert strategy.outcome.left_out == {"1002": ("unusable-reply", reason)}


def test_a_reply_that_names_no_site_is_its_nodes(ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster) -> None:
    weighting = SiteWeighting(kind="institution", institution_weights={"a": 3.0, "b": 1.0})
    strategy = FedAvg(weighting=weighting, roster=roster_of("a", "b"))
    requests = ask(strategy, model_of(0))
    replies = [reply_to(requests["a"], model_of(1)), reply_to(requests["b"], model_of(5))]
    for reply in replies:
        del reply.content.config_records[CONFIG]

    stepped, _ = strategy.aggregate_train(1, replies)

    # (3 * 1 + 1 * 5) / 4 = 2
    assert stepped is not None
    assert from_array_record(stepped)["w"].tolist() == [2.0]


def test_a_reply_of_a_node_with_several_hospitals_must_name_one(ask: Ask, reply_to: ReplyTo) -> None:
    shared = Roster(nodes={"a": 9, "b": 9}, trainers=("a", "b"), evaluators=())
    strategy = FedAvg(roster=shared)
    requests = ask(strategy, model_of(0))
    nameless = reply_to(requests["b"], model_of(100))
    del nameless.content.config_records[CONFIG]

    stepped, _ = strategy.aggregate_train(1, [nameless, reply_to(requests["a"], model_of(1))])

    assert stepped is not None
    assert from_array_record(stepped)["w"].tolist() == [1.0]
    assert list(strategy.outcome.left_out) == ["9"]


def test_a_hospital_without_a_weight_stops_the_run(run_round: RunRound, roster_of: MakeRoster) -> None:
    weighting = SiteWeighting(kind="institution", institution_weights={"a": 1.0})
    strategy = FedAvg(weighting=weighting, roster=roster_of("a", "b"))

    with pytest.raises(SettingError, match="no weight for 'b'"):
        run_round(strategy, model_of(0), {"a": model_of(1), "b": model_of(1)})


def test_too_few_usable_replies_give_no_model_and_name_every_reason(
    ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    strategy = FedAvg(sampling=quorum_of(2), roster=roster_of("north", "south", "west", "east"))
    requests = ask(strategy, model_of(0, 0), server_round=4)
    replies = [
        refuse(requests["north"], reply_to),
        break_by_nan(requests["south"], reply_to),
        reply_to(requests["west"], model_of(1, 1)),
    ]

    with pytest.raises(QuorumError) as caught:
        strategy.aggregate_train(4, replies)

    assert str(caught.value) == (
        "round 4: 1 usable replies; expected at least 2 (federation.min-sites). "
        "north: budget-exhausted (The round would exceed the hospital's privacy budget.); "
        "south: unusable-reply (array 'w' holds NaN or infinity; expected finite numbers); "
        "east: no reply before the deadline"
    )


def test_exactly_the_quorum_is_enough(run_round: RunRound, roster_of: MakeRoster) -> None:
    strategy = FedAvg(sampling=quorum_of(2), roster=roster_of("a", "b", "c"))

    assert run_round(strategy, model_of(0), {"a": model_of(1), "c": model_of(3)})["w"].tolist() == [2.0]


@pytest.mark.parametrize("sites", [(), ("a",)])
def test_a_round_without_replies_is_a_quorum_error(sites: tuple[str, ...], ask: Ask, roster_of: MakeRoster) -> None:
    strategy = FedAvg(roster=roster_of(*sites))
    ask(strategy, model_of(0))

    with pytest.raises(QuorumError, match="round 1: 0 usable replies; expected at least 1"):
        strategy.aggregate_train(1, [])


@pytest.mark.parametrize(
    ("dtype", "rate", "value"), [("float32", 3.0, 3e38), ("float64", 2.0, 1.7e308), ("float16", 2.0, 6e4)]
)
def test_a_model_that_overflows_is_refused(
    dtype: str, rate: float, value: float, run_round: RunRound, roster_of: MakeRoster
) -> None:
    strategy = FedAvg(server_learning_rate=rate, roster=roster_of("a", "b"))
    sent = {"w": np.array([value], dtype)}

    # Each reply is finite, and passes; the step is not.
    with pytest.raises(RunError, match="round 1: array 'w' of the new model is not finite; the updates diverge"):
        run_round(strategy, {"w": np.array([0], dtype)}, {"a": sent, "b": sent}, {"a": 100, "b": 100})


def test_the_outcome_is_of_one_round_alone(ask: Ask, run_round: RunRound, roster_of: MakeRoster) -> None:
    strategy = FedAvg(roster=roster_of("a", "b"))
    run_round(strategy, model_of(0), {"a": model_of(np.nan), "b": model_of(1)})

    run_round(strategy, model_of(0), {"a": model_of(1)}, server_round=2)

    assert strategy.outcome.left_out == {}
    assert strategy.outcome.examples == {"a": 1.0}


def test_replies_are_consumed_one_at_a_time(ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster) -> None:
    sites = [f"site-{number}" for number in range(6)]
    strategy = FedAvg(roster=roster_of(*sites))
    requests = ask(strategy, model_of(0))
    made: list[weakref.ref[Message]] = []
    alive_at_most = 0

    def replies() -> Iterator[Message]:
        nonlocal alive_at_most
        for site in sites:
            alive_at_most = max(alive_at_most, sum(each() is not None for each in made))
            reply = reply_to(requests[site], model_of(1))
            made.append(weakref.ref(reply))
            yield reply
            del reply

    strategy.aggregate_train(1, replies())

    # When the next one is made, only the one before may still be held.
    assert len(made) == 6
    assert alive_at_most == 1


def test_fedavg_has_no_state(run_round: RunRound, roster_of: MakeRoster) -> None:
    strategy = FedAvg(roster=roster_of("a"))
    run_round(strategy, model_of(0), {"a": model_of(1)})

    strategy.load_state({})

    assert strategy.state() == {}


def test_every_evaluator_is_asked_in_the_order_of_names(grid_of: Callable[..., Grid]) -> None:
    roster = Roster(nodes={"a": 1, "b": 2, "c": 3}, trainers=("c",), evaluators=("b", "a"))
    strategy = FedAvg(roster=roster)

    requests = list(strategy.configure_evaluate(2, to_array_record(model_of(0)), ConfigRecord({"k": 1}), grid_of()))

    assert [request.content.config_records[CONFIG]["site"] for request in requests] == ["a", "b"]
    assert [request.metadata.dst_node_id for request in requests] == [1, 2]
    assert {request.metadata.message_type for request in requests} == {"evaluate"}
    assert dict(requests[0].content.config_records[CONFIG]) == {"k": 1, "site": "a", "server-round": 2}


def evaluation(metrics: dict[str, Any], node: int) -> Message:
    request = Message(RecordDict(), dst_node_id=node, message_type="evaluate")
    return Message(RecordDict({METRICS: MetricRecord(metrics)}), reply_to=request)


def test_only_fractions_that_all_hospitals_report_are_averaged() -> None:
    replies = [
        evaluation({"num-examples": 30, "loss": 0.5, "num-correct": 20, "own": 1.0}, node=1),
        evaluation({"num-examples": 10, "loss": 0.9, "num-correct": 5}, node=2),
    ]

    metrics = FedAvg().aggregate_evaluate(1, replies)

    # (30 * 0.5 + 10 * 0.9) / 40 = 0.6
    assert metrics is not None
    assert dict(metrics) == {"loss": pytest.approx(0.6, abs=1e-15)}


@pytest.mark.parametrize("metrics", [{"loss": 9.0}, {"loss": 9.0, "num-examples": 0}, {"num-examples": [1, 2]}])
def test_a_measurement_without_a_number_of_examples_is_left_out(metrics: dict[str, Any]) -> None:
    averaged = FedAvg().aggregate_evaluate(1, [evaluation(metrics, 1), evaluation({"num-examples": 2, "loss": 0.5}, 2)])

    assert averaged is not None
    assert dict(averaged) == {"loss": 0.5}


def test_no_measurement_has_no_mean() -> None:
    request = Message(RecordDict(), dst_node_id=1, message_type="evaluate")
    refusal = Message(Error(code=102, reason="no"), reply_to=request)
    empty = Message(RecordDict(), reply_to=request)

    assert FedAvg().aggregate_evaluate(1, [refusal, empty, evaluation({"loss": 1.0}, 1)]) is None


def test_a_weighted_mean_does_not_depend_on_the_order() -> None:
    pairs = [(1.0, 1e16), (1.0, 1.0), (1.0, -1e16), (1.0, 1.0)]

    # Added from left to right, 1e16 + 1 is 1e16.
    assert weighted_mean(pairs) == weighted_mean(reversed(pairs)) == 0.5


@pytest.mark.parametrize(("moved", "is_used"), [(2.9, True), (3.1, False)])
def test_an_update_that_is_too_long_is_left_out(
    moved: float, is_used: bool, run_round: RunRound, roster_of: MakeRoster
) -> None:
    # Two trained arrays move by (moved, 0) and the buffer by far more: the norm is sqrt(moved**2 + 0**2).
    model = {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32), "running_mean": np.zeros(1, np.float32)}
    far = {"a": np.full(1, moved, np.float32), "b": np.zeros(1, np.float32), "running_mean": np.full(1, 9, np.float32)}
    sampling = SiteSampling(min_sites=1, generator=np.random.default_rng(0), max_update_norm=3.0)
    strategy = FedAvg(sampling=sampling, buffer_names={"running_mean"}, roster=roster_of("north", "south"))

    stepped = run_round(strategy, model, {"north": far, "south": model})

    assert ("north" in strategy.outcome.examples) is is_used
    assert stepped["a"] == pytest.approx(moved / 2 if is_used else 0.0)
    if not is_used:
        reason = "the update's norm is 3.1; expected at most 3 (federation.max-update-norm)"
        assert strategy.outcome.left_out == {"north": ("unusable-reply", reason)}
