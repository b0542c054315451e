"""Private replies that were already made: a retried round gets the same answer, never a second noise draw."""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save

from fl_client.durable_file import write_durably
from fl_contract.messages import PrivacySpent, TrainReply


class Outbox:
    """One file for each run of the hospital's folder: the last reply, replaced in one step.

    Args:
        folder: The hospital's own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "outbox"
        self._folder.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def locked(self, run: str) -> Iterator[None]:
        """Keep every other process and thread out of a run until the reply is stored and settled.

        A second request for a round waits here for the first one's reply; a crash lets go of the lock.
        """
        with self._path(run).with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def put(self, run: str, server_round: int, reply: TrainReply, spent: PrivacySpent) -> None:
        """Keep a reply durably; it is on disk when this returns."""
        header = {
            "server-round": server_round,
            "site": reply.site,
            "num-examples": reply.num_examples,
            "spent": asdict(spent),
            "order": list(reply.arrays),  # safetensors sorts
        }
        arrays = {name: np.asarray(array, order="C") for name, array in reply.arrays.items()}  # save takes no other
        write_durably(self._path(run), save(arrays, metadata={"reply": json.dumps(header)}))

    def last(self, run: str) -> tuple[int, TrainReply] | None:
        """The last reply that was made in a run, and its round."""
        path = self._path(run)
        if not path.exists():
            return None
        header = json.loads(_metadata(path)["reply"])
        arrays = load_file(path)
        reply = TrainReply(
            site=header["site"],
            arrays={name: arrays[name] for name in header["order"]},
            num_examples=header["num-examples"],
            spent=PrivacySpent(**header["spent"]),
        )
        return header["server-round"], reply

    def _path(self, run: str) -> Path:
        return self._folder / f"{hashlib.sha256(run.encode()).hexdigest()[:16]}.safetensors"


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata())
