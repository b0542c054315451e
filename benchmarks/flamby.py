"""Federated training without privacy at real hospitals, against FLamby's published figures on the same patients.

Fed-Heart-Disease (four hospitals, accuracy) by FLamby's protocol: 15 rounds of 100 local updates of batch 4. And
Fed-TCGA-BRCA (six regions, C-index of a linear Cox model). Both in FLamby's own split. Each hospital reads a file of
its own through its own site.toml, and the runs are the product's. Features are scaled by the study's public ranges,
where FLamby standardises the heart data by each hospital's own statistics.

Learning rates were chosen once for all seeds, by ``--tune``: the mean over four folds of the training patients. A
figure is the final model's on all hospitals' held-out patients together, for the C-index with pairs across hospitals,
as FLamby's "Pooled Test". The last line is JSON.

    python benchmarks/flamby.py --results benchmarks/results/flamby.json --commit $(git rev-parse --short HEAD)
"""

import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from runs import SHARED, keep_result, pool, run_study, write_site
from safetensors.torch import load_file

from fl_client.data.public_hospitals import Tables, read_public_hospitals
from fl_client.evaluation import evaluate
from fl_client.preprocessing import prepare
from fl_client.settings import read_site_settings
from fl_client.site import Site
from fl_contract.metrics import merge_measurements
from fl_contract.metrics.measurement import Measurement
from fl_contract.study import Study
from fl_contract.study_file import Scalar, load_study

