"""What each codec saves and costs: bytes and accuracy of whole runs, and error and speed on a large update.

Without privacy noise, over seeds, each codec beside the same run without one. Bytes are those of the run's own record,
for a hospital's reply in a round; a plain reply holds NumPy's heads too, so the share of the bare float32 numbers
stands beside. Through the product's own path. Prints a line a case and codec; the last line is JSON.

    OMP_NUM_THREADS=1 python benchmarks/bytes.py --results benchmarks/results/bytes.json
"""

import io
import json
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from pydantic import TypeAdapter
from rich.console import Console

from fl_contract.codecs import CommunicationSettings, NoCodecSettings
from fl_contract.codecs.codec import Codec, CodecSeed, Vector
from fl_contract.study_file import STUDIES, Scalar, load_study
from fl_server.simulation import SimulationPlan, simulate

CODECS: dict[str, dict[str, Scalar]] = {
    "none": {"codec": "none"},
    "float16": {"codec": "float16"},
    "bfloat16": {"codec": "bfloat16"},
    "int8": {"codec": "int8"},
    "int8 + zstd": {"codec": "int8", "zstd": True},
    "4 bit": {"codec": "rotation", "bits": 4},
    "2 bit": {"codec": "rotation", "bits": 2},
    "1 bit": {"codec": "rotation", "bits": 1},
    "top 10 %": {"codec": "top-k", "fraction": 0.1},
    "PowerSGD 4": {"codec": "powersgd", "rank": 4},
}

IN_RUNS = ("none", "int8", "4 bit", "1 bit", "top 10 %", "PowerSGD 4")
"""Codecs that whole runs are made with; the others' errors lie between theirs or far below."""

CASES: dict[str, tuple[str, dict[str, Scalar]]] = {
    "breast-cancer": ("breast-cancer", {}),
    "breast-cancer, MLP": ("breast-cancer", {"model.kind": "mlp", "training.learning-rate": 0.3}),
    "digits": ("digits", {"stopping.patience": 0}),
}
"""The shipped studies, and a usual network on the table, whose own model has 31 numbers."""

MUST_HOLD = {"int8": 0.27, "1 bit": 0.042}
"""Largest share of the bytes, for the codecs that have to come within `ACCURACY` of no codec."""

ACCURACY, SPEED = 0.005, 200.0


def run(study: str, overrides: dict[str, Scalar]) -> tuple[float, float]:
    """Accuracy of the last round, pooled over hospitals, and bytes up of a hospital in a round."""
    with tempfile.TemporaryDirectory() as folder:
        plan = SimulationPlan(
            study_name=study,
            studies=STUDIES,
            overrides={"privacy.mechanism": "none", **overrides},
            out=Path(folder),
            engine="local",
            resume=False,
            with_baselines=False,
        )
        simulate(plan, Console(file=io.StringIO()))
        (path,) = Path(folder).glob("*/rounds.jsonl")
        rounds = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    absences = [absence for line in rounds for absence in line["missing"].values()]
    if lost := [each for each in absences if each["code"] != "too-few-patients"]:  # to be measured on
        raise RuntimeError(f"replies were lost: {lost}")
    up = [site["bytes_up"] for line in rounds for site in line["sites"].values()]
    return rounds[-1]["pooled"]["figures"]["accuracy"], float(np.mean(up))


def over_seeds(case: str, seeds: int) -> list[dict[str, Any]]:
    """A row for each codec and seed of one case."""
    study, overrides = CASES[case]
    rows: list[dict[str, Any]] = []
    for seed in range(1, seeds + 1):
        plain = 0.0
        for name in IN_RUNS:
            settings = CODECS[name]
            chosen = overrides | {"seed": seed} | {f"communication.{key}": value for key, value in settings.items()}
            accuracy, up = run(study, chosen)
            plain = up if name == "none" else plain
            model = load_study(study, overrides=chosen).build_model()
            bare = 4 * sum(parameter.numel() for parameter in model.parameters())
            rows.append(
                {"case": case, "codec": name, "seed": seed, "accuracy": accuracy, "bytes_up": up}
                | {"share": up / plain, "share_of_bare_numbers": up / bare}
            )
            print(
                f"{case:<20} seed {seed}  {name:<12} {up:>9.0f} bytes, {up / plain:6.2%} of the reply, "
                f"{up / bare:6.2%} of the bare numbers, accuracy {accuracy:.4f}",
                flush=True,
            )
    return rows


