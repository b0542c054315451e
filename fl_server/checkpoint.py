"""The coordinator's checkpoint: one file a run, replaced in one step after each round."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from fl_contract.array_record import Arrays
from fl_contract.errors import CheckpointError
from fl_server.run_record import write_atomically

CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped.

    Attributes:
        run: Identity of the run.
        fingerprint: Of its study.
        server_round: Last round that is complete; 0 before the first.
        seconds: The run has taken so far.
        model: Weights and buffers after that round.
        strategy: What `strategies.fedavg.FedAvg.state` gave.
        generator: State of the generator that draws hospitals.
        stopping: State of `fl_server.stopping.Stopping`.
        best: State of `fl_server.best_round.BestRound`.
        average: State of `fl_server.averaging.ModelAverage`.
        turnout: State of `fl_server.turnout.Turnout`.
        late: Models that replies of earlier rounds are awaited to.
    """

    run: str
    fingerprint: str
    server_round: int
    seconds: float
    model: Arrays
    strategy: Arrays
    generator: dict[str, Any]
    stopping: dict[str, Any]
    best: dict[str, Any]
    average: Arrays
    turnout: dict[str, Any]
    late: Arrays


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint; durable when this returns."""
    arrays = {f"model/{name}": array for name, array in checkpoint.model.items()}
    arrays |= {f"strategy/{name}": array for name, array in checkpoint.strategy.items()}
    arrays |= {f"average/{name}": array for name, array in checkpoint.average.items()}
    arrays |= {f"late/{name}": array for name, array in checkpoint.late.items()}
    header = {
        key: getattr(checkpoint, key)
        for key in ("run", "fingerprint", "server_round", "seconds", "generator", "stopping", "best", "turnout")
    }
    header["names"] = list(checkpoint.model)
    write_atomically(folder / CHECKPOINT_FILE, save(arrays, metadata={"checkpoint": json.dumps(header)}))


def read_checkpoint(folder: Path, *, fingerprint: str) -> Checkpoint | None:
    """Read the folder's checkpoint; None if there is none.

    Raises:
        CheckpointError: The file is damaged, or belongs to another study.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads(file.metadata()["checkpoint"])
        arrays = load_file(path)
        names = header.pop("names")
        checkpoint = Checkpoint(
            **header,
            model={name: arrays[f"model/{name}"] for name in names},
            strategy=_with_prefix(arrays, "strategy/"),
            average=_with_prefix(arrays, "average/"),
            late=_with_prefix(arrays, "late/"),
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is damaged ({type(error).__name__}); start a new run in another folder"
        ) from error
    if checkpoint.fingerprint != fingerprint:
        raise CheckpointError(f"{path}: belongs to a study with other settings; resume with the settings it began with")
    return checkpoint


def _with_prefix(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