SEEDS = (42, 43, 44, 45, 46)
NUM_FOLDS = 4


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A data set and the ways to train on it.

    Attributes:
        study: By its name; a method may take another.
        dataset: Of its hospitals.
        measure: That models are compared by.
        protocol: What all methods have in common.
        methods: Settings of each method; chosen by ``--tune``.
        grid: What ``--tune`` chooses from, by setting, for each method.
        theirs: FLamby's name of each method.
    """

    study: str
    dataset: str
    measure: str
    protocol: Mapping[str, Scalar]
    methods: Mapping[str, Mapping[str, Scalar]]
    grid: Mapping[str, Mapping[str, tuple[Scalar, ...]]]
    theirs: Mapping[str, str] = field(
        default_factory=lambda: {
            "fedavg": "FedAvg100",
            "fedprox": "FedProx100",
            "scaffold": "Scaffold100",
            "fedadam": "FedAdam100",
            "fedyogi": "FedYogi100",
            "fedadagrad": "FedAdagrad100",
            "cyclic": "Cyclic100",
            "pooled": "Pooled Training",
        }
    )


BENCHMARKS = {
    "heart": Benchmark(
        study="heart-disease",
        dataset="heart-disease",
        measure="accuracy",
        protocol={
            "privacy.mechanism": "none",
            "num-rounds": 15,
            "training.local-steps": 100,
            "training.batch-size": 4,
        },
        methods={
            "fedavg": {"training.learning-rate": 0.003},
            "fedprox": {"training.learning-rate": 0.01, "strategy.proximal-mu": 0.1},
            "scaffold": {"training.learning-rate": 0.003},
            "feddyn": {"training.learning-rate": 0.01, "strategy.dynamic-alpha": 1.0},
            "fedadam": {"training.learning-rate": 0.03, "strategy.server-learning-rate": 0.03},
            "fedyogi": {"training.learning-rate": 0.03, "strategy.server-learning-rate": 0.03},
            "fedadagrad": {"training.learning-rate": 0.03, "strategy.server-learning-rate": 0.1},
            "cyclic": {"training.learning-rate": 0.003},
            "fedavgm": {"training.learning-rate": 0.003, "strategy.server-momentum": 0.5},
            "q-fedavg": {"training.learning-rate": 0.01, "strategy.fairness": 1.0},
            "median": {"training.learning-rate": 0.01, "strategy.weighting": "equal"},
            "geometric-median": {"training.learning-rate": 0.01, "strategy.weighting": "equal"},
            "norm-bounding": {
                "training.learning-rate": 0.01,
                "strategy.weighting": "equal",
                "strategy.update-bound": 0.3,
            },
            "pooled": {"training.learning-rate": 0.01},
        },
        grid={
            "fedavg": {"study": ("heart-disease", "heart-disease-flamby"), "training.learning-rate": (0.003, 0.01)},
            "fedprox": {"training.learning-rate": (0.01,), "strategy.proximal-mu": (0.1, 1.0)},
            "scaffold": {"training.learning-rate": (0.003, 0.01)},
            "feddyn": {"training.learning-rate": (0.01,), "strategy.dynamic-alpha": (0.1, 1.0)},
            "fedadam": {"training.learning-rate": (0.03,), "strategy.server-learning-rate": (0.03, 0.1)},
            "fedyogi": {"training.learning-rate": (0.03,), "strategy.server-learning-rate": (0.03, 0.1)},
            "fedadagrad": {"training.learning-rate": (0.03,), "strategy.server-learning-rate": (0.03, 0.1)},
            "cyclic": {"training.learning-rate": (0.003, 0.01)},
            "fedavgm": {"training.learning-rate": (0.003, 0.01), "strategy.server-momentum": (0.5, 0.9)},
            "q-fedavg": {"training.learning-rate": (0.003, 0.01), "strategy.fairness": (0.1, 1.0)},
            "median": {"strategy.weighting": ("equal",), "training.learning-rate": (0.003, 0.01)},
            "geometric-median": {"strategy.weighting": ("equal",), "training.learning-rate": (0.003, 0.01)},
            "norm-bounding": {
                "strategy.weighting": ("equal",),
                "training.learning-rate": (0.003, 0.01),
                "strategy.update-bound": (0.3, 1.0),
            },
            "pooled": {"training.learning-rate": (0.003, 0.01, 0.03)},
        },
    ),
    "tcga": Benchmark(
        study="tcga-brca",
        dataset="tcga-brca",
        measure="c_index",
        protocol={},
        methods={
            "fedavg": {"training.local-steps": 5, "training.learning-rate": 0.3},
            "fedprox": {
                "training.local-steps": 5,
                "training.learning-rate": 0.3,
                "strategy.proximal-mu": 0.01,
            },
            "scaffold": {"training.local-steps": 20, "training.learning-rate": 0.3},
            "feddyn": {
                "training.local-steps": 20,
                "training.learning-rate": 0.3,
                "strategy.dynamic-alpha": 0.1,
            },
            "fedadam": {"training.learning-rate": 0.1, "strategy.server-learning-rate": 0.1},
            "fedyogi": {"training.learning-rate": 0.1, "strategy.server-learning-rate": 0.1},
            "fedadagrad": {"training.learning-rate": 0.1, "strategy.server-learning-rate": 0.3},
            "cyclic": {"training.local-steps": 5, "training.learning-rate": 0.1},
            "pooled": {"training.learning-rate": 0.3},
        },
        grid={
            "fedavg": {"training.local-steps": (5, 20), "training.learning-rate": (0.1, 0.3)},
            "fedprox": {
                "training.local-steps": (5, 20),
                "training.learning-rate": (0.3,),
                "strategy.proximal-mu": (0.01, 0.1),
            },
            "scaffold": {"training.local-steps": (5, 20), "training.learning-rate": (0.1, 0.3)},
            "feddyn": {
                "training.local-steps": (5, 20),
                "training.learning-rate": (0.3,),
                "strategy.dynamic-alpha": (0.01, 0.1),
            },
            "fedadam": {"training.learning-rate": (0.1, 0.3), "strategy.server-learning-rate": (0.03, 0.1)},
            "fedyogi": {"training.learning-rate": (0.1, 0.3), "strategy.server-learning-rate": (0.03, 0.1)},
            "fedadagrad": {"training.learning-rate": (0.1, 0.3), "strategy.server-learning-rate": (0.1, 0.3)},
            "cyclic": {"training.local-steps": (5, 20), "training.learning-rate": (0.1,)},
            "pooled": {"training.learning-rate": (0.1, 0.3)},
        },
    ),
}


def read(name: str, data: Path) -> Tables:
    """The hospitals of a benchmark, in FLamby's split."""
    return read_public_hospitals(BENCHMARKS[name].dataset, data / BENCHMARKS[name].dataset.replace("-", "_"))


