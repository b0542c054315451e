"""What every strategy promises, whatever its algorithm; a new one joins by a line in ``STRATEGIES``."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import FedAvgM as FlowerFedAvgM
from flwr.serverapp.strategy import QFedAvg as FlowerQFedAvg
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.errors import QuorumError
from fl_contract.messages import ARRAYS, CONFIG, METRICS
from fl_contract.strategy_settings import strategy_names
from fl_server.local_grid import LocalGrid
from strategies.centred_clipping import CentredClipping
from strategies.cyclic import Cyclic
from strategies.fedadagrad import FedAdagrad
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.fedbuff import FedBuff
from strategies.feddyn import FedDyn
from strategies.fednova import FedNova
from strategies.fedsgd import FedSGD
from strategies.fedyogi import FedYogi
from strategies.geometric_median import GeometricMedian
from strategies.krum import Krum
from strategies.median import Median
from strategies.norm_bounding import NormBounding
from strategies.one_shot_ensemble import OneShotEnsemble
from strategies.participation import Roster, SiteSampling, SiteWeighting
from strategies.q_fedavg import QFedAvg
from strategies.scaffold import Scaffold
from strategies.trimmed_mean import TrimmedMean

Make = Callable[..., FedAvg]

INSTITUTIONS = {"a": 17.0, "b": 400.0, "c": 0.25, "d": 1.0}

STRATEGIES: dict[str, Make] = {
    "fedavg": FedAvg,
    "fedavgm": lambda **common: FedAvgM(server_momentum=0.9, **common),
    "fedavgm as a running mean": lambda **common: FedAvgM(server_momentum=0.1, server_dampening=0.1, **common),
    "fedavgm without momentum": lambda **common: FedAvgM(server_momentum=0.0, **common),
    "fedavgm by Nesterov": lambda **common: FedAvgM(server_momentum=0.5, server_nesterov=True, **common),
    "fedavg by institution": lambda **common: FedAvg(
        weighting=SiteWeighting(kind="institution", institution_weights=INSTITUTIONS), **common
    ),
    "fedsgd": lambda **common: FedSGD(learning_rate=0.5, **common),
    "q-fedavg": lambda **common: QFedAvg(fairness=1.5, learning_rate=0.5, **common),
    "q-fedavg at q = 0": lambda **common: QFedAvg(fairness=0.0, learning_rate=0.5, **common),
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "scaffold": lambda **common: Scaffold(local_path=0.5, **common),
    "feddyn": lambda **common: FedDyn(alpha=0.5, **common),
    "fednova": lambda **common: FedNova(local_steps=lambda examples: 1 + int(examples) // 16, **common),
    "one-shot-ensemble": OneShotEnsemble,
    "fedbuff": FedBuff,
    "median": Median,
    "trimmed-mean": lambda **common: TrimmedMean(trim_fraction=0.25, **common),
    "krum": lambda **common: Krum(num_hostile=1, **common),
    "multi-krum": lambda **common: Krum(num_hostile=1, num_chosen=3, **common),
    "geometric-median": GeometricMedian,
    "norm-bounding": lambda **common: NormBounding(update_bound=0.5, **common),
    "centred-clipping": lambda **common: CentredClipping(clip_radius=0.5, **common),
    "fedprox": FedAvg,
    "cyclic": Cyclic,
}

COUNT_HOSPITALS = {
    *("median", "trimmed-mean", "krum", "multi-krum", "geometric-median", "norm-bounding", "centred-clipping")
}
"""Robust algorithms, for which a hospital's examples do not count."""

TAKE_TURNS = {"cyclic"}
"""Algorithms that ask one hospital a round."""

SITES = ("a", "b", "c", "d")
EXAMPLES = {"a": 17, "b": 400, "c": 3, "d": 88}
BUFFERS = ("running_var", "num_batches_tracked")


@pytest.fixture(params=list(STRATEGIES.values()), ids=list(STRATEGIES))
def make(request: pytest.FixtureRequest) -> Make:
    """Each strategy in turn; it takes what all strategies take."""
    maker: Make = request.param
    return maker


