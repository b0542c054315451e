"""A run is checked before it is handed over, and its end is what Flower and its own record agree on."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import coordinators
import pytest
from rich.console import Console
from typer.testing import CliRunner

from fl_contract.errors import RunError, SettingError
from fl_contract.study_file import STUDIES
from fl_server.cli import app
from fl_server.host.federation import FederationFolder
from fl_server.host.run_commands import _Watched
from fl_server.host.run_views import print_run_table, refusals
from fl_server.host.runs import RunPlan, RunState, pull_run, resumed_folder, study_in_bundle


def bundle(**studies: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in studies.items():
            archive.writestr(f"studies/{name}.toml", text)
        archive.writestr("studies/deeper/hidden.toml", "")
    return content.getvalue()


BUNDLE = bundle(digits=(STUDIES / "digits.toml").read_text())


def state(out: Path, **changed: Any) -> RunState:
    values = {"run_id": 7, "status": "completed", "details": "", "study": "digits", "started": "2026-11-29T12:00:00"}
    return RunState(out=out, **{**values, **changed})


def write_record(out: Path, header: dict[str, Any], *rounds: dict[str, Any]) -> None:
    folder = out / "private"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"num_rounds": 5, "refused": {}, "reason": "", **header}))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rounds))


@pytest.fixture
def folder(tmp_path: Path) -> FederationFolder:
    return coordinators.new_folder(tmp_path / "federation")


def test_a_study_is_read_as_the_bundle_holds_it() -> None:
    changed = (STUDIES / "digits.toml").read_text().replace("num-rounds = 20", "num-rounds = 7")

    study = study_in_bundle(bundle(digits=changed), "digits", {"privacy.epsilon": 3.0})

    assert (study.num_rounds, study.privacy.epsilon) == (7, 3.0)


@pytest.mark.parametrize("name", ["mnist", "hidden", "../digits"])
def test_a_study_that_the_bundle_does_not_hold_is_refused(name: str) -> None:
    with pytest.raises(SettingError):
        study_in_bundle(BUNDLE, name, {})


def test_what_is_no_bundle_is_refused() -> None:
    with pytest.raises(SettingError, match="expected a bundle"):
        study_in_bundle(b"text", "digits", {})


def test_a_plan_names_study_folder_and_overrides_for_the_apps(tmp_path: Path) -> None:
    overrides = {"num-rounds": 3}
    study = study_in_bundle(BUNDLE, "digits", overrides)
    plan = RunPlan(study=study, overrides=overrides, bundle=BUNDLE, out=tmp_path, resume=False)

    assert plan.run_config() == {"study": "digits", "out": str(tmp_path), "resume": False, "num-rounds": 3}
    assert plan.record_folder == tmp_path / "private"


@pytest.mark.parametrize(
    ("status", "header", "expected"),
    [
        ("completed", {"status": "completed"}, True),
        ("completed", {"status": "converged"}, True),
        ("completed", {"status": "running"}, False),
        ("completed", {"status": "failed"}, False),
        ("failed", {"status": "completed"}, False),
        ("stopped", {"status": "running"}, False),
    ],
)
def test_a_run_is_complete_only_if_flower_and_the_record_say_so(
    tmp_path: Path, status: str, header: dict[str, Any], expected: bool
) -> None:
    write_record(tmp_path, header)

    assert state(tmp_path, status=status).is_complete is expected


def test_a_run_without_a_record_is_not_complete(tmp_path: Path) -> None:
    assert not state(tmp_path).is_complete


def test_the_reason_is_the_recorded_one_then_flowers(tmp_path: Path) -> None:
    assert state(tmp_path, status="stopped").reason == "it ended as stopped; fl-server log 7 says more"
    assert state(tmp_path, status="failed", details="No heartbeat").reason == "No heartbeat"
    write_record(tmp_path, {"status": "failed", "reason": "too few hospitals"})
    assert state(tmp_path, status="failed", details="No heartbeat").reason == "too few hospitals"


def test_refusals_are_named_by_hospital_with_their_rounds(tmp_path: Path) -> None:
    absent = {"code": "deadline", "reason": "No answer."}
    refused = {"south": {"code": "policy", "reason": "Not allowed."}}
    entries = [{"round": number, "missing": {"north": absent}} for number in (1, 3)]
    write_record(tmp_path, {"status": "completed", "refused": refused}, *entries)

    assert refusals(state(tmp_path)) == ["south: policy: Not allowed.", "north in round 1, 3: deadline: No answer."]


def test_the_table_shows_runs_with_and_without_a_record(tmp_path: Path) -> None:
    write_record(tmp_path / "with", {"status": "completed"}, {"round": 1, "missing": {}})
    console = Console(record=True, width=40, file=io.StringIO())

    print_run_table([state(tmp_path / "with"), state(tmp_path / "without", run_id=8, status="pending")], console)

    lines = console.export_text().splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["7", "digits", "completed", "1", "of", "5", "2026-11-29T12:00:00", "with"],
        ["8", "digits", "pending", "–", "2026-11-29T12:00:00", "without"],
    ]


def test_a_run_is_resumed_from_a_folder_of_the_federation_only(folder: FederationFolder, tmp_path: Path) -> None:
    write_record(folder.runs / "digits-1", {"status": "running"})
    write_record(tmp_path / "elsewhere", {"status": "running"})
    (folder.runs / "empty").mkdir()

    assert resumed_folder(folder, folder.runs / "digits-1") == (folder.runs / "digits-1").resolve()
    assert resumed_folder(folder, Path("digits-1")) == (folder.runs / "digits-1").resolve()
    for wrong in (tmp_path / "elsewhere", folder.runs / "empty", Path("absent"), folder.runs / "digits-1" / "private"):
        with pytest.raises(SettingError, match="expected the folder of a run"):
            resumed_folder(folder, wrong)


def test_a_run_is_pulled_without_its_lock_into_a_new_or_empty_folder(tmp_path: Path) -> None:
    write_record(tmp_path / "run", {"status": "completed"})
    (tmp_path / "run" / "private" / "run.lock").touch()

    pulled = pull_run(state(tmp_path / "run"), tmp_path / "copy")

    assert {path.name for path in (pulled / "private").iterdir()} == {"run.json", "rounds.jsonl"}
    with pytest.raises(SettingError, match="exists and is not empty"):
        pull_run(state(tmp_path / "run"), tmp_path / "copy")


def test_a_run_without_a_result_is_not_pulled(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="wrote no result"):
        pull_run(state(tmp_path / "run"), tmp_path / "copy")


def test_watching_forgives_a_superlink_that_is_away_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[RunState | RunError] = [
        state(tmp_path, status="running"),
        RunError("away"),
        state(tmp_path, status="failed"),
        RunError("away"),
    ]

    def ask() -> RunState:
        answer = answers.pop(0)
        if isinstance(answer, RunError):
            raise answer
        return answer

    monkeypatch.setattr("fl_server.host.run_commands.LOOK_SECONDS", 0.0)
    watched = _Watched(ask)

    assert [watched.is_running(), watched.is_running()] == [True, False]
    monkeypatch.setattr("fl_server.host.run_commands.PATIENCE_SECONDS", -1.0)
    with pytest.raises(RunError, match="away"):
        watched.is_running()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "absent"], 2, "absent"),
        (["run", "digits", "--set", "privacy.epsilon=-1"], 2, "privacy.epsilon=-1"),
        (["run", "digits", "--set", "no-such-key=1"], 2, "no-such-key"),
        (["run", "elsewhere/digits.toml"], 2, "from the bundle only"),
        (["run", "digits", "--bundle", "absent.fab"], 2, "--bundle=absent.fab; cannot be read"),
        (["run", "digits", "--resume", "absent"], 2, "expected the folder of a run"),
        (["run", "digits"], 1, "the coordinator does not answer"),
        (["status"], 1, "start it: fl-server start"),
        (["sites"], 1, "the coordinator does not answer"),
        (["stop", "7"], 1, "the coordinator does not answer"),
        (["expel", "north"], 2, "say it with --yes"),
    ],
)
def test_what_cannot_be_done_is_said_with_a_code(
    folder: FederationFolder, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    path = tmp_path / "bundle.fab"
    path.write_bytes(BUNDLE)
    given = [*arguments, "--bundle", str(path)] if arguments[0] == "run" and "--bundle" not in arguments else arguments

    result = CliRunner().invoke(app, [*given, "--folder", str(folder.root)])

    assert (result.exit_code, message in result.output) == (code, True), result.output


def test_a_dry_run_says_what_would_be_run_and_which_bytes(folder: FederationFolder, tmp_path: Path) -> None:
    path = tmp_path / "bundle.fab"
    path.write_bytes(BUNDLE)

    result = CliRunner().invoke(
        app, ["run", "digits", "--dry-run", "--bundle", str(path), "--folder", str(folder.root)]
    )

    assert result.exit_code == 0, result.output
    assert "at most 20 rounds" in " ".join(result.output.split())
    assert "bundle   sha256 " in result.output
    assert list(folder.runs.iterdir()) == []
