"""Every strategy in the worst case of unequal hospitals: one holds 80 % of the patients, three little but one class.

Data: UCI Heart Disease (740 patients), all hospitals' patients together, dealt anew to four by every seed. The class
mix of each of the three small ones is drawn from a Dirichlet distribution with alpha = 0.1; the largest gets the rest.
Each hospital reads a file of its own through its own site.toml, and the runs are the product's.

Held out are 40 % of all patients, the same for every seed and never seen by the choice of settings. They are dealt
evenly, class by class: an AUROC asks for both classes and does not depend on their mix. A figure is that of what each
hospital would use in the end, measured by itself: the joint model, or its own. ``worst`` is the hospital with the
lowest AUROC, ``pooled`` that of all held-out patients together (of hospitals alone: their mean).

Settings are chosen for each strategy alone and by one rule: of the choices in ``STRATEGIES``, as many for each, the
one with the highest AUROC of the hospitals on average, on validation patients, over the deals of ``TUNING_SEEDS``.
Validation patients are a third of those not held out. The last line is JSON.

    python benchmarks/heterogeneity.py --data FOLDER --results benchmarks/results/heterogeneity.json
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from runs import SHARED, keep_result, pool, run_study, write_site
from safetensors.torch import load_file
from sklearn.model_selection import train_test_split

from fl_client.data.public_hospitals import Tables, read_public_hospitals
from fl_client.evaluation import evaluate
from fl_client.preprocessing import prepare
from fl_client.settings import read_site_settings
from fl_client.site import Site
from fl_contract.metrics import merge_measurements
from fl_contract.metrics.measurement import Measurement
from fl_contract.strategy_settings import strategy_names
from fl_contract.study_file import Scalar, load_study
from fl_server.summary import read_evaluations

STUDY = "heart-disease"
NUM_HOSPITALS, LARGEST_SHARE, ALPHA = 4, 0.8, 0.1
TEST_SHARE, VALIDATION_SHARE = 0.4, 1 / 3
TUNING_SEEDS = (101,)
PROTOCOL: dict[str, Scalar] = {
    "privacy.mechanism": "none",
    "model.kind": "mlp",
    "model.hidden-size": 16,
    "num-rounds": 8,
    "federation.measure-every": 8,
    "training.local-steps": 10,
    "training.batch-size": 16,
}
"""What all strategies have in common: a perceptron has a body and a head, and drifts further than a linear model."""

RATES = (0.01, 0.03, 0.1, 0.3)
NUM_CHOICES = 4


def grid(**settings: Sequence[Scalar]) -> list[dict[str, Scalar]]:
    """All combinations of values of settings of a strategy, or of ``learning_rate`` of local training."""
    choices: list[dict[str, Scalar]] = [{}]
    for name, values in settings.items():
        key = "training.learning-rate" if name == "learning_rate" else f"strategy.{name.replace('_', '-')}"
        choices = [choice | {key: value} for choice in choices for value in values]
    return choices


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the table.

    Attributes:
        name: Of the strategy in a study.
        choices: Settings to choose from, `NUM_CHOICES` of them.
        fixed: Settings that are the same for all choices.
    """

    name: str
    choices: list[dict[str, Scalar]]
    fixed: Mapping[str, Scalar]


def entry(name: str, choices: list[dict[str, Scalar]] | None = None, **fixed: Scalar) -> Entry:
    """A line; without choices the learning rates. ``rounds`` are of the run, all else is of the strategy."""
    settings: dict[str, Scalar] = {"strategy.name": name}
    if (rounds := fixed.pop("rounds", None)) is not None:
        settings |= {"num-rounds": rounds, "federation.measure-every": rounds}
    settings |= {f"strategy.{key.replace('_', '-')}": value for key, value in fixed.items()}
    return Entry(name=name, choices=choices or grid(learning_rate=RATES), fixed=settings)


SERVER_GRID = grid(learning_rate=(0.03, 0.1), server_learning_rate=(0.03, 0.1))

