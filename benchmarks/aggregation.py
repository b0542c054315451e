"""How fast are hospitals' models made into one, and in how much memory? Flower's own strategies and ours.

Both get the same replies in one process, through `aggregate_train`. They take turns, on one thread, and each counts by
its median turn in processor time, so that other work on the machine hurts both alike. "list" gives all replies at once,
as Flower's own loop does; "stream" hands them on one at a time. The order is shuffled. Memory is the peak of what
Python and NumPy allocate during one more turn: replies are not in it, the new model is.

    python benchmarks/aggregation.py --results benchmarks/results/aggregation.json --commit $(git rev-parse HEAD)

The limit is reading: "read" finds the largest number of each array of the same replies by NumPy, as fast as memory
gives them, and knows nothing of messages.

Models are float32: four fifths of the numbers in ten arrays, the rest in fifty. The last line is JSON: for each
algorithm the smaller ratio and the larger memory of the two sizes, with lists, and both sizes beside.
"""

import json
import logging
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from rich.table import Table

from fl_contract.array_record import to_array_record
from fl_contract.messages import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES
from strategies.fedadagrad import FedAdagrad
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.fedyogi import FedYogi
from strategies.krum import Krum
from strategies.median import Median
from strategies.participation import Roster
from strategies.trimmed_mean import TrimmedMean

SIZES = {"10 x 25M": (10, 25_000_000), "100 x 1M": (100, 1_000_000)}
NUMBER_BYTES = 4


@dataclass(frozen=True)
class Pair:
    """One algorithm of both."""

    ours: Callable[..., FedAvg]
    flowers: Callable[[], flower.FedAvg]


PAIRS = {
    "mean": Pair(FedAvg, flower.FedAvg),
    "momentum": Pair(FedAvgM, lambda: flower.FedAvgM(server_momentum=0.9)),
    "adam": Pair(FedAdam, flower.FedAdam),
    "yogi": Pair(FedYogi, flower.FedYogi),
    "adagrad": Pair(FedAdagrad, flower.FedAdagrad),
    "median": Pair(Median, flower.FedMedian),
    "trimmed_mean": Pair(lambda **common: TrimmedMean(trim_fraction=0.2, **common), flower.FedTrimmedAvg),
    "krum": Pair(lambda **common: Krum(num_hostile=2, **common), lambda: flower.Krum(num_malicious_nodes=2)),
}


class NoGrid:
    """Stands for Flower's grid where nothing is sent."""

    def __init__(self, count: int) -> None:
        self._nodes = list(range(1, count + 1))

    def get_node_ids(self) -> list[int]:
        """One for each hospital."""
        return self._nodes


