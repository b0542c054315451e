"""Runs of a federation: the only place that starts, finds and ends them at the SuperLink."""

import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_contract.errors import RunError, SettingError
from fl_contract.study import Study
from fl_contract.study_file import Scalar, load_study
from fl_server.host.federation import FederationFolder
from fl_server.run_lock import LOCK_FILE
from fl_server.run_record import RUN_FILE, read_header
from fl_server.settings import variant_of

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

MOST_RUNS = 200
"""In a list; the newest."""
ENDED_WELL = ("completed", "converged")
"""What the run's own record then says."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What will be run.

    Attributes:
        study: As it is in the bundle, with the overrides.
        overrides: Values by dotted key.
        bundle: The exact bytes that hospitals must have approved.
        out: Absolute folder of the results.
        resume: Go on from what the folder holds.
    """

    study: Study
    overrides: Mapping[str, Scalar]
    bundle: bytes
    out: Path
    resume: bool

    @property
    def sha256(self) -> str:
        """Of the bundle."""
        return hashlib.sha256(self.bundle).hexdigest()

    @property
    def record_folder(self) -> Path:
        """Where the run's own record will be."""
        return self.out / variant_of(self.study)

    def run_config(self) -> dict[str, Scalar]:
        """What Flower hands to the apps."""
        return {"study": self.study.name, "out": str(self.out), "resume": self.resume, **self.overrides}


def study_in_bundle(bundle: bytes, name: str, overrides: Mapping[str, Scalar]) -> Study:
    """Read a study as the bundle holds it.

    Raises:
        SettingError: The bundle is none or does not hold the study, or a key breaks a rule.
    """
    with tempfile.TemporaryDirectory() as scratch:
        studies = Path(scratch)
        try:
            with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
                for member in archive.namelist():
                    path = Path(member)
                    if path.parts[:-1] == ("studies",) and path.suffix == ".toml":
                        (studies / path.name).write_bytes(archive.read(member))
        except zipfile.BadZipFile as error:
            raise SettingError("--bundle; expected a bundle that fl-server bundle made") from error
        return load_study(name, directory=studies, overrides=overrides)


def check_study(study: Study) -> None:
    """Raise what the run would stop for before its first round, as far as the coordinator can tell.

    Raises:
        PrivacyError: The study is private and its model cannot be.
    """
    from privacy.model_check import check_dp_compatible

    model = study.build_model()
    if study.is_private:
        check_dp_compatible(model)


def resumed_folder(folder: FederationFolder, run: Path) -> Path:
    """The absolute folder of a run that is to go on.

    Raises:
        SettingError: It is not one of this federation's.
    """
    found = run if run.is_dir() else folder.runs / run
    absolute = found.resolve()
    if absolute.parent != folder.runs.resolve() or not any(absolute.glob(f"*/{RUN_FILE}")):
        raise SettingError(f"--resume={run}; expected the folder of a run in {folder.runs}")
    return absolute


def start_run(control: "ControlHttpClient", plan: RunPlan) -> int:
    """Hand the bundle and the settings to the SuperLink.

    Returns:
        Flower's number of the run.

    Raises:
        RunError: The SuperLink does not take it.
    """
    from flwr.common.serde import fab_to_proto, user_config_to_proto
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.supercore.fab import Fab

    request = StartRunRequest(
        fab=fab_to_proto(Fab(plan.sha256, plan.bundle, {})),
        override_config=user_config_to_proto(plan.run_config()),
    )
    answer = control.StartRun(request)
    if not answer.HasField("run_id"):
        raise RunError("the SuperLink did not take the run: the bundle is larger than Flower allows, or no bundle")
    return int(answer.run_id)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A run as SuperLink and its own record know it.

    Attributes:
        run_id: Flower's.
        status: ``pending``, ``starting``, ``running``, ``completed``, ``failed`` or ``stopped``.
        details: Flower's words on it.
        study: Name of the study.
        out: Folder of the results.
        started: UTC, as Flower says.
    """

    run_id: int
    status: str
    details: str
    study: str
    out: Path
    started: str

    @property
    def has_ended(self) -> bool:
        """Whether it is over, well or not."""
        return self.status not in ("pending", "starting", "running")

    @property
    def record_folder(self) -> Path | None:
        """Of the run's own record; None before it has one."""
        found = sorted(self.out.glob(f"*/{RUN_FILE}"))
        return found[0].parent if found else None

    def header(self) -> dict[str, Any]:
        """The run's own record; empty before it has one."""
        return read_header(self.record_folder) if self.record_folder else {}

    @property
    def is_complete(self) -> bool:
        """Whether Flower and the record agree that it ended well."""
        return self.status == "completed" and self.header().get("status") in ENDED_WELL

    @property
    def reason(self) -> str:
        """Why it did not end well."""
        recorded = str(self.header().get("reason", "")) if self.header().get("status") == "failed" else ""
        return recorded or self.details or f"it ended as {self.status}; fl-server log {self.run_id} says more"


