"""The only place that writes what happened in a run: ``run.json``, one line a round, and the final measurement."""

import json
import math
import os
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from fl_contract.messages import PrivacySpent
from fl_contract.metrics import MEASURES
from fl_contract.metrics.measurement import Measurement
from fl_contract.study import Study
from fl_server.averaging import first_averaged_round
from strategies.central_privacy import CentralSpend

RUN_FILE = "run.json"
ROUNDS_FILE = "rounds.jsonl"
MODEL_FILE = "model.safetensors"
NOISED_ROUNDS_FILE = "noised-rounds.json"

OUTSTANDING = "outstanding"
"""Code of a hospital that still trains when a round ends, in a run that does not wait for all."""

Status = Literal["running", "completed", "converged", "failed"]


@dataclass(frozen=True, kw_only=True)
class Absence:
    """Why a hospital's reply was not used.

    Attributes:
        code: A `fl_contract.errors.RefusalCode` in words, ``unusable-reply``, ``too-stale``, `OUTSTANDING`, or one of
            `fl_server.turnout`.
        reason: One sentence.
    """

    code: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """For the record."""
        return {"code": self.code, "reason": self.reason}


@dataclass(kw_only=True)
class SiteRound:
    """What one hospital did in one round.

    Attributes:
        num_examples: Training records it declares; None if it did not train.
        evaluation: On its held-out patients, of the model after the round; None if it did not measure.
        bytes_down: Of model sent to it.
        bytes_up: Of model received from it.
        seconds: From the request until its training reply.
        epsilon: Spent by this run so far; None without differential privacy.
        delta: Of the same guarantee.
        steps: Noisy steps of this round, as the hospital reports them.
        measured: Spent on held-out patients by this run's measurements so far; None where they are exact.
        local_steps: Asked for where the study balances them.
        staleness: Rounds between the one whose model it trained from and this one's; None where nobody can be late.
    """

    num_examples: int | None = None
    evaluation: Measurement | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    epsilon: float | None = None
    delta: float | None = None
    steps: int | None = None
    measured: PrivacySpent | None = None
    local_steps: int | None = None
    staleness: int | None = None

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        measured, noised = self.evaluation, self.evaluation.noised if self.evaluation else None
        return {
            "num_examples": self.num_examples,
            "test_examples": measured.num_examples if measured else None,
            "loss": measured.loss if measured else None,
            "figures": _figures(measured),
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            "seconds": round(self.seconds, 4),
            "epsilon": self.epsilon,
            "delta": self.delta,
            "steps": self.steps,
            "noise_scale": noised.noise_scale if noised else None,
            "measured_epsilon": self.measured.epsilon if self.measured else None,
            "local_steps": self.local_steps,
            "staleness": self.staleness,
        }


@dataclass(kw_only=True)
class RoundRecord:
    """What happened in one round.

    Attributes:
        server_round: From 1.
        seconds: It took.
        sites: By hospital.
        pooled: All held-out patients together.
        missing: Hospitals whose reply was not used, and why.
        central: What hospital-level privacy has spent up to here; None without it.
    """

    server_round: int
    seconds: float = 0.0
    sites: dict[str, SiteRound] = field(default_factory=dict)
    pooled: Measurement | None = None
    missing: dict[str, Absence] = field(default_factory=dict)
    central: CentralSpend | None = None

    def site(self, name: str) -> SiteRound:
        """The entry of a hospital, made if there is none."""
        return self.sites.setdefault(name, SiteRound())

    def to_json(self) -> dict[str, Any]:
        """One line of the record."""
        pooled = self.pooled
        return {
            "round": self.server_round,
            "seconds": round(self.seconds, 4),
            "sites": {name: self.sites[name].to_json() for name in sorted(self.sites)},
            "pooled": {"loss": pooled.loss, "figures": _figures(pooled)} if pooled else None,
            "missing": {name: self.missing[name].to_json() for name in sorted(self.missing)},
            "central": self.central.to_json() if self.central else None,
        }

    def in_words(self, num_rounds: int) -> str:
        """One line for a log."""
        measured = "not measured"
        if self.pooled:
            measure, value = next(iter(self.pooled.figures().items()))
            measured = f"loss {self.pooled.loss:.3f}, {MEASURES[measure]} {value:.3f}"
        spent = max((site.epsilon for site in self.sites.values() if site.epsilon is not None), default=None)
        privacy = "" if spent is None else f", epsilon {spent:.2f}"
        privacy += f", hospital-level epsilon {self.central.epsilon:.2f}" if self.central else ""
        missing = "".join(f"; {name}: {absence.code}" for name, absence in sorted(self.missing.items()))
        late = "".join(
            f"; {name}: {each.staleness} late" for name, each in sorted(self.sites.items()) if each.staleness
        )
        return f"round {self.server_round} of {num_rounds}: {measured}{privacy}{missing}{late}"