@pytest.fixture(autouse=True)
def grid() -> Iterator[LocalGrid]:
    """Three nodes with a client of plain Flower, which adds its node's step to the model."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        step = np.float32(context.node_config["step"])
        arrays = from_array_record(message.content.array_records[ARRAYS])
        moved = to_array_record({name: array + step for name, array in arrays.items()})
        metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
        return Message(RecordDict({ARRAYS: moved, METRICS: metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 10, "loss": float(context.node_config["step"])})
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    local = LocalGrid(app, [{"step": 0.5}, {"step": 1.0}, {"step": 1.5}], run_config={})
    yield local
    local.close()


def roster_of(sites: Sequence[str]) -> Roster:
    return Roster(nodes={site: 1 + ord(site) for site in sites}, trainers=tuple(sites), evaluators=tuple(sites))


def random_model(seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        "weight": generator.normal(size=(3, 2)).astype(np.float32),
        "scale": np.array(generator.normal(), np.float32),
        "half": generator.normal(size=4).astype(np.float16),
        "double": generator.normal(size=2),
        "empty": np.zeros((0, 2), np.float32),
        "running_var": generator.uniform(0, 1, size=2).astype(np.float32),
        "num_batches_tracked": np.array(generator.integers(0, 100)),
    }


def reply_of(request: Message, arrays: Arrays, num_examples: float) -> Message:
    site = request.content.config_records[CONFIG]["site"]
    content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        ARRAYS: to_array_record(arrays),
        METRICS: MetricRecord({"num-examples": num_examples, "loss": 0.75}),
        CONFIG: ConfigRecord({"site": site}),
    }
    return Message(RecordDict(content), reply_to=request)


def ask(strategy: FedAvg, model: Arrays, grid: Grid, server_round: int) -> dict[str, Message]:
    requests = strategy.configure_train(server_round, to_array_record(model), ConfigRecord(), grid)
    return {str(request.content.config_records[CONFIG]["site"]): request for request in requests}


def run_rounds(strategy: FedAvg, model: Arrays, grid: Grid, rounds: Sequence[int], order: Sequence[str]) -> Arrays:
    """Rounds in which each hospital that is asked sends a model that depends on its name and the round."""
    for server_round in rounds:
        requests = ask(strategy, model, grid, server_round)
        answering = [site for site in order if site in requests]
        replies = [reply_of(requests[s], random_model(100 * server_round + ord(s)), EXAMPLES[s]) for s in answering]
        stepped, _ = strategy.aggregate_train(server_round, replies)
        assert stepped is not None
        model = from_array_record(stepped)
    return model


def bits(arrays: Arrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def kept(strategy: FedAvg) -> dict[str, bytes]:
    """What a strategy keeps from round to round, but for the requests that are open in FedBuff and their models."""
    return {name: each for name, each in bits(strategy.state()).items() if not name.startswith(("open/", "model/"))}


MOVES_ON_ITS_OWN = {
    *("fedavgm by Nesterov", "fedsgd", "q-fedavg", "fedadam", "fedyogi", "fedadagrad", "feddyn"),
    *("norm-bounding", "centred-clipping"),
}
"""Algorithms whose first step is not the mean update."""


PERSONAL = {"fedbn", "fedper", "fedrep", "ditto", "apfl", "fine-tuning"}
"""Algorithms whose server half is FedAvg's; tests/strategies/test_registry.py says so."""


def test_every_algorithm_that_a_study_may_name_is_among_them() -> None:
    assert set(strategy_names()) <= set(STRATEGIES) | PERSONAL


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in MOVES_ON_ITS_OWN])
def test_the_first_round_of_one_site_takes_its_model(name: str, grid: LocalGrid) -> None:
    make = STRATEGIES[name]
    model = run_rounds(make(roster=roster_of("b"), buffer_names=BUFFERS), random_model(0), grid, [1], "b")

    expected = random_model(100 + ord("b"))
    for key, array in expected.items():
        if key == "double":  # through a weight, a float64 comes back to within roundings
            assert model[key] == pytest.approx(array, rel=1e-14)
        else:
            assert model[key].tobytes() == array.tobytes(), key


def test_the_order_of_replies_does_not_matter_to_the_bit(make: Make, grid: LocalGrid) -> None:
    ends = [
        bits(run_rounds(make(roster=roster_of(SITES), buffer_names=BUFFERS), random_model(0), grid, [1, 2, 3], order))
        for order in ("abcd", "dcba", "bdac")
    ]

    assert ends[0] == ends[1] == ends[2]


def test_names_shapes_and_types_are_kept_in_their_order(make: Make, grid: LocalGrid) -> None:
    start = random_model(0)

    model = run_rounds(make(roster=roster_of(SITES), buffer_names=BUFFERS), start, grid, [1, 2], SITES)

    assert [(name, array.shape, array.dtype) for name, array in model.items()] == [
        (name, array.shape, array.dtype) for name, array in start.items()
    ]


def test_a_counter_stays_a_whole_number_between_those_sent(make: Make, grid: LocalGrid) -> None:
    start, counter = random_model(0), "num_batches_tracked"

    model = run_rounds(make(roster=roster_of(SITES), buffer_names=BUFFERS), start, grid, [1], SITES)

    sent = [int(start[counter]), *(int(random_model(100 + ord(site))[counter]) for site in SITES)]
    assert model[counter].dtype == np.int64
    assert min(sent) <= model[counter] <= max(sent)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in COUNT_HOSPITALS | TAKE_TURNS])
