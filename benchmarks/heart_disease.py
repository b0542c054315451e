"""Private federated training at four real hospitals, against FLamby's published figures on the same patients.

Data: UCI Heart Disease in FLamby's own split. Each hospital reads a file of its own through its own site.toml; the
study sets epsilon and delta and leaves the rest to the defaults. FLamby standardises by each hospital's own statistics,
which no epsilon covers; here nothing is computed from patients outside the guarantee. Noise is never seeded, so every
seed can be run several times. Prints a line a run and a table; the last line is JSON: for each epsilon the mean over
the four hospitals of the accuracy on held-out patients.

    python benchmarks/heart_disease.py --results benchmarks/results/heart_disease.json --commit $(git rev-parse HEAD)
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from runs import SHARED, keep_result, run_study, write_site

from fl_client.data.public_hospitals import HEART_HOSPITALS, read_public_hospitals
from fl_contract.study_file import Scalar

EPSILONS = (0.1, 1.0, 5.0, 10.0)
SEEDS = (42, 43, 44, 45, 46)
DELTA = 1e-4
POLICY = f'epsilon-budget = {max(EPSILONS)}\ndelta = {DELTA}\nmeasurements = "exact"\n'


def measure(data: Path, *, epsilon: float, seed: int) -> dict[str, float]:
    """Accuracy on each hospital's held-out patients after one private run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = read_public_hospitals("heart-disease", data / "heart_disease")
        sites = [write_site(folder / name, name, table, policy=POLICY) for name, table in tables.items()]
        run_config: dict[str, Scalar] = {
            "study": "heart-disease",
            "seed": seed,
            "privacy.epsilon": epsilon,
            "privacy.delta": DELTA,
        }
        run = run_study(folder / "run", sites, run_config)
        last = json.loads((run / "rounds.jsonl").read_text().splitlines()[-1])
        return {hospital: last["sites"][hospital]["figures"]["accuracy"] for hospital in HEART_HOSPITALS}


def published(path: Path) -> dict[float, float]:
    """FLamby's mean accuracy by epsilon at our delta; 0.0 stands for its run without privacy."""
    table = pd.read_csv(path)
    private = table[table["d"] == DELTA]
    theirs = {epsilon: float(private[private["e"] == epsilon]["perf"].mean()) for epsilon in EPSILONS}
    return theirs | {0.0: float(table[table["e"].isna()]["perf"].mean())}


def main(
    data: Annotated[Path, typer.Option(help="Folder with the data sets and FLamby's figures.")] = SHARED,
    repetitions: Annotated[int, typer.Option(help="Runs of each epsilon and seed, with other noise.")] = 1,
    results: Annotated[Path | None, typer.Option(help="File to keep the result in.")] = None,
    commit: Annotated[str, typer.Option(help="Said in the result: git rev-parse --short HEAD.")] = "not said",
) -> None:
    """Measure, print a table and the figures."""
    figures_of_flamby = data / "flamby_reference" / "dp_results_fed_heart_disease.csv"
    if not figures_of_flamby.exists():
        raise SystemExit(f"{figures_of_flamby} is not there; give the folder of the data sets with --data")
    theirs = published(figures_of_flamby)
    rows: list[dict[str, Any]] = []
    for epsilon in EPSILONS:
        for seed in SEEDS:
            for repetition in range(repetitions):
                accuracy = measure(data, epsilon=epsilon, seed=seed)
                mean = float(np.mean(list(accuracy.values())))
                rows.append({"epsilon": epsilon, "seed": seed, "repetition": repetition, "mean": mean, **accuracy})
                print(f"epsilon {epsilon:<5g} seed {seed}: {mean:.4f}", flush=True)
    figures = {f"{epsilon:g}": _figures(rows, epsilon, theirs[epsilon]) for epsilon in EPSILONS}
    _print_table(figures, without_privacy=theirs[0.0])
    if results is not None:
        _keep(results, figures, rows, commit)
    print(json.dumps(figures))


def _figures(rows: list[dict[str, Any]], epsilon: float, theirs: float) -> dict[str, float]:
    values = np.array([row["mean"] for row in rows if row["epsilon"] == epsilon])
    return {
        "mean": round(float(values.mean()), 4),
        "worst": round(float(values.min()), 4),
        "deviation": round(float(values.std()), 4),
        "runs": len(values),
        "flamby": round(theirs, 4),
    }


def _print_table(figures: dict[str, dict[str, float]], *, without_privacy: float) -> None:
    print(f"\nepsilon   Consilium   worst run   FLamby (delta {DELTA:g})")
    for epsilon, row in figures.items():
        print(f"{epsilon:>7}   {row['mean']:>9.4f}   {row['worst']:>9.4f}   {row['flamby']:>6.4f}")
    print(f"FLamby without privacy: {without_privacy:.4f}\n")


def _keep(results: Path, figures: dict[str, dict[str, float]], rows: list[dict[str, Any]], commit: str) -> None:
    about = {
        "script": "benchmarks/heart_disease.py",
        "commit": commit,
        "seeds": list(SEEDS),
        "delta": DELTA,
        "measure": "accuracy on held-out patients, mean over the four hospitals",
        "not_measured": "other splits of the patients, records with gaps",
    }
    keep_result(results, about=about, figures=figures, rows=rows)


if __name__ == "__main__":
    typer.run(main)