def table(rows: list[dict[str, Any]], case: str) -> dict[str, dict[str, float]]:
    """Means over seeds of one case, and what accuracy each codec loses."""
    means: dict[str, dict[str, float]] = {}
    for name in IN_RUNS:
        own = [row for row in rows if (row["case"], row["codec"]) == (case, name)]
        keys = ("accuracy", "bytes_up", "share", "share_of_bare_numbers")
        means[name] = {key: round(float(np.mean([row[key] for row in own])), 5) for key in keys}
        means[name]["loss"] = round(means["none"]["accuracy"] - means[name]["accuracy"], 5)
    return means


def large_update(size: int) -> Vector:
    """Layers of very unequal size, with heavy tails: a hundred scales, and Student's t with 4 degrees of freedom."""
    generator = np.random.default_rng(1)
    update = generator.standard_t(4, size).astype(np.float32)
    update *= np.repeat(np.exp(generator.standard_normal(100)), -(-size // 100)).astype(np.float32)[:size]
    return update


def measure_codec(codec: Codec, update: Vector, repeats: int) -> dict[str, float]:
    """Error and speed on one thread, the best of a few repeats; megabytes of float32 numbers a processor's second."""
    seed = CodecSeed(seed=1, site="hospital-1", server_round=1)
    encoding, decoding = [], []
    payload, decoded = b"", update
    for _ in range(repeats):
        started = time.process_time()
        payload = codec.encode(update, seed)
        encoding.append(time.process_time() - started)
        started = time.process_time()
        decoded = codec.decode(payload, seed)
        decoding.append(time.process_time() - started)
    error = float(np.square(decoded - update, dtype=np.float64).sum() / np.square(update, dtype=np.float64).sum())
    megabytes = update.nbytes / 1e6
    return {
        "nmse": float(f"{error:.3g}"),
        "share": round(len(payload) / update.nbytes, 5),
        "encode_mb_per_s": round(megabytes / min(encoding), 1),
        "decode_mb_per_s": round(megabytes / min(decoding), 1),
        "both_mb_per_s": round(megabytes / (min(encoding) + min(decoding)), 1),
    }


def speeds(size: int, repeats: int) -> dict[str, dict[str, float]]:
    """`measure_codec` for every codec, on an update of one square matrix and a rest."""
    update, side = large_update(size), int(np.sqrt(size))
    shapes = ((side, side), (size - side * side,))
    measured = {}
    for name, settings in CODECS.items():
        parsed = TypeAdapter(CommunicationSettings).validate_python(settings)
        if isinstance(parsed, NoCodecSettings) or parsed.zstd:
            continue
        measured[name] = measure_codec(parsed.build(shapes), update, repeats)
        print(f"{name:<12} {measured[name]}", flush=True)
    return measured


def verdicts(tables: dict[str, dict[str, dict[str, float]]], measured: dict[str, dict[str, float]]) -> dict[str, bool]:
    """Which of the limits hold."""
    found = {}
    for name, share in MUST_HOLD.items():
        for case, means in tables.items():
            found[f"{name}, {case}: bytes"] = means[name]["share"] <= share
            found[f"{name}, {case}: accuracy"] = abs(means[name]["loss"]) <= ACCURACY
    for name in ("1 bit", "2 bit", "4 bit"):
        found[f"{name}: speed"] = measured[name]["both_mb_per_s"] >= SPEED
    return found


def main(
    seeds: Annotated[int, typer.Option(help="Runs of each case and codec, from seed 1.")] = 3,
    size: Annotated[int, typer.Option(help="Numbers of the large update.")] = 25_000_000,
    repeats: Annotated[int, typer.Option(help="Of which the fastest counts.")] = 5,
    results: Annotated[Path | None, typer.Option(help="File to keep the result in.")] = None,
    commit: Annotated[str, typer.Option(help="Said in the result: git rev-parse --short HEAD.")] = "not said",
) -> None:
    """Measure, print and keep the figures."""
    torch.set_num_threads(1)
    rows = [row for case in CASES for row in over_seeds(case, seeds)]
    tables = {case: table(rows, case) for case in CASES}
    load = os.getloadavg()[0]
    measured = speeds(size, repeats)
    figures = {"runs": tables, "large_update": measured, "holds": verdicts(tables, measured)}
    if results is not None:
        about = {
            "script": "benchmarks/bytes.py",
            "commit": commit,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "hardware": f"{platform.machine()}, {os.cpu_count()} CPUs, one thread for the large update",
            "load_before_the_large_update": round(load, 1),
            "seeds": [1, seeds],
            "not_measured": "privacy noise together with a codec; time on a network",
        }
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps({"about": about, "figures": figures, "rows": rows}, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
