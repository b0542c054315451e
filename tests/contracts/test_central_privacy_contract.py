"""What every strategy promises, it promises inside hospital-level privacy too.

Left out are the promises that noise and clipping exist to break: that one hospital's model comes back unchanged, that
the mean is Flower's own, and buffers, which have no place there. Noise is a fixed row of numbers where bits are
compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.errors import QuorumError
from fl_contract.messages import ARRAYS, CONFIG, METRICS
from fl_server.local_grid import LocalGrid
from privacy.central import CentralPlan
from strategies.central_privacy import CentralPrivacy
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.participation import Roster

INNER: dict[str, Callable[..., FedAvg]] = {
    "fedavg": FedAvg,
    "fedavgm": lambda **common: FedAvgM(server_momentum=0.9, **common),
    "fedavgm as a running mean": lambda **common: FedAvgM(server_momentum=0.1, server_dampening=0.1, **common),
}

SITES = ("a", "b", "c", "d")
WEIGHTS = {"a": 17, "b": 400, "c": 3, "d": 88}

Make = Callable[..., CentralPrivacy]


@pytest.fixture(params=list(INNER.values()), ids=list(INNER))
def make(request: pytest.FixtureRequest) -> Make:
    """Each strategy in turn, inside a plan for four rounds."""

    def make_one(min_sites: int = 1) -> CentralPrivacy:
        roster = Roster(nodes={site: 1 + ord(site) for site in SITES}, trainers=SITES, evaluators=SITES)
        return CentralPrivacy(request.param(roster=roster), plan_for(WEIGHTS, random_model(0)), min_sites=min_sites)

    return make_one


@pytest.fixture
def fixed_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise in every round."""

    def draw_noise(plan: CentralPlan) -> NDArray[np.int64]:
        return np.arange(plan.num_coordinates) * 10_000

    monkeypatch.setattr(CentralPlan, "draw_noise", draw_noise)


