"""The Flower engine: the same apps on Flower's simulation (Ray), through a SuperLink of our own on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fl_contract.errors import RunError
from fl_contract.study_file import Scalar
from fl_host.quiet_flower import QUIET_FLOWER
from fl_server.local_grid import PROJECT

START_SECONDS = 60.0
POLL_SECONDS = 0.2
TERMINATE_SECONDS = 10.0
"""For Flower's processes to end by themselves, before they are killed."""
KILL_SECONDS = 10.0
MARK = "CONSILIUM_FLOWER_RUN"
"""Variable in the environment of all that a run starts; its value is the run's own."""
LOG_FILE = "flower.log"


def run_on_flower(
    run_config: Mapping[str, Scalar], *, num_nodes: int, out: Path, stop: threading.Event | None = None
) -> None:
    """Run a study by ``flwr run`` and check how it ended: Flower's own command exits 0 when a run failed.

    Guarantees:
        - No process that Flower or Ray started is left when this returns or raises, after ``stop`` too.

    Args:
        run_config: Of the run.
        num_nodes: Simulated nodes.
        out: Folder for Flower's own state and log.
        stop: Set by another thread to end the run.

    Raises:
        RunError: Flower could not start, the run failed, or it was stopped; names the log.
    """
    home = (out / "flower").resolve()
    home.mkdir(parents=True, exist_ok=True)
    log_path = out / LOG_FILE
    commands = _Commands(home, stop or threading.Event())
    try:
        with log_path.open("ab") as log:
            _start_superlink(home, commands, log_path)
            settings = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
            command = [_command("flwr"), "run", str(PROJECT), "local", "--stream", "--run-config", settings]
            commands.run([*command, "--federation-config", f"num-supernodes={num_nodes}"], log)
            status = _last_status(commands)
    finally:
        commands.end()
    if status != "finished:completed":
        raise RunError(f"Flower's run ended as {status!r}; expected 'finished:completed'; see {log_path}")


class _Commands:
    """Flower's commands of one run, and the promise that nothing they start outlives it.

    Each is in a session of its own, which a Ctrl-C at the terminal does not reach: `end` ends it.

    Args:
        home: Flower's folder.
        stop: Set by another thread to end what runs.
    """

    def __init__(self, home: Path, stop: threading.Event) -> None:
        self._mark = uuid.uuid4().hex
        self._environment = {
            **os.environ,
            **QUIET_FLOWER,
            **_past_any_proxy(),
            "FLWR_HOME": str(home),
            "PATH": _path_with_our_commands(),
            MARK: self._mark,
        }
        self._stop = stop
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: list[str], output: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """Start a command and let it run."""
        process = subprocess.Popen(
            command, env=self._environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._started.append(process)
        return process

    def run(self, command: list[str], output: IO[bytes]) -> None:
        """Run a command to its end."""
        process = self.start(command, output)
        while process.poll() is None:
            self.pause()

    def pause(self) -> None:
        """Wait a moment; raises `RunError` if the run is to be stopped."""
        if self._stop.wait(POLL_SECONDS):
            raise RunError("Flower's run was stopped")

    def end(self) -> None:
        """End the commands and all that they started."""
        running = [process for process in self._started if process.poll() is None]
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        _end_processes(self._mark)
        for process in running:
            try:
                process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _start_superlink(home: Path, commands: _Commands, log_path: Path) -> None:
    port = _free_port()
    address = f"127.0.0.1:{port}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "{address}"\ninsecure = true\n'
    )
    command = [_command("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-file", str(home / "superlink.log")]
    command += ["--database", str(home / "state.db"), "--disable-runtime-dependency-installation"]
    process = commands.start(command, subprocess.DEVNULL)
    deadline = time.monotonic() + START_SECONDS
    while not _is_healthy(address):
        if process.poll() is not None:
            raise RunError(f"flower-superlink ended with code {process.returncode} before it was ready; see {log_path}")
        if time.monotonic() > deadline:
            raise RunError(f"flower-superlink was not ready at {address} within {START_SECONDS:g} s; see {log_path}")
        commands.pause()


def _is_healthy(address: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{address}/health", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _last_status(commands: _Commands) -> str:
    with tempfile.TemporaryFile() as output:
        commands.run([_command("flwr"), "ls", "local", "--format", "json"], output)
        output.seek(0)
        text = output.read().decode(errors="replace")
    try:
        runs = json.loads(text[text.index("{") :])["runs"]
    except (ValueError, KeyError):
        return "unknown"
    return str(max(runs, key=lambda run: str(run["pending-at"]))["status"]) if runs else "not started"


def _end_processes(mark: str) -> None:
    """End every process that carries the mark in its environment, and all descendants of those.

    Ray's processes are in sessions and groups of their own, and its workers overwrite their environment with a title:
    neither a group nor the mark alone finds all of them.
    """
    seen: set[_Process] = set()
    for number, seconds in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        deadline = time.monotonic() + seconds
        signalled: set[_Process] = set()
        while time.monotonic() < deadline:
            seen = _find_processes(mark, seen)
            if not seen:
                return
            for process in seen - signalled:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)
            signalled |= seen
            time.sleep(POLL_SECONDS)
    raise RunError(f"processes {sorted(process.pid for process in seen)} of Flower's run could not be ended; end them")


@dataclass(frozen=True)
class _Process:
    """A process of this system; the time of its start tells it from a later one with the same number."""

    pid: int
    started: str


def _find_processes(mark: str, known: set[_Process]) -> set[_Process]:
    """Living processes that carry the mark, descend from one that does, or are known from an earlier look."""
    parents: dict[_Process, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if fields[0] not in "ZX" and path.parent.name != str(os.getpid()):
            parents[_Process(int(path.parent.name), fields[19])] = int(fields[1])
    found = {process for process in parents if process in known or _carries(process.pid, mark)}
    while more := {process for process, parent in parents.items() if parent in {each.pid for each in found}} - found:
        found |= more
    return found


def _carries(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False  # it has ended, or is another user's


def _past_any_proxy() -> dict[str, str]:
    """Environment that keeps Flower's own traffic on loopback out of a proxy, with the exceptions that are set."""
    before = [os.environ[name] for name in ("NO_PROXY", "no_proxy") if os.environ.get(name)]
    addresses = ",".join(dict.fromkeys([*before, "127.0.0.1", "localhost"]))
    return {"NO_PROXY": addresses, "no_proxy": addresses}


def _command(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _path_with_our_commands() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
