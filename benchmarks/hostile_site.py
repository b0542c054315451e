"""One of five hospitals sends what ruins a mean: which strategies keep their model?

Data: the breast-cancer study (569 patients) as it ships, dealt to five hospitals by every seed (Dirichlet by class,
alpha = 5), 30 % of each hospital's patients held out. Each reads a file of its own through its own site.toml, and the
runs are the product's. The hostile hospital is the real app with a wrapper round it, in real messages, in every round:
``backwards`` sends its own update times -10, ``random`` numbers of a normal distribution, as long as that.

A figure is the AUROC on the held-out patients of the four honest hospitals together; the loss is against the same
strategy where the fifth hospital is honest too. Robust strategies count all hospitals alike, FedAvg by examples.

Settings say that one hospital of five may be hostile, and nothing of what it does. ``update-bound`` and ``clip-radius``
are chosen without any attack, as a study could: the smallest of `BOUNDS` with which the model, on validation patients
(a third of those trained on, in the deals of `TUNING_SEEDS`), is no more than `TOLERANCE` of AUROC worse than FedAvg's.
The last line is JSON.

    python benchmarks/hostile_site.py --results benchmarks/results/hostile_site.json --commit $(git rev-parse HEAD)
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from flwr.app import Context, Message
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from runs import Handler, keep_result, run_study, write_site
from sklearn.datasets import load_breast_cancer

from fl_client.data.split import hold_out, split_by_class
from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.messages import ARRAYS, TRAIN, request_arrays, site_of_reply
from fl_contract.metrics import merge_measurements
from fl_contract.study_file import Scalar
from fl_server.summary import read_evaluations

STUDY = "breast-cancer"
NUM_HOSPITALS, ALPHA, TEST_SHARE = 5, 5.0, 0.3
HOSTILE = f"hospital-{NUM_HOSPITALS}"
FACTOR = 10.0
LARGEST_LOSS = 0.01
"""Of AUROC, that a robust strategy may lose."""

TUNING_SEEDS, BOUNDS, TOLERANCE = (101, 102), (0.1, 0.3, 1.0, 3.0, 10.0), 0.002
PROTOCOL: dict[str, Scalar] = {"privacy.mechanism": "none", "num-rounds": 20, "federation.measure-every": 20}

STRATEGIES: dict[str, dict[str, Scalar]] = {
    "fedavg": {"strategy.name": "fedavg"},
    "median": {"strategy.name": "median"},
    "trimmed-mean": {"strategy.name": "trimmed-mean", "strategy.trim-fraction": 0.2},
    "krum": {"strategy.name": "krum", "strategy.num-hostile": 1},
    "multi-krum": {"strategy.name": "krum", "strategy.num-hostile": 1, "strategy.num-chosen": 3},
    "geometric-median": {"strategy.name": "geometric-median"},
    "norm-bounding": {"strategy.name": "norm-bounding"},
    "centred-clipping": {"strategy.name": "centred-clipping"},
}
BOUND_OF = {"norm-bounding": "strategy.update-bound", "centred-clipping": "strategy.clip-radius"}
"""Settings that follow from the size of honest updates, by strategy."""

Attack = Callable[[Arrays, Arrays, np.random.Generator], Arrays]
"""What is sent, made of the received model and the honest answer."""


def send_backwards(received: Arrays, honest: Arrays, generator: np.random.Generator) -> Arrays:
    """The update ten times as long, in the opposite direction."""
    del generator
    return {name: (start - FACTOR * (honest[name] - start)).astype(start.dtype) for name, start in received.items()}


def send_random(received: Arrays, honest: Arrays, generator: np.random.Generator) -> Arrays:
    """An update of random direction, ten times as long as the honest one."""
    noise = {name: generator.normal(size=start.shape) for name, start in received.items()}
    length = FACTOR * _norm({name: honest[name] - start for name, start in received.items()}) / _norm(noise)
    return {name: (start + length * noise[name]).astype(start.dtype) for name, start in received.items()}


ATTACKS: dict[str, Attack] = {"backwards": send_backwards, "random": send_random}


def _norm(update: Mapping[str, NDArray[np.floating]]) -> float:
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in update.values())))


def make_hostile(app: Handler, attack: Attack, seed: int) -> Handler:
    """The hospitals' app, of which one sends what the attack makes of its honest answer."""
    generator = np.random.default_rng(seed)

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == TRAIN and site_of_reply(reply) == HOSTILE:
            honest = from_array_record(reply.content.array_records[ARRAYS])
            reply.content[ARRAYS] = to_array_record(attack(request_arrays(message), honest, generator))
        return reply

    return answer


def deal(seed: int, *, validate: bool) -> dict[str, pd.DataFrame]:
    """The hospitals' patients; ``test`` are those held out, or validation patients out of those trained on."""
    data = load_breast_cancer()
    labels = data.target_names[data.target].astype(str)
    patients = pd.DataFrame(data.data, columns=list(data.feature_names)).assign(
        outcome=labels, patient=np.arange(len(labels))
    )
    generator = np.random.default_rng(seed)
    tables = {}
    for number, rows in enumerate(split_by_class(labels, num_parts=NUM_HOSPITALS, alpha=ALPHA, generator=generator)):
        train, test = hold_out(labels, rows, fraction=TEST_SHARE, generator=generator)
        if validate:
            train, test = hold_out(labels, train, fraction=1 / 3, generator=generator)
        folds = ["train"] * len(train) + ["test"] * len(test)
        tables[f"hospital-{number + 1}"] = patients.loc[[*train, *test]].assign(fold=folds)
    return tables