class RunRecord:
    """The record of one run in its folder.

    Args:
        folder: Of the run; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._header: dict[str, Any] = {}

    def begin(
        self, study: Study, *, run: str, variant: str, engine: str, num_parameters: int, clipping: str | None
    ) -> None:
        """Write the header of a run that starts or goes on."""
        before = read_header(self.folder)
        self._header = {
            "study": study.name,
            "title": study.title,
            "variant": variant,
            "run": run,
            "engine": engine,
            "status": "running",
            "reason": "",
            "started": before["started"] if before.get("run") == run else _now(),
            "finished": None,
            "seconds": 0.0,
            "seed": study.seed,
            "num_rounds": study.num_rounds,
            "num_parameters": num_parameters,
            "clipping": clipping,
            "averaged_from_round": first_averaged_round(study),
            "personal": study.is_personal,
            "starts_from": before.get("starts_from") if before.get("run") == run else None,
            "best_round": before.get("best_round") if before.get("run") == run else None,
            "versions": {"consilium": _own_version(), **{name: version(name) for name in ("flwr", "torch", "opacus")}},
            "sites": {},
            "refused": {},
            "settings": study.to_table(),
        }
        self._write_header()

    def start_from(self, origin: dict[str, Any]) -> None:
        """Add which earlier model the run starts from."""
        self._header["starts_from"] = origin
        self._write_header()

    def agree(self, sites: dict[str, dict[str, Any]], refused: dict[str, Absence]) -> None:
        """Add what the hospitals said before round 1."""
        self._header["sites"] = sites
        self._header["refused"] = {name: absence.to_json() for name, absence in refused.items()}
        self._write_header()

    def noised_rounds(self) -> int:
        """Rounds that hospital-level privacy was spent on, those included that no checkpoint holds."""
        path = self.folder / NOISED_ROUNDS_FILE
        return int(json.loads(path.read_text(encoding="utf-8"))["count"]) if path.exists() else 0

    def keep_noised_rounds(self, count: int) -> None:
        """Replace `noised_rounds`, durably."""
        write_atomically(self.folder / NOISED_ROUNDS_FILE, json.dumps({"count": count}) + "\n")

    def append(self, record: RoundRecord) -> None:
        """Add a round, durably."""
        with (self.folder / ROUNDS_FILE).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record.to_json(), allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def keep_rounds(self, last_round: int) -> None:
        """Drop lines after a round, a torn last line included: rounds that no checkpoint holds are run again."""
        path = self.folder / ROUNDS_FILE
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        write_atomically(path, "".join(lines[:last_round]))

    def keep_best_round(self, best: dict[str, Any]) -> None:
        """Write which round was the best so far, and its loss."""
        self._header["best_round"] = best
        self._write_header()

    def finish(self, status: Status, *, reason: str, seconds: float) -> None:
        """Write how the run ended."""
        self._header |= {"status": status, "reason": reason, "finished": _now(), "seconds": round(seconds, 3)}
        self._write_header()

    def _write_header(self) -> None:
        write_atomically(self.folder / RUN_FILE, json.dumps(self._header, indent=2) + "\n")


def read_header(folder: Path) -> dict[str, Any]:
    """What ``run.json`` holds; empty if there is none."""
    path = folder / RUN_FILE
    header: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return header


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one step; after a crash it holds the old content or the new, never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _own_version() -> str:
    """From the project's file, which a bundle holds too; a bundle is never installed."""
    path = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if path.exists():
        return str(tomllib.loads(path.read_text(encoding="utf-8"))["project"]["version"])
    return version("consilium")


def _figures(measured: Measurement | None) -> dict[str, float | None]:
    return {measure: _finite(value) for measure, value in measured.figures().items()} if measured else {}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
