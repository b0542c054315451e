"""What a hospital has agreed to: the runs, and the one measurement of each round that it has made."""

import hashlib
import json
from pathlib import Path
from typing import Any

from fl_client.durable_file import write_durably
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.messages import Request
from fl_contract.metrics import measurement_from_json
from fl_contract.metrics.measurement import Measurement


class Agreements:
    """One small file for each run of the hospital's folder, replaced in one step.

    A coordinator may ask for a run only after the hospital agreed to its plan, and has a model measured once a round:
    exact measurements of arbitrary models, asked for without end, would give the held-out patients away.

    Args:
        folder: The hospital's own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "agreements"

    def agree(self, request: Request) -> None:
        """Note that the hospital takes part in this run; durable when this returns. Agreeing again changes nothing."""
        if not self._path(request.run).exists():
            self._write(request.run, {"run": request.run, "fingerprint": request.fingerprint})

    def check(self, request: Request) -> None:
        """Refuse a run that was not agreed, or not with this study.

        Raises:
            RefusalError: NO_AGREEMENT.
        """
        path = self._path(request.run)
        if not path.exists() or self._read(request.run)["fingerprint"] != request.fingerprint:
            raise RefusalError(
                RefusalCode.NO_AGREEMENT, f"run {request.run!r} was not agreed; the plan is asked for before round 1"
            )

    def measured(self, request: Request) -> Measurement | None:
        """The measurement that was made in this round, which a retried request gets again.

        Raises:
            RefusalError: NO_AGREEMENT: a later round was measured already.
        """
        kept = self._read(request.run).get("measured")
        if kept is None or kept["server-round"] < request.server_round:
            return None
        if kept["server-round"] > request.server_round:
            raise RefusalError(
                RefusalCode.NO_AGREEMENT,
                f"round {request.server_round}; round {kept['server-round']} was measured already, each is once",
            )
        if kept["evaluation"] is None:
            raise RefusalError(RefusalCode.NO_AGREEMENT, f"round {request.server_round} failed to be measured before")
        return measurement_from_json(kept["evaluation"])

    def keep_measurement(self, request: Request, evaluation: Measurement | None) -> None:
        """Keep a measurement durably, before it is sent; None for one that failed, and is not tried again."""
        content = None if evaluation is None else evaluation.to_json()
        measured = {"server-round": request.server_round, "evaluation": content}
        self._write(request.run, self._read(request.run) | {"measured": measured})

    def _path(self, run: str) -> Path:
        return self._folder / f"{hashlib.sha256(run.encode()).hexdigest()[:16]}.json"

    def _read(self, run: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._path(run).read_text(encoding="utf-8"))
        return content

    def _write(self, run: str, content: dict[str, Any]) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_durably(self._path(run), json.dumps(content).encode())