def run(strategy: Mapping[str, Scalar], attack: Attack | None, seed: int, *, validate: bool = False) -> float:
    """AUROC of the honest hospitals' patients together after one run."""
    tables = deal(seed, validate=validate)
    weighting = "examples" if strategy["strategy.name"] == "fedavg" else "equal"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sites = [write_site(folder / hospital, hospital, table) for hospital, table in tables.items()]
        ran = run_study(
            folder / "run",
            sites,
            {"study": STUDY, "seed": seed, **PROTOCOL, "strategy.weighting": weighting, **strategy},
            wrap=(lambda app: app) if attack is None else partial(make_hostile, attack=attack, seed=seed),
        )
        measured = read_evaluations(ran / "evaluation.json")
    honest = [measured[hospital] for hospital in tables if hospital != HOSTILE]
    return merge_measurements(honest).figures()["auroc"]


def choose_bounds() -> dict[str, dict[str, Scalar]]:
    """All strategies with their settings; bounds by the rule above."""
    expected = _validate(STRATEGIES["fedavg"])
    chosen = dict(STRATEGIES)
    for label, key in BOUND_OF.items():
        for bound in BOUNDS:
            chosen[label] = {**STRATEGIES[label], key: bound}
            if _validate(chosen[label]) >= expected - TOLERANCE:
                break
    return chosen


def _validate(strategy: Mapping[str, Scalar]) -> float:
    return float(np.mean([run(strategy, None, seed, validate=True) for seed in TUNING_SEEDS]))


def main(
    seeds: Annotated[int, typer.Option(help="Deals of the patients, from seed 1.")] = 5,
    workers: Annotated[int, typer.Option(help="Runs at a time, each on one core.")] = 2,
    results: Annotated[Path | None, typer.Option(help="File to keep the result in.")] = None,
    commit: Annotated[str, typer.Option(help="Said in the result: git rev-parse --short HEAD.")] = "not said",
) -> None:
    """Run every strategy without and with each attack, print the table and the figures."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which import torch after this
    strategies = choose_bounds()
    modes: dict[str, Attack | None] = {"honest": None, **ATTACKS}
    todo = [(label, mode, seed) for label in strategies for mode in modes for seed in range(1, seeds + 1)]
    rows: dict[str, dict[str, list[float]]] = {label: {mode: [] for mode in modes} for label in strategies}
    arguments = zip(*((strategies[label], modes[mode], seed) for label, mode, seed in todo), strict=True)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        done = track(executor.map(run, *arguments), "runs", total=len(todo), console=Console(stderr=True))
        for (label, mode, seed), auroc in zip(todo, done, strict=True):
            print(f"{label}, {mode}, seed {seed}: {auroc:.4f}", flush=True)
            rows[label][mode].append(auroc)
    figures = {label: summarise(row) for label, row in rows.items()}
    print_table(figures, seeds)
    conclusion: dict[str, Any] = {
        "largest_loss_of_a_robust_one": max(
            figures[label][f"{attack}_loss"] for label in figures if label != "fedavg" for attack in ATTACKS
        ),
    }
    conclusion["holds"] = conclusion["largest_loss_of_a_robust_one"] < LARGEST_LOSS
    if results is not None:
        about = {
            "script": "benchmarks/hostile_site.py",
            "commit": commit,
            "seeds": [1, seeds],
            "measure": "AUROC on held-out patients of the four honest hospitals together",
            "protocol": PROTOCOL,
            "settings": strategies,
            "not_measured": "attacks that know the rule, more hostile hospitals, larger models",
        }
        keep_result(results, about=about, figures=figures | {"conclusion": conclusion}, rows=rows)
    print(json.dumps(figures | {"conclusion": conclusion}))


def summarise(row: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Means over the seeds, and what each attack costs: the mean, and the most that it cost with one seed."""
    honest = np.array(row["honest"])
    figures = {"honest": float(honest.mean())}
    for attack in ATTACKS:
        losses = honest - np.array(row[attack])
        figures |= {
            attack: float(np.mean(row[attack])),
            f"{attack}_loss": float(losses.mean()),
            f"{attack}_largest_loss": float(losses.max()),
        }
    return {key: round(value, 4) for key, value in figures.items()}


def print_table(figures: Mapping[str, Mapping[str, float]], seeds: int) -> None:
    """Print the table."""
    table = Table(title=f"AUROC at the honest hospitals, mean of {seeds} deals; in brackets what the attack costs")
    for column in ("strategy", "no attack", *ATTACKS):
        table.add_column(column)
    for label, row in figures.items():
        attacked = [f"{row[attack]:.4f} ({row[f'{attack}_loss']:+.4f})" for attack in ATTACKS]
        table.add_row(label, f"{row['honest']:.4f}", *attacked)
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
