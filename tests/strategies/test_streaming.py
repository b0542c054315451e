"""Replies are added up in the order of names: lists, streams and any order of arrival give the same bits."""

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_contract.array_record import Arrays, from_array_record
from fl_contract.errors import QuorumError
from strategies import blocks, running_mean
from strategies.blocks import Blocks
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.median import Median
from strategies.participation import Roster, SiteSampling
from strategies.spool import Spool
from strategies.turns import Turns

Ask = Callable[..., dict[str, Message]]
ReplyTo = Callable[..., Message]
MakeRoster = Callable[..., Roster]

SITES = tuple("abcdef")
EVERY_KIND = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def model_of(seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        "w": generator.normal(size=(5, 2)).astype(np.float32),
        "half": generator.normal(size=3).astype(np.float16),
        "double": generator.normal(size=3),
        "variance": generator.uniform(size=3).astype(np.float32),
        "count": np.array(generator.integers(0, 9)),
    }


def bits(arrays: Arrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("make", [FedAvg, FedAvgM, FedAdam, Median])
@EVERY_KIND
@given(data=st.data())
def test_lists_and_streams_in_any_order_give_the_same_bits(
    make: Callable[..., FedAvg], data: st.DataObject, ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    broken = data.draw(st.sets(st.sampled_from(SITES), max_size=4))
    silent = data.draw(st.sets(st.sampled_from(SITES), max_size=1))
    block = data.draw(st.sampled_from([1, 4, 1 << 15]))
    present = [site for site in SITES if site not in silent]
    orders = [sorted(set(present) - broken), data.draw(st.permutations(present)), data.draw(st.permutations(present))]
    ends = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", block)
        patch.setattr(running_mean, "MEAN_BLOCK", block)
        for number, order in enumerate(orders):
            strategy = make(roster=roster_of(*SITES), buffer_names={"variance"})
            model: Arrays = {}
            for server_round in (1, 2):
                requests = ask(strategy, model_of(0), server_round)
                replies = []
                for site in order:
                    sent = model_of(100 * server_round + ord(site))
                    if site in broken:
                        sent["w"][-1, -1] = np.nan
                    replies.append(reply_to(requests[site], sent, 1 + ord(site)))
                stepped, _ = strategy.aggregate_train(server_round, iter(replies) if number == 2 else replies)
                assert stepped is not None
                model = from_array_record(stepped)
                assert set(strategy.outcome.left_out) == broken & set(order)
            ends.append(bits(model) | bits(strategy.state()))

    assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize("make", [FedAvg, FedAvgM])
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_quorum_that_nan_breaks_is_an_error(
    make: Callable[..., FedAvg], is_stream: bool, ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    sampling = SiteSampling(min_sites=2, generator=np.random.default_rng(0))
    strategy = make(roster=roster_of("a", "b"), sampling=sampling)
    requests = ask(strategy, {"w": np.zeros(2, np.float32)})
    replies = [
        reply_to(requests["a"], {"w": np.array([1, np.inf], np.float32)}),
        reply_to(requests["b"], {"w": np.ones(2, np.float32)}),
    ]

    with pytest.raises(QuorumError, match=r"a: unusable-reply \(array 'w' holds NaN or infinity"):
        strategy.aggregate_train(1, iter(replies) if is_stream else replies)


def test_the_memory_of_a_stream_does_not_grow_with_hospitals(
    ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster
) -> None:
    size, growth = 500_000, {}
    sent = {"w": np.ones(size, np.float32)}

    def replies(requests: dict[str, Message]) -> Iterator[Message]:
        for site in sorted(requests, reverse=True):
            yield reply_to(requests[site], sent)

    for count in (3, 12):
        strategy = FedAvg(roster=roster_of(*(f"site-{number:02}" for number in range(count))))
        arriving = replies(ask(strategy, {"w": np.zeros(size, np.float32)}))
        tracemalloc.start()
        gc.disable()  # it may come late, and Flower's records refer to themselves
        try:
            strategy.aggregate_train(1, arriving)
        finally:
            gc.enable()
        growth[count] = tracemalloc.get_traced_memory()[1] / (4 * size)
        tracemalloc.stop()

    # The sum, the reply at hand and the one that is being made; blocks of those that wait, an eighth of a model each,
    # since the model is small.
    assert growth[3] < 6
    assert growth[12] < growth[3] + 9 / 8


def test_who_comes_early_waits_until_all_before_have_come_or_are_left_out() -> None:
    handed: list[list[str]] = []
    left_out: list[str] = []

    with Spool() as spool:
        turns = Turns("abcdef", left_out, spool, lambda ready: handed.append([site for site, _ in ready]))
        for site in "bac":
            turns.arrive(site, {"w": np.zeros(2)})
        left_out.append("d")
        turns.arrive("f", {"w": np.zeros(2)})
        assert handed == [["a", "b"], ["c"]]
        turns.finish()

    assert handed == [["a", "b"], ["c"], ["f"]]  # e never came


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "bool"])
def test_a_model_comes_back_from_the_file_to_the_bit(dtype: str) -> None:
    first, second = (np.random.default_rng(seed).normal(size=7).astype(dtype) for seed in (1, 2))

    with Spool() as spool:
        models: list[Blocks] = [spool.put({"x": array, "y": array[::-1]}) for array in (first, second)]

        for model, array in zip(models, (first, second), strict=True):
            assert model.block("x", slice(2, 5)).tobytes() == array[2:5].tobytes()
            assert model.block("y", slice(0, 7)).tobytes() == array[::-1].tobytes()


def test_no_file_is_made_where_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))

    with Spool():
        pass
    with pytest.raises(FileNotFoundError), Spool() as spool:
        spool.put({"x": np.zeros(1)})
