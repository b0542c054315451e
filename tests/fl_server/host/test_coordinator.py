"""``fl-server start`` for real: hospitals come and go, runs end with true exit codes, and a killed part comes back."""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coordinators
import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from typer.testing import CliRunner

from fl_contract.enrolment import Invitation
from fl_server.cli import app
from fl_server.host.federation import FederationFolder
from fl_server.host.provisioning import lock_file
from fl_server.host.site_record import find_site
from fl_server.host.start import is_healthy

pytestmark = pytest.mark.deployment


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coordinator")


@pytest.fixture(scope="module")
def folder(root: Path) -> Iterator[FederationFolder]:
    folder = coordinators.new_folder(root / "federation")
    command = [coordinators.FL_SERVER, "start", "--folder", str(folder.root)]
    with coordinators.serving(folder, command, root / "output"):
        yield folder
    assert subprocess.run(["pgrep", "-f", str(folder.root)], check=False, capture_output=True).stdout == b""


def ask(folder: FederationFolder, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--folder", str(folder.root)])


def request_file(path: Path, site: str, key: ec.EllipticCurvePrivateKey) -> str:
    path.write_text(coordinators.new_request(site, key).to_json())
    return str(path)


def wait(condition: Callable[[], Any], *, seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.3)
    return found


def pid_of(folder: FederationFolder, name: str) -> int:
    """Of the process of that name that was started last."""
    lines = map(json.loads, (folder.logs / "supervisor.jsonl").read_text().splitlines())
    return int([line["pid"] for line in lines if line["message"] == f"started {name}"][-1])


def test_it_says_that_it_is_ready_and_where(folder: FederationFolder, root: Path) -> None:
    line = wait(lambda: [each for each in (root / "output").read_text().splitlines() if each.startswith("ready")])[0]

    assert f"hospitals at 127.0.0.1:{folder.settings().port}" in line
    assert "authority SHA256 " in line


def test_a_second_one_on_the_same_folder_is_refused(folder: FederationFolder) -> None:
    result = ask(folder, "start")

    assert (result.exit_code, "runs on it already" in result.output) == (1, True)


def test_a_hospital_is_admitted_listed_rekeyed_and_expelled(folder: FederationFolder, tmp_path: Path) -> None:
    key, second = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    request, again = request_file(tmp_path / "1", "north", key), request_file(tmp_path / "2", "north", second)
    out = tmp_path / "invitation.json"

    nowhere = ask(folder, "admit", request, "--out", str(tmp_path / "absent" / "invitation.json"))
    assert (nowhere.exit_code, find_site(folder, "north")) == (2, None)
    admitted = ask(folder, "admit", request, "--out", str(out))
    assert admitted.exit_code == 0, admitted.output
    first = find_site(folder, "north")
    assert first is not None
    assert Invitation.read(out).node_key == first.fingerprint
    assert "north" in ask(folder, "sites").output
    assert "never seen" in ask(folder, "sites").output

    repeated = ask(folder, "admit", request, "--out", str(out))
    assert (repeated.exit_code, find_site(folder, "north")) == (0, first)

    assert ask(folder, "admit", again, "--out", str(out)).exit_code == 2  # nobody answers the question
    rekeyed = ask(folder, "admit", again, "--out", str(out), "--yes")
    assert rekeyed.exit_code == 0, rekeyed.output
    now = find_site(folder, "north")
    assert now is not None
    assert (now.node_id != first.node_id, now.burned_keys) == (True, (first.fingerprint,))
    assert "cannot come back" in ask(folder, "admit", request, "--yes").output

    assert ask(folder, "expel", "north", "--yes").exit_code == 0
    assert "expelled" in ask(folder, "sites").output
    assert ask(folder, "expel", "north", "--yes").exit_code == 2
    assert "cannot come back" in ask(folder, "admit", again, "--yes").output


def test_an_admission_that_was_cut_short_can_be_done_again(folder: FederationFolder, tmp_path: Path) -> None:
    request = request_file(tmp_path / "1", "west", ec.generate_private_key(ec.SECP384R1()))
    out = str(tmp_path / "invitation.json")
    ask(folder, "admit", request, "--out", out)
    before = find_site(folder, "west")
    (folder.sites / "west.json").unlink()  # as if it had not been written

    ask(folder, "admit", request, "--out", out)

    after = find_site(folder, "west")
    assert before is not None
    assert after is not None
    assert before.node_id == after.node_id


def test_a_run_that_fails_exits_with_1_and_the_recorded_reason(folder: FederationFolder) -> None:
    result = ask(folder, "run", "digits", "--set", "federation.round-timeout-seconds=1")

    assert result.exit_code == 1, result.output
    assert "failed: " in result.output
    assert "min-sites" in result.output
    listed = ask(folder, "status").output
    assert "digits" in listed
    assert "failed" in listed


def test_a_run_is_left_watched_stopped_and_its_exit_codes_are_true(folder: FederationFolder, tmp_path: Path) -> None:
    command = [coordinators.FL_SERVER, "run", "digits", "--folder", str(folder.root)]
    with (tmp_path / "output").open("wb") as stream:
        watching = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    run = wait(
        lambda: [line.split()[1] for line in (tmp_path / "output").read_text().splitlines() if line.startswith("run ")]
    )[0]
    wait(lambda: "0 of 20" in ask(folder, "status", run).output)  # its record has begun

    # A task that runs cannot be claimed by who has no secret.
    port = folder.settings().operator_port
    with coordinators.client(folder) as client:
        url = f"https://127.0.0.1:{port}/v1/runtime/acquire-task"
        headers = {"content-type": "application/protobuf"}
        assert client.post(url, content=AcquireTaskRequest().SerializeToString(), headers=headers).status_code == 401

    watching.send_signal(signal.SIGINT)
    assert watching.wait(60) == 130
    assert f"run {run} goes on" in (tmp_path / "output").read_text()
    assert "running" in ask(folder, "status", run).output
    assert ask(folder, "log", run).exit_code == 0

    stopped = ask(folder, "stop", run)
    assert stopped.exit_code == 0, stopped.output
    wait(lambda: "stopped" in ask(folder, "status", run).output)
    assert ask(folder, "stop", run).exit_code == 1
    assert ask(folder, "pull", run, "--to", str(tmp_path / "pulled")).exit_code == 0
    assert (tmp_path / "pulled" / "private" / "run.json").exists()


def test_a_server_app_shows_no_token_and_its_run_fails_as_soon_as_it_is_killed(
    folder: FederationFolder, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    with output.open("wb") as stream:
        command = [coordinators.FL_SERVER, "run", "digits", "--folder", str(folder.root)]
        watching = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    run = wait(lambda: [line.split()[1] for line in output.read_text().splitlines() if line.startswith("run ")])[0]
    wait(lambda: "0 of 20" in ask(folder, "status", run).output)
    newest = ["pgrep", "-nf", f"flwr-serverapp.*{folder.root}"]
    pid = int(subprocess.run(newest, capture_output=True, check=True).stdout)
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")

    os.kill(pid, signal.SIGKILL)

    assert watching.wait(20) == 1
    assert "the server app's process ended with code -9" in " ".join(output.read_text().split())
    assert "--token" not in words
    assert words[words.index("--token-file") + 1].startswith("/proc/self/fd/")


@pytest.mark.chaos
def test_a_superlink_and_an_executor_that_are_killed_come_back(folder: FederationFolder) -> None:
    for name in ("superlink", "executor"):
        before = pid_of(folder, name)
        os.kill(before, signal.SIGKILL)
        wait(lambda name=name, before=before: pid_of(folder, name) != before)  # type: ignore[misc]
    wait(lambda: is_healthy(folder))

    assert ask(folder, "sites").exit_code == 0


@pytest.mark.chaos
def test_after_a_kill_it_starts_again_and_a_signal_ends_all_with_0(tmp_path: Path) -> None:
    folder = coordinators.new_folder(tmp_path / "federation")
    command = [coordinators.FL_SERVER, "start", "--folder", str(folder.root)]

    with coordinators.serving(folder, command, tmp_path / "first") as process:
        process.kill()
        process.wait()
    left = [pid_of(folder, name) for name in ("superlink", "executor")]
    assert [Path(f"/proc/{pid}").exists() for pid in left] == [True, True]
    with coordinators.serving(folder, command, tmp_path / "second") as process:
        wait(lambda: "ready  " in (tmp_path / "second").read_text())
        pids = [pid_of(folder, name) for name in ("superlink", "executor")]
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)

    assert code == 0
    assert [Path(f"/proc/{pid}").exists() for pid in (*left, *pids)] == [False] * 4
    with lock_file(folder).open("rb") as stream:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_port_that_is_taken_is_named_at_once(folder: FederationFolder, tmp_path: Path) -> None:
    other = coordinators.new_folder(tmp_path / "federation")
    text = other.settings_file.read_text()
    other.settings_file.write_text(text.replace(str(other.settings().port), str(folder.settings().port)))

    result = ask(other, "start")

    assert (result.exit_code, "cannot listen there (Address already in use)" in result.output) == (2, True)