def train(benchmark: Benchmark, tables: Tables, method: Mapping[str, Scalar], seed: int) -> dict[str, float]:
    """Run the product once.

    Returns:
        The final model's figure on all held-out patients together (``pooled``), and on each hospital's.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sites = [write_site(folder / hospital, hospital, table) for hospital, table in tables.items()]
        everyone = write_site(folder / "everyone", "everyone", pool(tables))
        overrides: dict[str, Scalar] = {"study": benchmark.study, "seed": seed, **benchmark.protocol, **method}
        weights = run_study(folder / "run", sites, overrides) / "model.safetensors"
        study = load_study(str(overrides.pop("study")), overrides=overrides)
        measured = {name: _measure(study, path, weights) for name, path in zip(tables, sites, strict=True)}
        # Pairs of patients are of all hospitals; a share of patients is that of the hospitals added up.
        is_of_pairs = study.task.IS_OF_PAIRS
        pooled = _measure(study, everyone, weights) if is_of_pairs else merge_measurements(measured.values())
        return {name: each.figures()[benchmark.measure] for name, each in {"pooled": pooled, **measured}.items()}


def _measure(study: Study, site_file: Path, weights: Path) -> Measurement:
    site = Site(settings=read_site_settings(site_file), folder=site_file.parent, study=study)
    model = study.build_model()
    model.load_state_dict(load_file(weights))
    records = site.load_records()
    return evaluate(model, prepare(records.test, study.data_schema, train=records.train), study.task)


def train_method(
    benchmark: Benchmark, tables: Tables, name: str, seed: int, settings: Mapping[str, Scalar]
) -> dict[str, float]:
    """Run a method: a strategy over all hospitals, or ``pooled``, which is one hospital with everybody's patients."""
    if name == "pooled":
        return train(benchmark, {"one": pool(tables)}, settings, seed)
    return train(benchmark, tables, {"strategy.name": name, **settings}, seed)


def tune(benchmark: Benchmark, tables: Tables, methods: Sequence[str] = ()) -> None:
    """Print the mean validation figure of every choice, over folds of the training patients alone."""
    generator = np.random.default_rng(0)
    training = {hospital: table[table["fold"] == "train"] for hospital, table in tables.items()}
    parts = {hospital: generator.permutation(len(table)) % NUM_FOLDS for hospital, table in training.items()}
    for name, choices in benchmark.grid.items():
        if methods and name not in methods:
            continue
        found = {}
        for values in itertools.product(*choices.values()):
            settings = dict(zip(choices, values, strict=True))
            figures = []
            for fold in range(NUM_FOLDS):
                folds = {
                    hospital: table.assign(fold=np.where(parts[hospital] == fold, "test", "train"))
                    for hospital, table in training.items()
                }
                figures.append(train_method(benchmark, folds, name, SEEDS[0], settings)["pooled"])
            found[values] = float(np.mean(figures))
            print(f"{benchmark.study} {name} {settings}: {found[values]:.4f}", flush=True)
        print(f"{benchmark.study} {name}: best {max(found, key=lambda values: found[values])}\n", flush=True)


def published(path: Path, prefix: str) -> dict[str, dict[str, float]]:
    """FLamby's mean and worst figure on the pooled test, by its own name of the method."""
    tables = [pd.read_csv(path / f"{prefix}_seed{seed}.csv") for seed in SEEDS]
    pooled = pd.concat(table[table["Test"] == "Pooled Test"] for table in tables)
    figures = pooled.groupby("Method")["Metric"].agg(["mean", "min"])
    return {str(name): {"mean": float(row["mean"]), "worst": float(row["min"])} for name, row in figures.iterrows()}


