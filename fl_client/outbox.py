"""Private replies that were already made: a retried round gets the same answer, never a second noise draw."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import load_file, save

from fl_contract.messages import PrivacySpent, TrainReply


class Outbox:
    """One file for each run of the hospital's folder: the last reply, replaced in one step.

    Args:
        folder: The hospital's own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "outbox"

    def put(self, run: str, server_round: int, reply: TrainReply, spent: PrivacySpent) -> None:
        """Keep a reply durably; it is on disk when this returns."""
        self._folder.mkdir(exist_ok=True)
        header = {
            "server-round": server_round,
            "site": reply.site,
            "num-examples": reply.num_examples,
            "spent": asdict(spent),
        }
        path = self._path(run)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as stream:
            stream.write(save(reply.arrays, metadata={"reply": json.dumps(header)}))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)

    def last(self, run: str) -> tuple[int, TrainReply] | None:
        """The last reply that was made in a run, and its round."""
        path = self._path(run)
        if not path.exists():
            return None
        header = json.loads(_metadata(path)["reply"])
        reply = TrainReply(
            site=header["site"],
            arrays=load_file(path),
            num_examples=header["num-examples"],
            spent=PrivacySpent(**header["spent"]),
        )
        return header["server-round"], reply

    def _path(self, run: str) -> Path:
        return self._folder / f"{hashlib.sha256(run.encode()).hexdigest()[:16]}.safetensors"


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata())
