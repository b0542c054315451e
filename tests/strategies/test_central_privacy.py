"""Hospital-level privacy clips, weighs by fixed weights, noises once, and lets any strategy use the mean."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam as FlowerFedAdam
from numpy.typing import NDArray

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.errors import QuorumError, RunError, SettingError
from privacy.central import CentralPlan
from strategies.central_privacy import CentralPrivacy, SpentRounds
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.participation import Roster, SiteSampling

MODEL: Arrays = {"w": np.zeros((2, 2), np.float32), "b": np.array(1.0, np.float64)}


def plan_for(weights: dict[str, float], **changes: Any) -> CentralPlan:
    usual: dict[str, Any] = {
        "epsilon": 8.0,
        "delta": 1e-3,
        "clip_norm": 10.0,
        "declared": weights,
        "num_rounds": 3,
        "num_coordinates": 5,
    }
    return CentralPlan.calibrate(**usual | changes)


def moved(w: float, b: float = 0.0) -> Arrays:
    return {"w": np.full((2, 2), w, np.float32), "b": np.array(1.0 + b)}


@pytest.fixture
def without_noise(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Zeros in place of the noise; the list gets an entry for each time that noise was drawn."""
    drawn: list[int] = []

    def draw_noise(plan: CentralPlan) -> NDArray[np.int64]:
        drawn.append(plan.num_coordinates)
        return np.zeros(plan.num_coordinates, np.int64)

    monkeypatch.setattr(CentralPlan, "draw_noise", draw_noise)
    return drawn


@pytest.fixture
def run_round(ask: Callable[..., dict[str, Message]], reply_to: Callable[..., Message]) -> Callable[..., Arrays]:
    """One round in which the given hospitals answer, in the given order; the new model."""

    def run(strategy: Any, model: Arrays, answers: dict[str, Arrays], examples: int = 1) -> Arrays:
        requests = ask(strategy, model)
        replies = [reply_to(requests[site], arrays, examples) for site, arrays in answers.items()]
        stepped, _ = strategy.aggregate_train(1, replies)
        return from_array_record(stepped)

    return run


def test_the_mean_update_has_the_fixed_weights(
    without_noise: list[int], run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]
) -> None:
    strategy = CentralPrivacy(FedAvg(roster=roster_of("a", "b")), plan_for({"a": 3, "b": 1}))

    model = run_round(strategy, MODEL, {"b": moved(2.0, 1.0), "a": moved(1.0)}, examples=777)

    # 3/4 * 1 + 1/4 * 2 = 1.25 and 1/4 * 1 = 0.25, whatever number of examples a reply names
    assert model["w"] == pytest.approx(np.full((2, 2), 1.25), abs=1e-5)
    assert model["b"] == pytest.approx(1.25, abs=1e-5)
    assert without_noise == [5]


def test_a_hospital_that_does_not_reply_leaves_the_others_weights_alone(
    without_noise: list[int], run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]
) -> None:
    strategy = CentralPrivacy(FedAvg(roster=roster_of("a", "b")), plan_for({"a": 3, "b": 1}))

    model = run_round(strategy, MODEL, {"b": moved(2.0)})

    assert model["w"] == pytest.approx(np.full((2, 2), 0.5), abs=1e-5)  # 1/4 * 2, not 2


def test_a_long_update_is_clipped(
    without_noise: list[int], run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]
) -> None:
    strategy = CentralPrivacy(FedAvg(roster=roster_of("a")), plan_for({"a": 1}, clip_norm=2.0))

    model = run_round(strategy, MODEL, {"a": moved(50.0)})

    # Norm sqrt(4 * 50^2) = 100 shrinks to 2: 50 becomes 1.
    assert model["w"] == pytest.approx(np.ones((2, 2)), abs=1e-5)


def test_a_removed_hospital_changes_the_noiseless_sum_by_at_most_what_the_noise_covers(
    without_noise: list[int], run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]
) -> None:
    plan = plan_for({"a": 5, "b": 1, "c": 1}, clip_norm=0.5)
    ends = []
    for answers in ({"a": moved(9.0, -70.0), "b": moved(1.0), "c": moved(-3.0)}, {"b": moved(1.0), "c": moved(-3.0)}):
        strategy = CentralPrivacy(FedAvg(roster=roster_of("a", "b", "c")), plan)
        model = run_round(strategy, MODEL, answers)
        ends.append(np.append(model["w"].ravel(), model["b"]))

    assert np.linalg.norm(ends[0] - ends[1]) <= plan.sensitivity_steps * plan.step + 1e-6  # float32 models
    assert np.linalg.norm(ends[0] - ends[1]) > 0.5 * 5 / 7 - 1e-6


def test_noise_has_the_planned_size_and_is_added_once(
    run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]
) -> None:
    size = 40_000
    model: Arrays = {"w": np.zeros(size)}
    plan = plan_for({"a": 1, "b": 1, "c": 1, "d": 1}, num_coordinates=size)
    strategy = CentralPrivacy(FedAvg(roster=roster_of("a", "b", "c", "d")), plan)

    stepped = run_round(strategy, model, dict.fromkeys("abcd", model))

    # Four times the noise would have twice the deviation. Six standard errors, a chance of 2e-9.
    assert stepped["w"].std() == pytest.approx(plan.noise_std, rel=6 / np.sqrt(2 * size))


