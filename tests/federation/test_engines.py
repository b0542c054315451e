"""Both engines run the same apps: the same seed gives the same model where no privacy noise is drawn."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result
from federation_harness import Outcome
from typer.testing import CliRunner

from fl_server.cli import app

FL_SERVER = Path(sys.executable).parent / "fl-server"
REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = ["--set", "privacy.mechanism=none", "--set", "num-rounds=3", "--set", "stopping.patience=0"]


def _without_a_network() -> list[str]:
    """A command that runs another in a network namespace with nothing but loopback, where the system allows it.

    Ray asks for a cloud's metadata at an address outside this machine and has no switch for it.
    """
    shell = shutil.which("unshare") and shutil.which("ip") and shutil.which("sh")
    isolated = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "isolated"]
    allowed = shell and subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode == 0
    return isolated if allowed else []


def _processes_of(home: Path) -> list[int]:
    """Processes whose environment names a folder as Flower's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"FLWR_HOME={home.resolve()}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _wait_for(condition: Callable[[], bool], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def _count_rounds(folder: Path) -> int:
    path = folder / "rounds.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _run_here(*arguments: str) -> Result:
    """Run a command of ours in this process, which has imported already what a new one would wait for."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))


def _simulate_on_flower(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(FL_SERVER), "simulate", "--no-baselines", "--engine", "flower", "--out", str(out), *arguments]
    return subprocess.run([*_without_a_network(), *command], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_flower_s_simulation_and_the_local_engine_give_the_same_result(tmp_path: Path) -> None:
    local = _run_here("simulate", "--no-baselines", "--out", str(tmp_path / "local"), *SETTINGS)
    flower = _simulate_on_flower(tmp_path / "flower", *SETTINGS)

    assert (local.exit_code, flower.returncode) == (0, 0), local.output + flower.stderr
    expected, outcome = Outcome(tmp_path / "local" / "federated"), Outcome(tmp_path / "flower" / "federated")
    assert (expected.header["engine"], outcome.header["engine"]) == ("local", "flower")
    assert {name: array.tobytes() for name, array in outcome.model.items()} == {
        name: array.tobytes() for name, array in expected.model.items()
    }
    assert [line["pooled"] for line in outcome.rounds] == [line["pooled"] for line in expected.rounds]


@pytest.mark.slow
def test_a_run_that_fails_on_flower_exits_with_1_and_names_the_reason(tmp_path: Path) -> None:
    failing = ["--set", "simulation.require-privacy=true"]  # and the run asks for none

    result = _simulate_on_flower(tmp_path, *SETTINGS, *failing)

    assert result.returncode == 1
    assert "hospital-1: policy" in result.stderr
    assert json.loads((tmp_path / "federated" / "run.json").read_text())["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_flower_run_that_is_stopped_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    endless = ["--set", "privacy.mechanism=none", "--set", "num-rounds=5000", "--set", "stopping.patience=0"]
    command = [str(FL_SERVER), "simulate", "--no-baselines", "--out", str(out), *endless, "--engine", "flower"]
    run = subprocess.Popen([*_without_a_network(), *command], stdout=subprocess.PIPE, text=True)
    began = _wait_for(lambda: _count_rounds(out / "federated") > 1, seconds=240)
    at_work = _processes_of(out / "flower")

    run.send_signal(number)
    output, _ = run.communicate(timeout=60)

    assert began
    assert len(at_work) > 3
    assert run.returncode == 130
    assert "go on with: fl-server simulate breast-cancer --set privacy.mechanism=none" in output
    assert _processes_of(out / "flower") == []
    before = _count_rounds(out / "federated")
    time.sleep(1)
    assert _count_rounds(out / "federated") == before
    assert "stopped" in _run_here("runs", str(tmp_path)).output


@contextmanager
def _managed_superlink_ended(home: Path) -> Iterator[None]:
    """End what Flower's own command starts and leaves running."""
    try:
        yield
    finally:
        for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            for pid in _processes_of(home):
                os.kill(pid, number)
            if _wait_for(lambda: not _processes_of(home), seconds=seconds):
                break


@pytest.mark.slow
def test_flower_s_own_command_runs_the_default_study_from_a_clean_copy(tmp_path: Path) -> None:
    copy, home = tmp_path / "consilium", tmp_path / "flower-home"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, copy / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "FLWR_HOME": str(home.resolve()),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "PATH": f"{FL_SERVER.parent}{os.pathsep}{os.environ['PATH']}",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    out = tmp_path / "out"
    settings = f'out="{out}" num-rounds=2 privacy.mechanism="none" stopping.patience=0 federation.min-sites=2'
    command = [*_without_a_network(), str(FL_SERVER.parent / "flwr"), "run", ".", "--stream", "--run-config", settings]

    with _managed_superlink_ended(home):
        result = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    header = Outcome(out / "federated").header if (out / "federated").exists() else {}
    assert header.get("status") == "completed", result.stdout + result.stderr
    assert _processes_of(home) == []