def test_buffers_are_the_mean_of_the_round(name: str, grid: LocalGrid) -> None:
    strategy = STRATEGIES[name](roster=roster_of("ab"), buffer_names=BUFFERS, server_learning_rate=1.7)

    model = run_rounds(strategy, random_model(0), grid, [1, 2, 3], "ab")

    a, b = (random_model(300 + ord(site)) for site in "ab")
    mean = (17 * a["running_var"].astype(float) + 400 * b["running_var"].astype(float)) / 417
    assert model["running_var"] == pytest.approx(mean, abs=1e-7)


def test_a_saved_state_goes_on_to_the_bit(make: Make, grid: LocalGrid) -> None:
    whole = make(roster=roster_of(SITES), buffer_names=BUFFERS)
    half_way = run_rounds(whole, random_model(0), grid, [1, 2], SITES)
    saved = to_array_record(whole.state())  # through bytes, as a checkpoint keeps it
    resumed = make(roster=roster_of(SITES), buffer_names=BUFFERS)
    resumed.load_state(from_array_record(saved))

    ends = [bits(run_rounds(strategy, half_way, grid, [3, 4], SITES)) for strategy in (whole, resumed)]

    assert ends[0] == ends[1]
    assert bits(whole.state()) == bits(resumed.state())


def changed(**arrays: np.ndarray) -> Callable[[Message], Message]:
    """Replies with a model that is right but for these arrays."""
    return lambda request: reply_of(request, {**random_model(1), **arrays}, 5)


def counted(num_examples: float) -> Callable[[Message], Message]:
    """Replies with a right model of so many examples."""
    return lambda request: reply_of(request, random_model(1), num_examples)


BAD: dict[str, Callable[[Message], Message]] = {
    "NaN": changed(scale=np.array(np.nan, np.float32)),
    "infinity": changed(half=np.array([0, np.inf, 0, 0], np.float16)),
    "infinity in a buffer": changed(running_var=np.array([1, -np.inf], np.float32)),
    "another shape": changed(weight=np.zeros((2, 3), np.float32)),
    "another type": changed(weight=np.zeros((3, 2))),
    "fractions in a counter": changed(num_batches_tracked=np.array(1.5)),
    "a counter that overflows": changed(num_batches_tracked=np.array(2**62)),
    "an array too many": changed(other=np.zeros(1, np.float32)),
    "an array too few": lambda request: reply_of(request, {"weight": random_model(1)["weight"]}, 5),
    "no model": lambda request: Message(
        RecordDict({CONFIG: ConfigRecord({"site": request.content.config_records[CONFIG]["site"]})}), reply_to=request
    ),
    "a weight of zero": counted(0.0),
    "a negative weight": counted(-5.0),
    "a weight that is NaN": counted(float("nan")),
    "an infinite weight": counted(float("inf")),
    "a refusal": lambda request: Message(Error(code=101, reason="of its own"), reply_to=request),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_is_left_out_by_name_with_a_reason_and_changes_nothing(
    make: Make, kind: str, grid: LocalGrid
) -> None:
    strategy, clean = (make(roster=roster_of(SITES), buffer_names=BUFFERS) for _ in range(2))
    requests = ask(strategy, random_model(0), grid, 1)
    bad, *others = requests
    replies = [reply_of(requests[s], random_model(100 + ord(s)), EXAMPLES[s]) for s in others]

    if others:
        stepped, _ = strategy.aggregate_train(1, [BAD[kind](requests[bad]), *replies])
        assert stepped is not None
        assert bits(from_array_record(stepped)) == bits(run_rounds(clean, random_model(0), grid, [1], others))
    else:
        with pytest.raises(QuorumError, match="0 usable replies"):
            strategy.aggregate_train(1, [BAD[kind](requests[bad])])

    assert kept(strategy) == kept(clean)
    ((site, (code, reason)),) = strategy.outcome.left_out.items()
    assert (site, code) == (bad, "budget-exhausted" if kind == "a refusal" else "unusable-reply")
    assert reason


@pytest.mark.parametrize("num_replies", [0, 1, 2])
def test_fewer_replies_than_the_quorum_are_an_error(make: Make, num_replies: int, grid: LocalGrid) -> None:
    sampling = SiteSampling(min_sites=3, generator=np.random.default_rng(0))
    strategy = make(roster=roster_of(SITES), sampling=sampling)
    before = kept(strategy)

    with pytest.raises(QuorumError) as error:
        run_rounds(strategy, random_model(0), grid, [1], SITES[:num_replies])

    usable = min(num_replies, len(strategy.outcome.asked))
    assert f"{usable} usable replies; expected at least 3" in str(error.value)
    assert kept(strategy) == before


def test_a_round_without_a_reply_is_an_error_whatever_the_quorum(make: Make, grid: LocalGrid) -> None:
    strategy = make(roster=roster_of(SITES))

    with pytest.raises(QuorumError, match="0 usable replies; expected at least 1"):
        run_rounds(strategy, random_model(0), grid, [1], [])


def test_who_is_silent_until_the_deadline_is_named(make: Make, grid: LocalGrid) -> None:
    sampling = SiteSampling(min_sites=len(SITES), generator=np.random.default_rng(0))
    strategy = make(roster=roster_of(SITES), sampling=sampling)
    *answering, silent = ask(strategy, random_model(0), grid, 1)

    with pytest.raises(QuorumError, match=f"{silent}: no reply before the deadline"):
        run_rounds(strategy, random_model(0), grid, [1], answering)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fedavg", 2.0),  # 1 + 1
        ("fedavgm", 2.9),  # 1 + (0.9 * 1 + 1)
        ("fedavgm as a running mean", 2.0),  # 1 + (0.1 * 1 + 0.9 * 1)
        ("fedavgm without momentum", 2.0),
        ("fedavgm by Nesterov", 3.25),  # (1 + 0.5 * 1) + (1 + 0.5 * (0.5 * 1 + 1))
        ("q-fedavg at q = 0", 2.0),
        ("fedbuff", 2.0),  # nothing is stale, since Flower's loop waits for all
    ],
)
def test_plain_flower_can_run_it(name: str, expected: float, grid: LocalGrid) -> None:
    strategy: FlowerStrategy = STRATEGIES[name]()

    # Every node has 10 examples; the mean step of each round is (0.5 + 1 + 1.5) / 3 = 1.
    result = strategy.start(
        grid=grid, initial_arrays=to_array_record({"w": np.zeros(2, np.float32)}), num_rounds=2, timeout=30
    )

    assert from_array_record(result.arrays)["w"] == pytest.approx([expected, expected], abs=1e-6)
    assert [dict(metrics) for metrics in result.train_metrics_clientapp.values()] == [{"num-examples": 30}] * 2
    assert [dict(metrics) for metrics in result.evaluate_metrics_clientapp.values()] == [{"loss": 1.0}] * 2