@pytest.fixture(autouse=True)
def grid() -> Iterator[LocalGrid]:
    """Three nodes with a client of plain Flower, which adds its node's step to the model."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = from_array_record(message.content.array_records[ARRAYS])
        moved = to_array_record(
            {name: array + np.float32(context.node_config["step"]) for name, array in arrays.items()}
        )
        return Message(RecordDict({ARRAYS: moved, METRICS: MetricRecord({"num-examples": 10})}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 10, "loss": float(context.node_config["step"])})
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    local = LocalGrid(app, [{"step": 0.5}, {"step": 1.0}, {"step": 1.5}], run_config={})
    yield local
    local.close()


def plan_for(declared: Mapping[str, float], model: Arrays) -> CentralPlan:
    return CentralPlan.calibrate(
        epsilon=8.0,
        delta=1e-3,
        clip_norm=3.0,
        declared=declared,
        num_rounds=4,
        num_coordinates=sum(array.size for array in model.values()),
    )


def random_model(seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        "weight": generator.normal(size=(3, 2)).astype(np.float32),
        "scale": np.array(generator.normal(), np.float32),
        "half": generator.normal(size=4).astype(np.float16),
        "double": generator.normal(size=2),
        "empty": np.zeros((0, 2), np.float32),
    }


def reply_of(request: Message, arrays: Arrays) -> Message:
    content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        ARRAYS: to_array_record(arrays),
        METRICS: MetricRecord({"num-examples": 1}),
        CONFIG: ConfigRecord({"site": request.content.config_records[CONFIG]["site"]}),
    }
    return Message(RecordDict(content), reply_to=request)


def ask(strategy: CentralPrivacy, model: Arrays, grid: LocalGrid, server_round: int) -> dict[str, Message]:
    requests = strategy.configure_train(server_round, to_array_record(model), ConfigRecord(), grid)
    return {str(request.content.config_records[CONFIG]["site"]): request for request in requests}


def run_rounds(
    strategy: CentralPrivacy, model: Arrays, grid: LocalGrid, rounds: Sequence[int], order: Sequence[str]
) -> Arrays:
    """Rounds in which each hospital sends a model that depends on its name and the round."""
    for server_round in rounds:
        requests = ask(strategy, model, grid, server_round)
        replies = [reply_of(requests[site], random_model(100 * server_round + ord(site))) for site in order]
        stepped, _ = strategy.aggregate_train(server_round, replies)
        assert stepped is not None
        model = from_array_record(stepped)
    return model


def bits(arrays: Arrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.usefixtures("fixed_noise")
def test_the_order_of_replies_does_not_matter_to_the_bit(make: Make, grid: LocalGrid) -> None:
    ends = [bits(run_rounds(make(), random_model(0), grid, [1, 2, 3], order)) for order in ("abcd", "dcba", "bdac")]

    assert ends[0] == ends[1] == ends[2]


def test_names_shapes_and_types_are_kept_in_their_order(make: Make, grid: LocalGrid) -> None:
    start = random_model(0)

    model = run_rounds(make(), start, grid, [1, 2], SITES)

    assert [(name, array.shape, array.dtype) for name, array in model.items()] == [
        (name, array.shape, array.dtype) for name, array in start.items()
    ]


@pytest.mark.usefixtures("fixed_noise")
def test_a_saved_state_goes_on_to_the_bit(make: Make, grid: LocalGrid) -> None:
    whole = make()
    half_way = run_rounds(whole, random_model(0), grid, [1, 2], SITES)
    saved = to_array_record(whole.state())  # through bytes, as a checkpoint keeps it
    resumed = make()
    resumed.load_state(from_array_record(saved))

    ends = [bits(run_rounds(strategy, half_way, grid, [3, 4], SITES)) for strategy in (whole, resumed)]

    assert ends[0] == ends[1]
    assert bits(whole.state()) == bits(resumed.state())
    assert whole.spent == resumed.spent


@pytest.mark.usefixtures("fixed_noise")
def test_bad_replies_are_left_out_by_name_and_change_nothing(make: Make, grid: LocalGrid) -> None:
    expected = run_rounds(make(), random_model(0), grid, [1], "ab")
    strategy = make()
    requests = ask(strategy, random_model(0), grid, 1)

    stepped, _ = strategy.aggregate_train(
        1,
        [
            reply_of(requests["c"], {**random_model(1), "scale": np.array(np.nan, np.float32)}),
            reply_of(requests["a"], random_model(100 + ord("a"))),
            Message(Error(code=101, reason="of its own"), reply_to=requests["d"]),
            reply_of(requests["b"], random_model(100 + ord("b"))),
        ],
    )

    assert stepped is not None
    assert bits(from_array_record(stepped)) == bits(expected)
    assert {site: code for site, (code, _) in strategy.outcome.left_out.items()} == {
        "c": "unusable-reply",
        "d": "budget-exhausted",
    }


@pytest.mark.parametrize("num_replies", [0, 1, 2])
def test_fewer_replies_than_the_quorum_are_an_error(make: Make, num_replies: int, grid: LocalGrid) -> None:
    with pytest.raises(QuorumError, match=f"{num_replies} usable replies; expected at least 3"):
        run_rounds(make(min_sites=3), random_model(0), grid, [1], SITES[:num_replies])


@pytest.mark.parametrize("name", list(INNER))
def test_plain_flower_can_run_it(name: str, grid: LocalGrid) -> None:
    start: Arrays = {"w": np.zeros(200, np.float32)}
    plan = plan_for({str(node): 1 for node in grid.get_node_ids()}, start)
    strategy = CentralPrivacy(INNER[name](), plan)

    result = strategy.start(grid=grid, initial_arrays=to_array_record(start), num_rounds=1, timeout=30)

    # Each node's update has a norm of at least 0.5 * sqrt(200) = 7.1, so it is clipped to 3: the mean moves each
    # number by 3 / sqrt(200) = 0.2121. Six standard errors of the mean of 200 noises, a chance of 2e-9.
    moved = from_array_record(result.arrays)["w"]
    assert abs(moved.mean() - 0.2121) < 6 * plan.noise_std / np.sqrt(200)
    assert moved.std() > plan.noise_std / 2
    assert [dict(metrics) for metrics in result.evaluate_metrics_clientapp.values()] == [{"loss": 1.0}]