def test_momentum_is_the_inner_strategys(
    without_noise: list[int], run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]
) -> None:
    inner = FedAvgM(roster=roster_of("a"), server_momentum=0.5)
    strategy = CentralPrivacy(inner, plan_for({"a": 1}))

    first = run_round(strategy, MODEL, {"a": moved(1.0)})
    second = run_round(strategy, first, {"a": {"w": first["w"] + 1, "b": first["b"]}})

    # v = 1, then 0.5 * 1 + 1 = 1.5; the model goes 1, 2.5
    assert first["w"] == pytest.approx(np.ones((2, 2)), abs=1e-5)
    assert second["w"] == pytest.approx(np.full((2, 2), 2.5), abs=1e-5)


def test_it_goes_round_a_strategy_of_plain_flower(without_noise: list[int], grid_of: Callable[..., Grid]) -> None:
    inner = FlowerFedAdam(eta=0.1, min_available_nodes=2, min_train_nodes=2)
    strategy = CentralPrivacy(inner, plan_for({"7": 1, "8": 1}))
    grid = grid_of(7, 8)
    start = to_array_record(MODEL)
    inner.current_arrays = from_array_record(start)
    requests = list(strategy.configure_train(1, start, ConfigRecord(), grid))

    stepped, _ = strategy.aggregate_train(1, _flower_replies(requests, moved(1.0)))

    assert isinstance(stepped, ArrayRecord)
    # Flower's Adam: m = 0.1, v = 0.01; 0.1 * sqrt(1 - 0.99^2) / (1 - 0.9^2) * m / (sqrt(v) + 0.001) = 0.0735
    assert from_array_record(stepped)["w"] == pytest.approx(np.full((2, 2), 0.0735), abs=1e-4)
    strategy.load_state(strategy.state())
    assert strategy.spent.rounds == 1


def _flower_replies(requests: Iterable[Message], arrays: Arrays) -> Iterable[Message]:
    for request in requests:
        content = RecordDict({"arrays": to_array_record(arrays), "metrics": MetricRecord({"num-examples": 1})})
        yield Message(content, reply_to=request)


def test_each_round_is_stored_before_its_noise_is_drawn(
    monkeypatch: pytest.MonkeyPatch, run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]
) -> None:
    events: list[Any] = []

    def draw_noise(plan: CentralPlan) -> NDArray[np.int64]:
        events.append("noise")
        return np.zeros(5, np.int64)

    monkeypatch.setattr(CentralPlan, "draw_noise", draw_noise)
    strategy = CentralPrivacy(
        FedAvg(roster=roster_of("a")), plan_for({"a": 1}), spent_rounds=SpentRounds(count=1, store=events.append)
    )

    run_round(strategy, MODEL, {"a": moved(1.0)})

    assert events == [2, "noise"]
    assert strategy.spent.rounds == 2


def test_what_is_spent_is_that_of_the_plan(run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]) -> None:
    plan = plan_for({"a": 1})
    strategy = CentralPrivacy(FedAvg(roster=roster_of("a")), plan)
    before = strategy.spent

    for _ in range(3):
        run_round(strategy, MODEL, {"a": MODEL})

    assert before.epsilon == pytest.approx(0.0, abs=1e-12)
    assert strategy.spent.to_json() == {
        "unit": "hospital",
        "neighbouring": "zero-out-one",
        "accountant": "closed form of the Gaussian mechanism",
        "epsilon": plan.epsilon_after(3),
        "delta": 1e-3,
        "rounds": 3,
        "noise_multiplier": plan.noise_multiplier,
    }


def test_more_rounds_than_planned_are_refused(
    run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]
) -> None:
    strategy = CentralPrivacy(FedAvg(roster=roster_of("a")), plan_for({"a": 1}, num_rounds=1))
    run_round(strategy, MODEL, {"a": MODEL})

    with pytest.raises(RunError, match="all 1 rounds of central privacy are spent"):
        run_round(strategy, MODEL, {"a": MODEL})
    with pytest.raises(RunError, match="all 1 rounds of central privacy are spent"):
        strategy.aggregate_train(2, [])


@pytest.mark.parametrize(("known", "saved", "expected"), [(0, 2, 2), (3, 2, 3), (2, 2, 2)])
def test_a_resumed_run_is_never_charged_for_less(
    known: int, saved: int, expected: int, roster_of: Callable[..., Roster]
) -> None:
    inner = FedAvgM(roster=roster_of("a"))
    strategy = CentralPrivacy(inner, plan_for({"a": 1}), spent_rounds=SpentRounds(count=known))

    strategy.load_state({"central-privacy/rounds": np.array(saved), "w": np.ones(3)})

    assert strategy.spent.rounds == expected
    assert list(inner.state()) == ["w"]
    assert int(strategy.state()["central-privacy/rounds"]) == expected