def list_runs(control: "ControlHttpClient") -> list[RunState]:
    """Runs of the federation, the newest first."""
    from flwr.proto.control_pb2 import ListRunsRequest

    runs = control.ListRuns(ListRunsRequest(limit=MOST_RUNS)).run_dict.values()
    return [_state(run) for run in sorted(runs, key=lambda each: str(each.pending_at), reverse=True)]


def find_run(control: "ControlHttpClient", name: str) -> RunState:
    """A run by Flower's number, or by its folder's name: then the last of those that used the folder.

    Raises:
        SettingError: There is no such run.
    """
    from flwr.proto.control_pb2 import ListRunsRequest

    if name.isdecimal():
        return _state(control.ListRuns(ListRunsRequest(run_id=int(name))).run_dict[int(name)])
    for state in list_runs(control):
        if state.out.name == Path(name).name:
            return state
    raise SettingError(f"run={name!r}; expected the number or folder of a run; fl-server status lists them")


def stop_run(control: "ControlHttpClient", state: RunState) -> None:
    """End a run; what its checkpoint holds stays.

    Raises:
        RunError: It has ended already, or the SuperLink does not end it.
    """
    from flwr.proto.control_pb2 import StopRunRequest

    if state.has_ended:
        raise RunError(f"run {state.run_id} has ended already: {state.status}")
    if not control.StopRun(StopRunRequest(run_id=state.run_id)).success:
        raise RunError(f"run {state.run_id}: the SuperLink did not stop it; look again: fl-server status")


def read_log(control: "ControlHttpClient", state: RunState, *, follow: bool) -> Iterator[str]:
    """What the coordinator's app wrote; nothing of hospitals.

    Args:
        control: Client.
        state: Of the run.
        follow: Until it ends; otherwise what there is now.
    """
    from flwr.proto.control_pb2 import StreamLogsRequest

    if not follow and state.status in ("pending", "starting"):
        return
    for piece in control.StreamLogs(StreamLogsRequest(run_id=state.run_id, after_timestamp=0.0)):
        yield str(piece.log_output)
        if not follow:
            return


def pull_run(state: RunState, to: Path) -> Path:
    """Copy a run's folder, model, record and report, out of the federation's.

    Raises:
        RunError: The run wrote nothing yet.
        SettingError: The target is in use.
    """
    if state.record_folder is None:
        raise RunError(f"run {state.run_id}: wrote no result; fl-server log {state.run_id} says why")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise SettingError(f"--to={to}; exists and is not empty; choose another")
    shutil.copytree(state.out, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LOCK_FILE))
    return to


def _state(run: Any) -> RunState:
    from flwr.common.serde import user_config_from_proto

    status = str(run.status.sub_status or run.status.status)
    config = user_config_from_proto(run.override_config)
    return RunState(
        run_id=int(run.run_id),
        status=status,
        details=str(run.status.details),
        study=str(config.get("study", "")),
        out=Path(str(config.get("out", ""))),
        started=str(run.pending_at),
    )
