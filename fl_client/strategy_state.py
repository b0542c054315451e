"""What an algorithm's client half, or a codec, keeps at the hospital from round to round of a run; it never leaves."""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import load_file, save

from fl_client.durable_file import write_durably
from fl_contract.array_record import Arrays


class StrategyState:
    """A file for each of the last two rounds in which the hospital trained.

    A coordinator that resumes may ask for its last round once more: it starts from what was kept before that round.

    Args:
        folder: The hospital's own.
        run: Of which the rounds are.
        owner: Who keeps it: the ``strategy`` or the ``codec``.
    """

    def __init__(self, folder: Path, run: str, *, owner: Literal["strategy", "codec"] = "strategy") -> None:
        self._folder = folder / owner / hashlib.sha256(run.encode()).hexdigest()[:16]

    def before(self, server_round: int) -> Arrays:
        """What was kept after the last round before this one; empty if there was none."""
        earlier = [number for number in self._rounds() if number < server_round]
        return load_file(self._path(max(earlier))) if earlier else {}

    def keep(self, server_round: int, state: Arrays) -> None:
        """Keep the state after a round, durably; one that is empty leaves nothing on disk."""
        if not state:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(
            self._path(server_round), save({name: np.asarray(each, order="C") for name, each in state.items()})
        )
        for number in sorted(self._rounds())[:-2]:
            self._path(number).unlink()

    def _rounds(self) -> list[int]:
        return [int(path.stem) for path in self._folder.glob("*.safetensors")]

    def _path(self, server_round: int) -> Path:
        return self._folder / f"{server_round}.safetensors"
