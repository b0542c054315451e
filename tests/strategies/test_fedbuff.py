"""FedBuff steps by the updates in its buffer, each from the version of the model that its hospital had."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Error, Message

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.errors import QuorumError
from strategies.fedbuff import FedBuff, staleness_weight
from strategies.participation import Roster, SiteSampling, SiteWeighting

Ask = Callable[..., dict[str, Message]]
ReplyTo = Callable[..., Message]
MakeRoster = Callable[..., Roster]


def model_of(*values: float) -> Arrays:
    return {"theta": np.array(values, dtype=np.float32)}


def buffer_of(
    size: int, roster: Roster, *, weighting: str = "equal", max_staleness: int = 10, rate: float = 1.0, **common: object
) -> FedBuff:
    return FedBuff(
        sampling=SiteSampling(min_sites=size, generator=np.random.default_rng(0)),
        weighting=SiteWeighting(kind=weighting),  # type: ignore[arg-type]
        max_staleness=max_staleness,
        server_learning_rate=rate,
        roster=roster,
        **common,  # type: ignore[arg-type]
    )


def step(strategy: FedBuff, server_round: int, *replies: Message) -> Arrays:
    stepped, _ = strategy.aggregate_train(server_round, replies)
    assert stepped is not None
    return from_array_record(stepped)


@pytest.mark.parametrize(("staleness", "weight"), [(0, 1.0), (1, 1 / math.sqrt(2)), (3, 0.5), (99, 0.1)])
def test_an_update_counts_by_one_over_the_root_of_one_plus_its_staleness(staleness: int, weight: float) -> None:
    assert staleness_weight(staleness) == pytest.approx(weight, rel=1e-15)


def test_two_steps_are_those_of_the_formula(ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster) -> None:
    strategy = buffer_of(2, roster_of("a", "b", "c"), rate=0.5)

    first = ask(strategy, model_of(1, 2), 1)
    # Updates [2, 0] and [0, 2]: [1, 2] + 0.5 * ([2, 0] + [0, 2]) / 2 = [1.5, 2.5].
    model = step(strategy, 1, reply_to(first["a"], model_of(3, 2)), reply_to(first["b"], model_of(1, 4)))
    assert model["theta"].tolist() == [1.5, 2.5]

    second = ask(strategy, model, 2)
    # c began with [1, 2]: update [4, 0], staleness 1, weight 1 / sqrt(2). a began with [1.5, 2.5]: update [1, 0].
    # [1.5, 2.5] + 0.5 * ([4, 0] / sqrt(2) + [1, 0]) / 2 = [1.5 + (4 / sqrt(2) + 1) / 4, 2.5]
    model = step(strategy, 2, reply_to(first["c"], model_of(5, 2)), reply_to(second["a"], model_of(2.5, 2.5)))

    assert model["theta"] == pytest.approx([1.5 + (4 / math.sqrt(2) + 1) / 4, 2.5], rel=1e-6)
    assert strategy.staleness == {"c": 1, "a": 0}


def test_examples_weigh_updates_too(ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster) -> None:
    strategy = buffer_of(1, roster_of("a", "b"), weighting="examples")
    first = ask(strategy, model_of(0), 1)
    model = step(strategy, 1, reply_to(first["a"], model_of(0), 30))

    second = ask(strategy, model, 2)
    model = step(strategy, 2, reply_to(first["b"], model_of(4), 10), reply_to(second["a"], model_of(2), 30))

    # b moved by 4, one step late, and a by 2: (10 * 4 / sqrt(2) + 30 * 2) / 40.
    assert model["theta"] == pytest.approx([(40 / math.sqrt(2) + 60) / 40], rel=1e-6)


def test_buffers_of_the_model_are_the_mean_of_those_received(
    ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    strategy = buffer_of(1, roster_of("a", "b"), buffer_names=["theta"], rate=1.7)
    first = ask(strategy, model_of(0), 1)
    model = step(strategy, 1, reply_to(first["a"], model_of(8)))

    second = ask(strategy, model, 2)
    model = step(strategy, 2, reply_to(first["b"], model_of(2)), reply_to(second["a"], model_of(4)))

    share = 1 / math.sqrt(2)
    assert model["theta"] == pytest.approx([(share * 2 + 4) / (share + 1)], rel=1e-6)


def test_a_hospital_that_still_trains_is_not_asked_and_a_free_one_is(
    ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    strategy = buffer_of(2, roster_of("a", "b", "c"))
    first = ask(strategy, model_of(0), 1)

    step(strategy, 1, reply_to(first["a"], model_of(1)), reply_to(first["c"], model_of(1)))

    assert strategy.open_requests == {"b": 0}
    assert sorted(ask(strategy, model_of(1), 2)) == ["a", "c"]
    assert strategy.open_requests == {"b": 0, "a": 1, "c": 1}


def test_a_step_holds_one_update_of_a_hospital(ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster) -> None:
    strategy = buffer_of(2, roster_of("a", "b"))
    requests = ask(strategy, model_of(0), 1)
    twice = [reply_to(requests["a"], model_of(1)), reply_to(requests["a"], model_of(1))]

    with pytest.raises(QuorumError, match=r"1 usable replies; expected at least 2 \(strategy\.buffer-size\)"):
        strategy.aggregate_train(1, twice)


@pytest.mark.parametrize(("max_staleness", "is_dropped"), [(1, True), (2, False)])
def test_an_update_that_is_too_old_is_left_out_and_its_hospital_asked_again(
    max_staleness: int, is_dropped: bool, ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    strategy, model = buffer_of(1, roster_of("a", "b"), max_staleness=max_staleness), model_of(0)
    first = requests = ask(strategy, model, 1)
    for server_round in (1, 2):
        model = step(strategy, server_round, reply_to(requests["a"], model_of(server_round)))
        requests = ask(strategy, model, server_round + 1)

    step(strategy, 3, reply_to(first["b"], model_of(9)), reply_to(requests["a"], model_of(3)))

    reason = "Its model is 2 steps old; expected at most 1 (strategy.max-staleness)."
    assert strategy.outcome.left_out == ({"b": ("too-stale", reason)} if is_dropped else {})
    assert sorted(strategy.outcome.examples) == (["a"] if is_dropped else ["a", "b"])
    assert sorted(ask(strategy, model, 4)) == ["a", "b"]


def test_an_unusable_reply_fills_no_place_in_the_buffer_and_frees_its_hospital(
    ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    strategy = buffer_of(1, roster_of("a", "b", "c"))
    requests = ask(strategy, model_of(0), 1)
    error = Message(Error(code=101, reason="of its own"), reply_to=requests["b"])

    model = step(strategy, 1, reply_to(requests["a"], model_of(math.nan)), error, reply_to(requests["c"], model_of(2)))

    assert model["theta"].tolist() == [2]
    assert {site: code for site, (code, _) in strategy.outcome.left_out.items()} == {
        "a": "unusable-reply",
        "b": "budget-exhausted",
    }
    assert sorted(ask(strategy, model, 2)) == ["a", "b", "c"]


def test_the_bound_on_updates_is_held_against_the_model_that_a_hospital_had(
    ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    sampling = SiteSampling(min_sites=1, generator=np.random.default_rng(0), max_update_norm=3)
    strategy = FedBuff(sampling=sampling, roster=roster_of("a", "b"))
    first = ask(strategy, model_of(0), 1)
    model = step(strategy, 1, reply_to(first["a"], model_of(3)))
    second = ask(strategy, model, 2)

    # b moved by 2.5 from 0, which is 0.5 from the present model; a by 4 from 3.
    step(strategy, 2, reply_to(first["b"], model_of(2.5)), reply_to(second["a"], model_of(7)))

    assert sorted(strategy.outcome.examples) == ["b"]
    assert "the update's norm is 4" in strategy.outcome.left_out["a"][1]


def test_a_hospital_that_is_given_up_is_asked_in_the_next_round(
    ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    strategy = buffer_of(1, roster_of("a", "b"))
    requests = ask(strategy, model_of(0), 1)
    strategy.give_up("b", "deadline", "No reply within 1 s.")

    step(strategy, 1, reply_to(requests["a"], model_of(1)))

    assert strategy.outcome.left_out == {"b": ("deadline", "No reply within 1 s.")}
    assert sorted(ask(strategy, model_of(1), 2)) == ["a", "b"]


def test_a_saved_state_asks_again_for_what_was_open_first_and_goes_on_to_the_bit(
    ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    roster = roster_of("a", "b", "c", "d")
    whole, resumed = buffer_of(2, roster), buffer_of(2, roster)
    first = ask(whole, model_of(0), 1)
    model = step(whole, 1, reply_to(first["d"], model_of(0.1)), reply_to(first["b"], model_of(0.7)))
    resumed.load_state(from_array_record(to_array_record(whole.state())))  # through bytes, as a checkpoint keeps it

    second, again = ask(whole, model, 2), ask(resumed, model, 2)
    ends = [
        step(strategy, 2, reply_to(old["c"], model_of(0.3)), reply_to(new["d"], model_of(0.9)))
        for strategy, old, new in ((whole, first, second), (resumed, again, again))
    ]

    assert sorted(second) == ["b", "d"]
    assert list(again) == ["a", "c", "b", "d"]
    rounds = [request.content.config_records["config"]["server-round"] for request in again.values()]
    assert rounds == [1, 1, 2, 2]
    assert ends[0]["theta"].tobytes() == ends[1]["theta"].tobytes()
    assert whole.open_requests == resumed.open_requests == {"a": 0, "b": 1}
