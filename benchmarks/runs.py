"""What the benchmarks share: hospitals with a folder each, runs of the product over them, and the file of a result."""

import io
import json
import logging
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from flwr.app import Context, Message, RecordDict
from rich.console import Console

from fl_contract.study_file import OVERRIDABLE_KEYS, STUDIES, Scalar
from fl_server.app import app as server_app
from fl_server.local_grid import COORDINATOR_NODE, LocalGrid, load_client_app
from fl_server.simulation import SimulationPlan, simulate
from fl_server.summary import summarise

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
"""Where the data sets are looked for that do not ship with scikit-learn."""

OPEN_POLICY = """epsilon-budget = 0.0
delta = 1e-4
require-privacy = false
min-examples = 1
allow-one-class = true
measurements = "exact"
"""
"""Of a hospital that takes part without privacy, however few patients it has and of whichever classes."""

Handler = Callable[[Message, Context], Message]
"""A hospital's app, or what stands round it."""


def write_site(folder: Path, name: str, table: pd.DataFrame, *, policy: str = OPEN_POLICY) -> Path:
    """Make a hospital: its patients and its site.toml, which lets a run set everything, in a new folder.

    Args:
        folder: Is made.
        name: Of the hospital.
        table: Features, ``outcome``, ``fold`` (train or test), ``patient``, and ``time`` for survival.
        policy: The lines of ``[policy]``.

    Returns:
        The path of site.toml.
    """
    folder.mkdir()
    table.to_csv(folder / "patients.csv", index=False)
    time = 'time = "time"\n' if "time" in table else ""
    (folder / "site.toml").write_text(f"""name = "{name}"
declared-examples = {max(10, 10 * round((table["fold"] == "train").sum() / 10))}

[source]
kind = "table"
train = "patients.csv"
fold = "fold"
label = "outcome"
patient = "patient"
{time}
[policy]
run-settings = {json.dumps(OVERRIDABLE_KEYS)}
{policy}""")
    return folder / "site.toml"


def pool(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All hospitals' patients in one table."""
    named = [table.assign(patient=hospital + "/" + table["patient"].astype(str)) for hospital, table in tables.items()]
    return pd.concat(named, ignore_index=True)


def run_study(
    out: Path,
    sites: Sequence[Path],
    run_config: Mapping[str, Scalar],
    *,
    wrap: Callable[[Handler], Handler] = lambda app: app,
) -> Path:
    """Run a study that ships, at these hospitals, by the coordinator's and the hospitals' real apps.

    Args:
        out: Empty or new; for the run.
        sites: Paths of their site.toml; all of them must take part.
        run_config: ``study``, and what else the run sets.
        wrap: Stands between the coordinator and the hospitals' app.

    Returns:
        The folder of the variant that ran.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    config: dict[str, Scalar] = {"federation.min-sites": len(sites), **run_config, "out": str(out)}
    nodes: list[dict[str, Scalar]] = [{"site-file": str(path), "studies": str(STUDIES)} for path in sites]
    grid = LocalGrid(wrap(load_client_app()), nodes, run_config=config)
    try:
        server_app(grid, Context(1, COORDINATOR_NODE, {"studies": str(STUDIES)}, RecordDict(), config))
    finally:
        grid.close()
    (record,) = out.glob("*/run.json")
    return record.parent


def simulate_study(name: str, overrides: Mapping[str, Scalar], *, with_baselines: bool) -> dict[str, float]:
    """Pooled AUROC of each way to train, for one simulation of a study that ships."""
    with tempfile.TemporaryDirectory() as folder:
        plan = SimulationPlan(
            study_name=name,
            studies=STUDIES,
            overrides=overrides,
            out=Path(folder),
            engine="local",
            resume=False,
            with_baselines=with_baselines,
        )
        simulate(plan, Console(file=io.StringIO()))
        variants: dict[str, Any] = summarise(Path(folder))["variants"]
        return {kind: variant["auroc"]["pooled"] for kind, variant in variants.items()}


def keep_result(path: Path, *, about: Mapping[str, Any], figures: Any, rows: Any) -> None:
    """Write a benchmark's result: what was run where and when, what it shows, and every run's figures."""
    stamp = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "hardware": f"{platform.machine()}, CPU"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": stamp | dict(about), "figures": figures, "rows": rows}, indent=2) + "\n")