@pytest.mark.parametrize(
    ("ours", "flowers"),
    [
        (FedAvg(roster=roster_of(SITES)), FlowerFedAvg()),
        (
            FedAvgM(roster=roster_of(SITES), server_momentum=0.9),
            FlowerFedAvgM(server_momentum=0.9, server_learning_rate=1.0),
        ),
        (
            FedAvgM(roster=roster_of(SITES), server_momentum=0.5, server_learning_rate=0.3),
            FlowerFedAvgM(server_momentum=0.5, server_learning_rate=0.3),
        ),
        (
            FedAvg(roster=roster_of(SITES), server_learning_rate=0.7),
            FlowerFedAvgM(server_momentum=0.0, server_learning_rate=0.7),
        ),
        (
            QFedAvg(roster=roster_of(SITES), fairness=1.5, learning_rate=0.5, weighting=SiteWeighting(kind="equal")),
            FlowerQFedAvg(client_learning_rate=0.5, q=1.5, train_loss_key="loss"),
        ),
    ],
    ids=["fedavg", "fedavgm", "fedavgm with a rate", "fedavg with a rate", "q-fedavg"],
)
def test_the_models_are_those_of_flowers_own_strategy(ours: FedAvg, flowers: FlowerFedAvg, grid: LocalGrid) -> None:
    start: Arrays = {name: random_model(0)[name] for name in ("weight", "scale")}
    model, theirs = start, to_array_record(start)
    if isinstance(flowers, FlowerFedAvgM):
        flowers.current_arrays = theirs

    for server_round in (1, 2, 3):
        requests = ask(ours, model, grid, server_round)
        sent = {site: {name: random_model(100 * server_round + ord(site))[name] for name in start} for site in SITES}
        if isinstance(flowers, FlowerQFedAvg):
            flowers.current_arrays = theirs.copy()
        replies = [[reply_of(requests[s], sent[s], EXAMPLES[s]) for s in SITES] for _ in range(2)]
        stepped, _ = ours.aggregate_train(server_round, replies[0])
        expected, _ = flowers.aggregate_train(server_round, replies[1])
        assert isinstance(stepped, ArrayRecord)
        assert isinstance(expected, ArrayRecord)
        model, theirs = from_array_record(stepped), expected

        for name, array in from_array_record(theirs).items():
            assert model[name] == pytest.approx(array, abs=1e-6), (server_round, name)