def test_too_few_replies_spend_nothing(
    without_noise: list[int], run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]
) -> None:
    strategy = CentralPrivacy(FedAvg(roster=roster_of("a", "b")), plan_for({"a": 1, "b": 1}), min_sites=2)

    with pytest.raises(QuorumError, match=r"1 usable replies; expected at least 2 .* a: no reply before the deadline"):
        run_round(strategy, MODEL, {"b": MODEL})
    assert without_noise == []
    assert strategy.spent.rounds == 0


def test_unusable_replies_count_as_zero_and_are_named(
    without_noise: list[int],
    ask: Callable[..., dict[str, Message]],
    reply_to: Callable[..., Message],
    roster_of: Callable[..., Roster],
) -> None:
    sites = ("a", "b", "c", "d", "e")
    strategy = CentralPrivacy(FedAvg(roster=roster_of(*sites)), plan_for(dict.fromkeys(sites, 1)), max_update_norm=30.0)
    requests = ask(strategy, MODEL)
    far = {"w": MODEL["w"], "b": np.array(1e308)}

    stepped, _ = strategy.aggregate_train(
        1,
        [
            reply_to(requests["a"], moved(5.0)),
            reply_to(requests["a"], moved(5.0)),
            reply_to(requests["b"], moved(np.nan)),
            Message(Error(code=102, reason="of its own"), reply_to=requests["c"]),
            reply_to(requests["d"], moved(100.0)),
            reply_to(requests["e"], far),
        ],
    )

    assert stepped is not None
    assert from_array_record(stepped)["w"] == pytest.approx(np.ones((2, 2)), abs=1e-5)  # 1/5 * 5
    assert list(strategy.outcome.examples) == ["a"]
    codes = {site: code for site, (code, _) in strategy.outcome.left_out.items()}
    assert codes == {"1001": "unusable-reply", "b": "unusable-reply", "c": "policy", "d": "unusable-reply"} | {
        "e": "unusable-reply"
    }


def test_an_update_too_long_for_any_float_counts_as_zero(
    without_noise: list[int], run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]
) -> None:
    start: Arrays = {"w": MODEL["w"], "b": np.array(-1.7e308)}
    strategy = CentralPrivacy(FedAvg(roster=roster_of("a", "b")), plan_for({"a": 1, "b": 1}))

    model = run_round(strategy, start, {"a": {"w": MODEL["w"], "b": np.array(1.7e308)}, "b": start})

    assert model["b"] == -1.7e308
    assert "expected 5 finite numbers" in strategy.outcome.left_out["a"][1]


def test_a_model_that_leaves_its_type_is_an_error(
    without_noise: list[int],
    monkeypatch: pytest.MonkeyPatch,
    run_round: Callable[..., Arrays],
    roster_of: Callable[..., Roster],
) -> None:
    start: Arrays = {"w": np.full(5, 65000, np.float16)}
    strategy = CentralPrivacy(FedAvg(roster=roster_of("a")), plan_for({"a": 1}))
    monkeypatch.setattr(CentralPlan, "restore", lambda plan, total: np.full(len(total), 1e5))  # far noise

    with pytest.raises(RunError, match=r"arrays \['w'\] of the new model are not finite; lower the clip norm"):
        run_round(strategy, start, {"a": start})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"w": np.zeros(4), "steps": np.array(3)}, r"arrays \['steps'\] are not floating point"),
        ({"w": np.zeros(4)}, "the model has 4 numbers; expected 5"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    model: Arrays, message: str, ask: Callable[..., dict[str, Message]], roster_of: Callable[..., Roster]
) -> None:
    strategy = CentralPrivacy(FedAvg(roster=roster_of("a")), plan_for({"a": 1}))

    with pytest.raises(SettingError, match=message):
        ask(strategy, model)


def test_a_model_with_running_statistics_is_refused() -> None:
    with pytest.raises(SettingError, match=r"\['running_mean'\]; they would leave without noise"):
        CentralPrivacy(FedAvg(), plan_for({"a": 1}), buffer_names={"running_mean"})


def test_a_hospital_without_a_weight_is_refused(
    ask: Callable[..., dict[str, Message]], roster_of: Callable[..., Roster]
) -> None:
    strategy = CentralPrivacy(FedAvg(roster=roster_of("a", "b")), plan_for({"a": 1}))

    with pytest.raises(SettingError, match=r"no weight for \['b'\]; expected \['a'\]"):
        ask(strategy, MODEL)


@pytest.mark.parametrize("changes", [{"min_sites": 2}, {"min_sites": 1, "max_update_norm": 3.0}])
def test_rules_for_single_replies_do_not_belong_to_the_inner_strategy(changes: dict[str, Any]) -> None:
    inner = FedAvg(sampling=SiteSampling(generator=np.random.default_rng(0), **changes))

    with pytest.raises(SettingError, match="set min-sites and max-update-norm round it"):
        CentralPrivacy(inner, plan_for({"a": 1}))


def test_flowers_own_loop_can_log_it(roster_of: Callable[..., Roster]) -> None:
    CentralPrivacy(FedAvg(roster=roster_of("a")), plan_for({"a": 1})).summary()