STRATEGIES: dict[str, Entry] = {
    "fedavg": entry("fedavg"),
    "fedavg, equal weights": entry("fedavg", weighting="equal"),
    "fedavgm": entry("fedavgm", grid(learning_rate=(0.03, 0.1), server_momentum=(0.5, 0.9))),
    "fedadam": entry("fedadam", SERVER_GRID),
    "fedyogi": entry("fedyogi", SERVER_GRID),
    "fedadagrad": entry("fedadagrad", SERVER_GRID),
    "fedprox": entry("fedprox", grid(learning_rate=(0.03, 0.1), proximal_mu=(0.1, 1.0))),
    "scaffold": entry("scaffold"),
    "scaffold, equal weights": entry("scaffold", weighting="equal"),
    "feddyn": entry("feddyn", grid(learning_rate=(0.03, 0.1), dynamic_alpha=(0.1, 1.0))),
    "fednova": entry("fednova"),
    "cyclic": entry("cyclic", rounds=8 * NUM_HOSPITALS),
    "fedsgd": Entry(
        name="fedsgd",
        choices=grid(learning_rate=(0.1, 0.3, 1.0, 3.0)),
        fixed={
            "strategy.name": "fedsgd",
            "training.local-steps": 1,
            "num-rounds": 8 * 10,
            "federation.measure-every": 8 * 10,
        },
    ),
    "q-fedavg": entry("q-fedavg", grid(learning_rate=(0.03, 0.1), fairness=(0.2, 1.0))),
    "fedbuff": entry("fedbuff"),
    "one-shot-ensemble": Entry(
        name="one-shot-ensemble",
        choices=grid(learning_rate=RATES),
        fixed={
            "strategy.name": "one-shot-ensemble",
            "strategy.weighting": "equal",
            "training.local-steps": 8 * 10,
            "num-rounds": 1,
            "federation.measure-every": 1,
        },
    ),
    "fedbn": Entry(
        name="fedbn",
        choices=grid(learning_rate=RATES),
        fixed={"strategy.name": "fedbn", "model.norm": "layer"},
    ),
    "fedper": entry("fedper"),
    "fedrep": entry("fedrep"),
    "ditto": entry("ditto", grid(learning_rate=(0.03, 0.1), personal_pull=(0.1, 1.0))),
    "apfl": entry("apfl", grid(learning_rate=(0.03, 0.1), mixture=(0.25, 0.75))),
    "fine-tuning": entry("fine-tuning"),
    "median": entry("median", weighting="equal"),
    "geometric-median": entry("geometric-median", weighting="equal"),
    "trimmed-mean": entry("trimmed-mean", weighting="equal", trim_fraction=0.25),
    "krum": entry("krum", weighting="equal"),
    "multi-krum": entry("krum", weighting="equal", num_chosen=3),
    "norm-bounding": entry(
        "norm-bounding", grid(learning_rate=(0.03, 0.1), update_bound=(0.3, 1.0)), weighting="equal"
    ),
    "centred-clipping": entry(
        "centred-clipping", grid(learning_rate=(0.03, 0.1), clip_radius=(0.3, 1.0)), weighting="equal"
    ),
}
"""Every line of the table; a new strategy joins by one."""

PERSONAL = ("fedbn", "fedper", "fedrep", "ditto", "apfl", "fine-tuning")
"""Strategies by which a hospital ends with a model of its own; FedBN has a layer to normalise in beside the others."""

BASELINES = ("local", "pooled")


def check_entries() -> None:
    """Stop where a strategy that a study may name has no line, or a line names none, or has more choices."""
    named = {each.name for each in STRATEGIES.values()}
    if missing := sorted(set(strategy_names()) - named):
        raise SystemExit(f"strategies {missing} have no settings here; give each a line of STRATEGIES")
    if unknown := sorted(named - set(strategy_names())):
        raise SystemExit(f"STRATEGIES names {unknown}; expected names that a study may give")
    if uneven := [label for label, each in STRATEGIES.items() if len(each.choices) != NUM_CHOICES]:
        raise SystemExit(f"{uneven} do not have {NUM_CHOICES} choices of settings; give all as many")


