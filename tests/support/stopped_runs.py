"""Runs that stop when a round's checkpoint is, or is not yet, written."""

from pathlib import Path

import pytest

import fl_server.round_loop as round_loop
from fl_server.checkpoint import Checkpoint, write_checkpoint


class StopError(Exception):
    """Stands for whatever ends a run."""


def stop_after(server_round: int, monkeypatch: pytest.MonkeyPatch, *, is_written: bool = True) -> None:
    """The coordinator stops after a round, with or without a checkpoint of it."""

    def write_then_stop(folder: Path, checkpoint: Checkpoint) -> None:
        if is_written or checkpoint.server_round < server_round:
            write_checkpoint(folder, checkpoint)
        if checkpoint.server_round == server_round:
            raise StopError

    monkeypatch.setattr(round_loop, "write_checkpoint", write_then_stop)
