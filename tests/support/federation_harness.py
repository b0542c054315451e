"""Whole runs in memory: the coordinator's and the hospitals' real apps on the local engine."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from safetensors.numpy import load_file

from fl_contract.array_record import Arrays
from fl_contract.study_file import OVERRIDABLE_KEYS, STUDIES, Scalar
from fl_server.app import app as server_app
from fl_server.local_grid import COORDINATOR_NODE, LocalGrid, load_client_app

Handler = Callable[[Message, Context], Message]

PLAIN: dict[str, Scalar] = {"privacy.mechanism": "none", "stopping.patience": 0, "num-rounds": 3}
PRIVATE: dict[str, Scalar] = {
    "privacy.sampling-rate": 0.25,
    "privacy.steps-per-round": 2,
    "stopping.patience": 0,
    "num-rounds": 3,
}


def _let_runs_set(site_file: Path, keys: list[str]) -> None:
    """Name settings in the policy of a hospital whose file a simulation wrote."""
    text, count = re.subn(
        r"^run-settings = .*$", f"run-settings = {json.dumps(keys)}", site_file.read_text(), flags=re.M
    )
    assert count == 1
    site_file.write_text(text)


@dataclass(frozen=True)
class Outcome:
    """The files of a run that ended."""

    folder: Path

    @property
    def header(self) -> dict[str, Any]:
        header: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return header

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "rounds.jsonl").read_text().splitlines()]

    @property
    def model(self) -> Arrays:
        return load_file(self.folder / "model.safetensors")


class Federation:
    """Runs a study over virtual hospitals.

    ``wrap`` stands between the coordinator and the hospitals' app; ``site_files`` makes nodes real hospitals; ``grid``
    carries the messages.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def run(
        self,
        study: str = "breast-cancer",
        *,
        overrides: Mapping[str, Scalar] = PLAIN,
        wrap: Callable[[Handler], Handler] = lambda app: app,
        resume: bool = False,
        num_nodes: int = 4,
        studies: Path = STUDIES,
        site_files: Mapping[int, Path] | None = None,
        grid: Callable[..., LocalGrid] | None = None,
    ) -> Outcome:
        run_config: dict[str, Scalar] = {"study": study, "out": str(self.out), "resume": resume, **overrides}
        nodes: list[dict[str, Scalar]] = [
            {"partition-id": number, "num-partitions": num_nodes, "studies": str(studies)}
            for number in range(num_nodes)
        ]
        for number, path in (site_files or {}).items():
            _let_runs_set(path, [key for key in overrides if key in OVERRIDABLE_KEYS])
            nodes[number] = {"site-file": str(path), "studies": str(studies)}
        local = (grid or LocalGrid)(wrap(load_client_app()), nodes, run_config=run_config)
        try:
            context = Context(1, COORDINATOR_NODE, {"studies": str(studies)}, RecordDict(), run_config)
            server_app(local, context)
        finally:
            local.close()
        return self.outcome()

    def outcome(self) -> Outcome:
        (path,) = self.out.glob("*/run.json")
        return Outcome(path.parent)
