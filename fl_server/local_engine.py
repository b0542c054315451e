"""The local engine: runs the coordinator's and the hospitals' real apps in this process."""

import logging
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, RecordDict

from fl_contract.study import Study
from fl_contract.study_file import Scalar
from fl_server.app import app as server_app
from fl_server.local_grid import COORDINATOR_NODE, LocalGrid, load_client_app

RUN_ID = 1


def run_locally(study: Study, run_config: Mapping[str, Scalar], *, studies: Path) -> None:
    """Run a study with one node a virtual hospital, without Flower's log: the run's record says more.

    Args:
        study: That ``run_config`` names, with its overrides; says how many hospitals there are.
        run_config: As ``flwr run --run-config`` would give it.
        studies: The folder that holds the study.

    Raises:
        ConsiliumError: The run failed; its record says so too.
    """
    num_nodes = study.simulation.num_sites + (study.simulation.trainers == "pooled")
    nodes: list[dict[str, Scalar]] = [
        {"partition-id": number, "num-partitions": num_nodes, "studies": str(studies)} for number in range(num_nodes)
    ]
    grid = LocalGrid(load_client_app(), nodes, run_config=run_config, run_id=RUN_ID)
    context = Context(RUN_ID, COORDINATOR_NODE, {"studies": str(studies)}, RecordDict(), dict(run_config))
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        server_app(grid, context)
    finally:
        log.setLevel(level)
        grid.close()
