"""Whole runs at hospitals that each read a table of their own through their own site.toml."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from flwr.app import Context, RecordDict

from fl_contract.study_file import Scalar
from fl_server.app import app as server_app
from fl_server.local_grid import COORDINATOR_NODE, LocalGrid, load_client_app


def run_at_hospitals(
    folder: Path, study: str, tables: Sequence[pd.DataFrame], *, source: str, policy: str, name: str = "tried"
) -> Path:
    """Run a study.

    Args:
        folder: Empty; for the study, the hospitals and the run.
        study: Its TOML text, whose name is ``name``.
        tables: Each hospital's patients, with a column ``fold``; the hospitals are hospital-0, hospital-1, ...
        source: Further lines of ``[source]``.
        policy: Further lines of ``[policy]``.
        name: Of the study.

    Returns:
        The folder of the variant that ran.
    """
    sources = []
    for number, table in enumerate(tables):
        (folder / f"hospital-{number}").mkdir()
        table.to_csv(folder / f"hospital-{number}" / "patients.csv", index=False)
        sources.append(f'kind = "table"\ntrain = "patients.csv"\nfold = "fold"\n{source}')
    return run_at_sources(folder, study, sources, policy=policy, name=name)


def run_at_sources(folder: Path, study: str, sources: Sequence[str], *, policy: str = "", name: str = "tried") -> Path:
    """Run a study at hospitals whose patients lie in folder/hospital-0, folder/hospital-1, ... already.

    Args:
        folder: For the study and the run.
        study: Its TOML text, whose name is ``name``.
        sources: The lines of each hospital's ``[source]``.
        policy: Further lines of ``[policy]``.
        name: Of the study.

    Returns:
        The folder of the variant that ran.
    """
    studies = folder / "studies"
    studies.mkdir()
    (studies / f"{name}.toml").write_text(study)
    nodes: list[dict[str, Scalar]] = []
    for number, source in enumerate(sources):
        place = folder / f"hospital-{number}"
        (place / "site.toml").write_text(f"""
name = "hospital-{number}"
declared-examples = {10 * (number + 3)}
[source]
{source}
[policy]
epsilon-budget = 0.0
delta = 1e-3
require-privacy = false
measurements = "exact"
{policy}
""")
        nodes.append({"site-file": str(place / "site.toml"), "studies": str(studies)})
    run_config: dict[str, Scalar] = {"study": name, "out": str(folder / "run")}
    grid = LocalGrid(load_client_app(), nodes, run_config=run_config)
    try:
        node_config: dict[str, Scalar] = {"studies": str(studies)}
        server_app(grid, Context(1, COORDINATOR_NODE, node_config, RecordDict(), run_config))
    finally:
        grid.close()
    (model,) = (folder / "run").glob("*/model.safetensors")
    return model.parent
