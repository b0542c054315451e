"""What the defaults of a private study are worth: breast cancer with nothing but epsilon and delta set.

Two questions. Over several splits of the patients and fresh noise in each run, which pooled AUROC does each epsilon
give? And on the shipped study's own split, how often does noise alone put the private model below the mean of the
hospitals alone? Through the product's own path. Prints a line a run; the last line is JSON.

    python benchmarks/private_defaults.py --results benchmarks/results/private_defaults.json
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from runs import keep_result, simulate_study

from fl_contract.errors import ConsiliumError
from fl_contract.study_file import Scalar, load_study

STUDY = "breast-cancer"
EPSILONS = (1.0, 3.0, 8.0)
REFERENCE = {1.0: 0.973, 3.0: 0.981, 8.0: 0.987}
"""AUROC of hand-tuned local DP-SGD with FedAvg at five sites of 91 patients each, the figure to beat."""


def over_splits(seeds: int, sites: int) -> list[dict[str, float]]:
    """The private model's AUROC for each epsilon and split; a split that the hospitals refuse is left out."""
    rows = []
    for epsilon in EPSILONS:
        for seed in range(1, seeds + 1):
            overrides: dict[str, Scalar] = {"seed": seed, "privacy.epsilon": epsilon, "simulation.num-sites": sites}
            try:
                auroc = simulate_study(STUDY, overrides, with_baselines=False)["private"]
            except ConsiliumError as error:
                print(f"epsilon {epsilon:g}, split {seed}: no run: {error}"[:110], flush=True)
                continue
            rows.append({"epsilon": epsilon, "seed": seed, "sites": sites, "auroc": auroc})
            print(f"epsilon {epsilon:g}, split {seed}, {sites} hospitals: {auroc:.4f}", flush=True)
    return rows


def on_own_split(draws: int) -> dict[str, Any]:
    """The shipped study as it is, again and again, against the mean hospital alone."""
    first = simulate_study(STUDY, {}, with_baselines=True)
    again = [simulate_study(STUDY, {}, with_baselines=False) for _ in range(draws - 1)]
    private = [run["private"] for run in (first, *again)]
    print(
        f"own split: alone {first['local']:.4f}, private {np.mean(private):.4f}, worst {min(private):.4f}", flush=True
    )
    return {
        "local": first["local"],
        "federated": first["federated"],
        "private_mean": round(float(np.mean(private)), 4),
        "private_worst": round(min(private), 4),
        "private_deviation": round(float(np.std(private)), 4),
        "below_local": sum(value < first["local"] for value in private),
        "draws": draws,
    }


def main(
    seeds: Annotated[int, typer.Option(help="Splits to try for each epsilon, from seed 1.")] = 8,
    draws: Annotated[int, typer.Option(help="Runs of the shipped study on its own split.")] = 50,
    results: Annotated[Path | None, typer.Option(help="File to keep the result in.")] = None,
    commit: Annotated[str, typer.Option(help="Said in the result: git rev-parse --short HEAD.")] = "not said",
) -> None:
    """Measure, print and keep the figures."""
    rows = [row for sites in (4, 5) for row in over_splits(seeds, sites)]
    values = {e: np.array([row["auroc"] for row in rows if row["epsilon"] == e]) for e in EPSILONS}
    figures = {
        **{
            f"{e:g}": {
                "mean": round(float(v.mean()), 4),
                "worst": round(float(v.min()), 4),
                "runs": len(v),
                "reference": REFERENCE[e],
            }
            for e, v in values.items()
        },
        "own_split": on_own_split(draws),
    }
    if results is not None:
        about = {
            "script": "benchmarks/private_defaults.py",
            "commit": commit,
            "settings": load_study(STUDY).to_table()["privacy"],
            "not_measured": "other studies; several draws of noise on one split, except on the study's own",
        }
        keep_result(results, about=about, figures=figures, rows=rows)
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