def compare(
    name: str, benchmark: Benchmark, tables: Tables, theirs: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Run every method with every seed, and each hospital alone; print our table beside theirs."""
    ours: dict[str, list[dict[str, float]]] = {}
    for method, settings in benchmark.methods.items():
        ours[method] = [train_method(benchmark, tables, method, seed, settings) for seed in SEEDS]
        print(f"{name} {method}: {[round(run['pooled'], 4) for run in ours[method]]}", flush=True)
    for number, (hospital, table) in enumerate(tables.items()):
        tested = pool(tables)
        alone = pd.concat([table[table["fold"] == "train"], tested[tested["fold"] == "test"]], ignore_index=True)
        runs = [train(benchmark, {hospital: alone}, benchmark.methods["pooled"], seed) for seed in SEEDS]
        ours[f"local {number}"] = runs
    print(f"\n{benchmark.study}: {benchmark.measure} on all held-out patients, mean (worst) of seeds {SEEDS}")
    print(f"{'method':<18}{'Consilium':>18}{'FLamby':>18}")
    rows = {}
    for method, runs in ours.items():
        values = [run["pooled"] for run in runs]
        rows[method] = {"mean": float(np.mean(values)), "worst": float(np.min(values)), "runs": runs}
        label = benchmark.theirs.get(method, method.capitalize())
        other = f"{theirs[label]['mean']:.3f} ({theirs[label]['worst']:.3f})" if label in theirs else "–"
        print(f"{method:<18}{f'{np.mean(values):.3f} ({np.min(values):.3f})':>18}{other:>18}")
    best = max((row["mean"], label) for label, row in theirs.items() if label.endswith("100"))
    print(f"FLamby's best federated: {best[1]} {best[0]:.3f}\n", flush=True)
    return rows


def main(
    data: Annotated[Path, typer.Option(help="Folder with the data sets and FLamby's figures.")] = SHARED,
    only: Annotated[str, typer.Option(help="heart or tcga; both if empty.")] = "",
    methods: Annotated[str, typer.Option(help="With --tune: only these, by comma.")] = "",
    tune_only: Annotated[bool, typer.Option("--tune", help="Choose settings on training patients and stop.")] = False,
    results: Annotated[Path | None, typer.Option(help="Result; --only adds to one of the same commit.")] = None,
    commit: Annotated[str, typer.Option(help="Said in the result: git rev-parse --short HEAD.")] = "not said",
) -> None:
    """Run all methods, print the tables and the figures."""
    if not (data / "flamby_reference").is_dir():
        raise SystemExit(f"{data} does not hold the data sets; give their folder with --data")
    chosen = [only] if only else list(BENCHMARKS)
    if tune_only:
        for name in chosen:
            tune(BENCHMARKS[name], read(name, data), [each for each in methods.split(",") if each])
        return
    rows = {
        name: compare(name, BENCHMARKS[name], read(name, data), published(data / "flamby_reference", name))
        for name in chosen
    }
    figures = {name: _figures(methods) for name, methods in rows.items()}
    if "tcga" in figures:
        figures["tcga"]["fedavg_worst_seed"] = round(rows["tcga"]["fedavg"]["worst"], 4)
    if results is not None:
        about = {
            "script": "benchmarks/flamby.py",
            "commit": commit,
            "seeds": list(SEEDS),
            "measure": "final model on all hospitals' held-out patients together",
        }
        kept = json.loads(results.read_text()) if results.exists() else {"about": {}}
        if only and kept["about"].get("commit") == commit:
            figures, rows = kept["figures"] | figures, kept["rows"] | rows
        keep_result(results, about=about, figures=figures, rows=rows)
    print(json.dumps(figures))


def _figures(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    federated = [row["mean"] for name, row in methods.items() if not name.startswith(("pooled", "local"))]
    return {"fedavg": round(methods["fedavg"]["mean"], 4), "best": round(max(federated), 4)}


if __name__ == "__main__":
    typer.run(main)