class Round:
    """A model and its replies, made once; messages are made anew for each turn, since Flower's median empties them."""

    def __init__(self, size: str) -> None:
        self.count, self.num_numbers = SIZES[size]
        generator = np.random.default_rng(0)
        self.model = to_array_record(self._draw(generator))
        self.sites = [f"hospital-{number:03}" for number in range(self.count)]
        self.order = [int(index) for index in generator.permutation(self.count)]
        self._arrays = [dict(to_array_record(self._draw(generator)).items()) for _ in self.sites]

    def _draw(self, generator: np.random.Generator) -> dict[str, Any]:
        sizes = [self.num_numbers * 4 // 50] * 10 + [self.num_numbers // 250] * 50
        return {f"layer-{number}": generator.random(size, dtype=np.float32) for number, size in enumerate(sizes)}

    def replies(self) -> Iterator[Message]:
        """In the order of arrival."""
        for index in self.order:
            kept = {
                name: Array(each.dtype, each.shape, each.stype, each.data) for name, each in self._arrays[index].items()
            }
            request = Message(RecordDict(), dst_node_id=index + 1, message_type="train")
            content = RecordDict({
                ARRAYS: ArrayRecord(kept),
                METRICS: MetricRecord({NUM_EXAMPLES: 100 + index}),
                CONFIG: ConfigRecord({"site": self.sites[index]}),
            })  # fmt: skip
            yield Message(content, reply_to=request)

    def start(self, name: str, way: str) -> Callable[[Iterable[Message]], Any]:
        """A strategy that has sent its requests."""
        grid: Any = NoGrid(self.count)
        if way == "flower":
            theirs = PAIRS[name].flowers()
            list(theirs.configure_train(1, self.model, ConfigRecord(), grid))
            return lambda replies: theirs.aggregate_train(1, replies)
        nodes = {site: number for number, site in enumerate(self.sites, start=1)}
        ours = PAIRS[name].ours(roster=Roster(nodes=nodes, trainers=tuple(nodes), evaluators=()))
        list(ours.configure_train(1, self.model, ConfigRecord(), grid))
        return lambda replies: ours.aggregate_train(1, replies)

    def turn(self, name: str, way: str) -> float:
        """Seconds of processor time of one aggregation."""
        run, replies = self.start(name, way), self.arriving(way)
        started = time.process_time()
        run(replies)
        return time.process_time() - started

    def read(self) -> float:
        """Seconds of processor time of reading all replies once."""
        arrays = [np.frombuffer(each.data, np.float32, -1, 128) for kept in self._arrays for each in kept.values()]
        started = time.process_time()
        for array in arrays:
            array.max()
        return time.process_time() - started

    def arriving(self, way: str) -> Iterable[Message]:
        """All replies, or one after another."""
        return self.replies() if way == "stream" else list(self.replies())

    def growth(self, name: str, way: str) -> float:
        """Peak memory of one aggregation, in models."""
        run, replies = self.start(name, way), self.arriving(way)
        tracemalloc.start()
        run(replies)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return round(peak / (NUMBER_BYTES * self.num_numbers), 2)


def measure(round_: Round, name: str, turns: int) -> dict[str, float]:
    """Gigabytes of replies a second for each way, how many times Flower's that is, and the memory of each."""
    gigabytes = NUMBER_BYTES * round_.count * round_.num_numbers / 1e9
    seconds: dict[str, list[float]] = {"flower": [], "list": [], "stream": [], "read": []}
    for _ in range(turns):
        for way, taken in seconds.items():
            taken.append(round_.read() if way == "read" else round_.turn(name, way))
    median = {way: statistics.median(taken) for way, taken in seconds.items()}
    return {
        "ratio_to_flower": round(median["flower"] / median["list"], 2),
        "stream_ratio_to_flower": round(median["flower"] / median["stream"], 2),
        **{f"{way}_gb_per_second": round(gigabytes / taken, 3) for way, taken in median.items()},
        "extra_models": round_.growth(name, "list"),
        "stream_extra_models": round_.growth(name, "stream"),
        "flower_extra_models": round_.growth(name, "flower"),
    }


def summarise(by_size: dict[str, dict[str, dict[str, float]]], names: list[str]) -> dict[str, Any]:
    """The worse figures of the two sizes, and both beside."""
    summary: dict[str, Any] = {}
    for name in names:
        sizes = {size: figures[name] for size, figures in by_size.items()}
        summary[name] = {
            "ratio_to_flower": min(each["ratio_to_flower"] for each in sizes.values()),
            "extra_models": max(each["extra_models"] for each in sizes.values()),
            "sizes": sizes,
        }
    return summary


def show(summary: dict[str, Any]) -> None:
    """One row for each algorithm and size."""
    table = Table(title="Aggregation, Flower's own strategies and ours")
    for heading in ("algorithm", "size", "Flower GB/s", "list GB/s", "x", "stream GB/s", "x"):
        table.add_column(heading, justify="right")
    for heading in ("Flower's extra models", "list", "stream"):
        table.add_column(heading, justify="right")
    for name, entry in summary.items():
        for size, each in entry["sizes"].items():
            keys = (
                *("flower_gb_per_second", "list_gb_per_second", "ratio_to_flower"),
                *("stream_gb_per_second", "stream_ratio_to_flower"),
                *("flower_extra_models", "extra_models", "stream_extra_models"),
            )
            table.add_row(name, size, *(str(each[key]) for key in keys))
    Console(width=120).print(table)


def main(
    turns: Annotated[int, typer.Option(help="Of each way.")] = 5,
    only: Annotated[str, typer.Option(help="Algorithms, with commas between them.")] = ",".join(PAIRS),
    results: Annotated[Path | None, typer.Option(help="File to keep the result in.")] = None,
    commit: Annotated[str, typer.Option(help="Said in the result: git rev-parse --short HEAD.")] = "not said",
) -> None:
    """Measure both sizes, print a table, then the figures."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # whose messages these are
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    names = only.split(",")
    by_size: dict[str, dict[str, dict[str, float]]] = {}
    for size in SIZES:
        round_ = Round(size)
        by_size[size] = {name: measure(round_, name, turns) for name in names}
    summary = summarise(by_size, names)
    show(summary)
    if results is not None:
        about = {
            "script": "benchmarks/aggregation.py",
            "commit": commit,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores, one thread, median of {turns} turns",
            "not_measured": "a network, replies of other types than float32, more than 100 hospitals",
        }
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps({"about": about, "figures": summary}, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    typer.run(main)