def divide(patients: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two parts with the same class mix, the second with a share of the patients."""
    first, second = train_test_split(patients, test_size=share, random_state=seed, stratify=patients["outcome"])
    return first, second


def deal(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> Tables:
    """The patients of four hospitals, the first with 80 % of those trained on."""
    generator = np.random.default_rng(seed)
    ranks = test.sample(frac=1, random_state=seed).groupby("outcome").cumcount() % NUM_HOSPITALS
    left = {name: list(generator.permutation(rows)) for name, rows in train.groupby("outcome").groups.items()}
    size = round((1 - LARGEST_SHARE) * len(train) / (NUM_HOSPITALS - 1))
    parts = []
    for _ in range(NUM_HOSPITALS - 1):
        counts = generator.multinomial(size, generator.dirichlet(np.full(len(left), ALPHA)))
        parts.append([left[name].pop() for name, count in zip(left, counts, strict=True) for _ in range(count)])
    parts.insert(0, [row for rows in left.values() for row in rows])
    return {
        f"hospital-{number + 1}": pd.concat([
            train.loc[rows].assign(fold="train"), test.loc[ranks.index[ranks == number]].assign(fold="test")
        ])
        for number, rows in enumerate(parts)
    }  # fmt: skip


def federate(tables: Tables, settings: Mapping[str, Scalar], seed: int) -> dict[str, float]:
    """AUROC of what each hospital ends with: on its own held-out patients, and on all of them (``pooled``)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sites = [write_site(folder / hospital, hospital, table) for hospital, table in tables.items()]
        run = run_study(folder / "run", sites, {"study": STUDY, "seed": seed, **PROTOCOL, **settings})
        return _figures(read_evaluations(run / "evaluation.json"))


def train_alone(tables: Tables, settings: Mapping[str, Scalar], seed: int) -> dict[str, float]:
    """AUROC of hospitals that train by themselves; ``pooled`` is their mean."""
    alone = [federate({hospital: table}, settings, seed) for hospital, table in tables.items()]
    figures = {hospital: figure[hospital] for hospital, figure in zip(tables, alone, strict=True)}
    return {**figures, "pooled": float(np.mean(list(figures.values())))}


def train_pooled(tables: Tables, settings: Mapping[str, Scalar], seed: int) -> dict[str, float]:
    """The same where one place holds everybody's patients, which is not allowed."""
    overrides: dict[str, Scalar] = {"seed": seed, **PROTOCOL, **settings}
    study = load_study(STUDY, overrides=overrides)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        everyone = write_site(folder / "everyone", "everyone", pool(tables))
        model = study.build_model()
        model.load_state_dict(
            load_file(run_study(folder / "run", [everyone], {"study": STUDY, **overrides}) / "model.safetensors")
        )
        measured = {}
        for hospital, table in tables.items():
            path = write_site(folder / hospital, hospital, table)
            site = Site(settings=read_site_settings(path), folder=path.parent, study=study)
            records = site.load_records()
            measured[hospital] = evaluate(model, prepare(records.test, study.data_schema), study.task)
        return _figures(measured)


def _figures(measured: Mapping[str, Measurement]) -> dict[str, float]:
    parts = {"pooled": merge_measurements(measured.values()), **measured}
    return {name: each.figures()["auroc"] for name, each in parts.items()}


def run_one(data: Path, label: str, choice: Mapping[str, Scalar], seed: int, *, validate: bool) -> dict[str, float]:
    """One run on the deal of a seed; measured on validation patients or on those held out."""
    patients = pool(read_public_hospitals(STUDY, data / "heart_disease"))
    train, test = divide(patients, TEST_SHARE, 0)
    if validate:
        train, test = divide(train, VALIDATION_SHARE, seed)
    tables = deal(train, test, seed)
    if label == "local":
        return train_alone(tables, choice, seed)
    if label == "pooled":
        return train_pooled(tables, choice, seed)
    return federate(tables, {**STRATEGIES[label].fixed, **choice}, seed)


Task = tuple[str, int, int]
"""Label, number of the choice, seed."""


def run_all(
    tasks: Iterable[Task], choices: Mapping[str, Sequence[Mapping[str, Scalar]]], work: Callable[..., Any], title: str
) -> dict[Task, dict[str, float]]:
    """Do all runs, as many at a time as there are workers."""
    futures: dict[Future[dict[str, float]], Task] = {
        work(task[0], choices[task[0]][task[1]], task[2]): task for task in tasks
    }
    found = {}
    for future in track(as_completed(futures), title, total=len(futures), console=Console(stderr=True)):
        task, figures = futures[future], future.result()
        print(f"{title}: {task}: pooled {figures['pooled']:.4f}, worst {worst(figures):.4f}", flush=True)
        found[task] = figures
    return found


def worst(figures: Mapping[str, float]) -> float:
    """AUROC of the hospital with the lowest."""
    return min(value for name, value in figures.items() if name != "pooled")


def mean_of_hospitals(figures: Mapping[str, float]) -> float:
    """Mean AUROC of the hospitals."""
    return float(np.mean([value for name, value in figures.items() if name != "pooled"]))


def choose(label: str, tried: Mapping[Task, Mapping[str, float]]) -> int:
    """Number of the choice with the highest AUROC of the hospitals on average; of equal ones the first."""
    means = [sum(mean_of_hospitals(tried[label, n, seed]) for seed in TUNING_SEEDS) for n in range(NUM_CHOICES)]
    return int(np.argmax(means))


def main(
    data: Annotated[Path, typer.Option(help="Folder with the data sets.")] = SHARED,
    seeds: Annotated[int, typer.Option(help="Deals of the patients, from seed 1.")] = 5,
    only: Annotated[str, typer.Option(help="Only these lines of the table, by semicolon.")] = "",
    workers: Annotated[int, typer.Option(help="Runs at a time, each on one core.")] = 2,
    results: Annotated[Path | None, typer.Option(help="File to keep the result in.")] = None,
    commit: Annotated[str, typer.Option(help="Said in the result: git rev-parse --short HEAD.")] = "not said",
) -> None:
    """Choose settings, run every strategy with every seed, print the table and the figures."""
    check_entries()
    if not (data / "heart_disease").is_dir():
        raise SystemExit(f"{data} does not hold heart_disease; give the folder of the data sets with --data")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, which import torch after this
    choices: dict[str, list[dict[str, Scalar]]] = {label: grid(learning_rate=RATES) for label in BASELINES}
    choices |= {label: each.choices for label, each in STRATEGIES.items()}
    if only:
        choices = {label: choices[label] for label in only.split(";")}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        tried = run_all(
            [(label, n, seed) for label in choices for n in range(NUM_CHOICES) for seed in TUNING_SEEDS],
            choices,
            partial(executor.submit, partial(run_one, data, validate=True)),
            "choosing settings",
        )
        best = {label: choose(label, tried) for label in choices}
        runs = run_all(
            [(label, best[label], seed) for seed in range(1, seeds + 1) for label in choices],
            choices,
            partial(executor.submit, partial(run_one, data, validate=False)),
            "measuring",
        )
    by_label = {label: [runs[label, best[label], seed] for seed in range(1, seeds + 1)] for label in choices}
    figures = {label: summarise(each) for label, each in by_label.items()}
    print_table(figures, {label: choices[label][best[label]] for label in choices}, seeds)
    conclusion = conclude(by_label) if "fedavg" in by_label else {}
    if results is not None:
        about = {
            "script": "benchmarks/heterogeneity.py",
            "commit": commit,
            "seeds": [1, seeds],
            "measure": "AUROC on held-out patients of what each hospital ends with",
            "protocol": PROTOCOL,
            "settings": {label: {**_fixed(label), **choices[label][best[label]]} for label in choices},
        }
        keep_result(results, about=about, figures=figures | {"conclusion": conclusion}, rows=by_label)
    print(json.dumps(figures | {"conclusion": conclusion}))


def _fixed(label: str) -> Mapping[str, Scalar]:
    return STRATEGIES[label].fixed if label in STRATEGIES else {}


def summarise(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean and deviation over the seeds."""
    pooled, lowest = np.array([run["pooled"] for run in runs]), np.array([worst(run) for run in runs])
    return {
        "pooled": round(float(pooled.mean()), 4),
        "pooled_deviation": round(float(pooled.std()), 4),
        "worst": round(float(lowest.mean()), 4),
        "worst_deviation": round(float(lowest.std()), 4),
    }


def conclude(by_label: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """By how much SCAFFOLD, FedProx and personalised strategies beat FedAvg's worst hospital, seed by seed."""
    baseline = np.array([worst(run) for run in by_label["fedavg"]])
    rivals = [
        label
        for label in by_label
        if label in STRATEGIES and STRATEGIES[label].name in ("scaffold", "fedprox", *PERSONAL)
    ]
    gains = {label: np.array([worst(run) for run in by_label[label]]) - baseline for label in rivals}
    return {
        "gain_of_worst": {label: round(float(gain.mean()), 4) for label, gain in gains.items()},
        "seeds_that_gain": {label: int((gain > 0).sum()) for label, gain in gains.items()},
        "any_beats_fedavg": any(gain.mean() > 0 for gain in gains.values()),
    }


def print_table(
    figures: Mapping[str, Mapping[str, float]], chosen: Mapping[str, Mapping[str, Scalar]], seeds: int
) -> None:
    """Print the table."""
    table = Table(title=f"AUROC on held-out patients, mean ± deviation over {seeds} deals")
    for column in ("strategy", "pooled", "worst hospital", "chosen settings"):
        table.add_column(column)
    for label, row in figures.items():
        table.add_row(
            label,
            f"{row['pooled']:.4f} ± {row['pooled_deviation']:.4f}",
            f"{row['worst']:.4f} ± {row['worst_deviation']:.4f}",
            ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in chosen[label].items()),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
