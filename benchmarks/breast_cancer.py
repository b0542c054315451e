"""Was it worth joining? The breast-cancer study through the product's own path: other splits, and other noise.

First several splits of its patients over four hospitals: each seed is another split, other initial batches and, always,
fresh privacy noise. Then the split that ships, again and again, to see what the noise alone does. Prints one line a
split; the last line is JSON: for each way to train the mean and the worst pooled AUROC, and the share of splits and of
noise draws in which the private model was at least as good as the mean hospital alone.

    python benchmarks/breast_cancer.py --results benchmarks/results/breast_cancer.json --commit $(git rev-parse HEAD)
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from runs import keep_result, simulate_study

from fl_contract.errors import ConsiliumError

STUDY = "breast-cancer"
KINDS = ("local", "private", "federated", "pooled")


def main(
    seeds: Annotated[int, typer.Option(help="Splits to try, from seed 1.")] = 20,
    draws: Annotated[int, typer.Option(help="Draws of the noise on the split that ships.")] = 50,
    results: Annotated[Path | None, typer.Option(help="File to keep the result in.")] = None,
    commit: Annotated[str, typer.Option(help="Said in the result: git rev-parse --short HEAD.")] = "not said",
) -> None:
    """Measure, print a table and the figures."""
    print("seed   " + "  ".join(f"{kind:>9}" for kind in KINDS))
    rows: list[dict[str, float]] = []
    refused = []
    for seed in range(1, seeds + 1):
        try:
            rows.append(simulate_study(STUDY, {"seed": seed}, with_baselines=True))
        except ConsiliumError as error:  # too few hospitals with enough patients of both classes
            refused.append(seed)
            print(f"{seed:>4}   no run: {error}"[:110], flush=True)
            continue
        print(f"{seed:>4}   " + "  ".join(f"{rows[-1][kind]:>9.4f}" for kind in KINDS), flush=True)
    values = {kind: np.array([row[kind] for row in rows]) for kind in KINDS}
    figures = {
        **{kind: {"mean": round(float(v.mean()), 4), "worst": round(float(v.min()), 4)} for kind, v in values.items()},
        "private_at_least_local": round(float((values["private"] >= values["local"]).mean()), 3),
        "splits": len(rows),
        "splits_without_a_run": refused,
        "shipped_split": _draw_noise(draws),
    }
    if results is not None:
        about = {
            "script": "benchmarks/breast_cancer.py",
            "commit": commit,
            "seeds": [1, seeds],
            "not_measured": "other studies, other epsilons, hospitals that are not parts of one data set",
        }
        keep_result(results, about=about, figures=figures, rows=rows)
    print(json.dumps(figures))


def _draw_noise(draws: int) -> dict[str, float]:
    """What the noise alone does on the split that ships; whatever is trained without noise stays the same."""
    first = simulate_study(STUDY, {}, with_baselines=True)
    again = [simulate_study(STUDY, {}, with_baselines=False) for _ in range(draws - 1)]
    private = np.array([run["private"] for run in (first, *again)])
    print(f"shipped split: private {private.mean():.4f} over {draws} draws, local {first['local']:.4f}", flush=True)
    return {
        "draws": draws,
        "private_mean": round(float(private.mean()), 4),
        "private_deviation": round(float(private.std()), 4),
        "private_worst": round(float(private.min()), 4),
        "local": round(first["local"], 4),
        "private_at_least_local": round(float((private >= first["local"]).mean()), 3),
    }


if __name__ == "__main__":
    typer.run(main)
