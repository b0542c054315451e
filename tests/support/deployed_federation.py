"""A federation as it is deployed: our own commands, real processes, TLS, node keys, an approved bundle, SQLite state.

Nothing is imported from the product: what a person types is what runs.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMANDS = Path(sys.executable).parent
START_SECONDS = 120.0
END_SECONDS = 30.0


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(happened: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Look ten times a second.

    Raises:
        TimeoutError: It did not happen.
    """
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


@dataclass
class Service:
    """A command that runs in the foreground until it is ended.

    Attributes:
        process: It.
        output: File of what it printed.
    """

    process: subprocess.Popen[bytes]
    output: Path

    def printed(self) -> str:
        """All that it printed until now."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def await_text(self, text: str, *, seconds: float = START_SECONDS) -> None:
        """Wait until it has printed something that the pattern matches.

        Raises:
            TimeoutError: It did not, or it ended; with all that it printed.
        """

        def said() -> bool:
            return re.search(text, self.printed()) is not None

        try:
            wait_until(lambda: said() or self.process.poll() is not None, seconds=seconds, what=text)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.printed()[-4000:]}") from None
        if not said():
            raise TimeoutError(f"{text!r} was not said; exit code {self.process.returncode}\n{self.printed()[-4000:]}")

    def end(self) -> int:
        """Ask it to end, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_SECONDS)

    def kill(self) -> None:
        """End it, and all that it started, as a machine that loses power does."""
        processes = descendants(self.process.pid)
        for pid in (self.process.pid, *processes):
            kill(pid)
        self.process.wait(END_SECONDS)


def kill(pid: int) -> None:
    """SIGKILL, if it is there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def descendants(pid: int) -> list[int]:
    """Living processes below a process."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found, level = [], [pid]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found


def command_line(pid: int) -> str:
    """Of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@dataclass
class Federation:
    """A coordinator and its hospitals below one folder.

    Attributes:
        folder: For everything: ``federation/``, ``hospitals/<name>/site.toml``, ``dist/``, ``output/``.
        port: Hospitals' port of the coordinator.
        operator_port: Of the coordinator, on loopback.
        environment: Of every command, beside our own.
        services: What runs, by name.
        prefixes: What goes before the commands of a host, such as ``ip netns exec``; by service name.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    operator_port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    prefixes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def run(
        self, *words: str, host: str = "coordinator", check: bool = True, timeout: float = START_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of ours to its end, in the federation's folder.

        Raises:
            RuntimeError: It failed, and that was not expected.
        """
        done = subprocess.run(
            [*self._words(words, host)],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def start(self, name: str, *words: str, environment: Mapping[str, str] | None = None) -> Service:
        """Start a command that goes on."""
        output = self.folder / "output" / f"{name}-{len(list((self.folder / 'output').glob(f'{name}-*')))}.txt"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [*self._words(words, name)],
                cwd=self.folder,
                env=self._environment() | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.services[name] = Service(process, output)
        return self.services[name]

    def init(self, *also: str, address: str = "localhost") -> None:
        """Make the federation, and the bundle that hospitals approve."""
        (self.folder / "output").mkdir()
        (self.folder / "hospitals").mkdir()
        addresses = [word for each in also for word in ("--also", each)]
        ports = ["--port", str(self.port), "--operator-port", str(self.operator_port)]
        self.run("fl-server", "init", "--name", "tried", "--address", address, *addresses, *ports)
        self.run("fl-server", "bundle", "--out", "dist")

    @property
    def bundle(self) -> Path:
        """The bundle that `init` made."""
        (path,) = (self.folder / "dist").glob("*.fab")
        return path

    def site_file(self, name: str) -> Path:
        """Of a hospital."""
        return self.folder / "hospitals" / name / "site.toml"

    def start_coordinator(self, *, environment: Mapping[str, str] | None = None) -> Service:
        """Start it and wait until it is ready."""
        service = self.start("coordinator", "fl-server", "start", environment=environment)
        service.await_text("ready")
        return service

    def enrol(self, name: str, site_toml: str, *, address: str | None = None) -> None:
        """Make a hospital that is admitted, has joined and has approved the bundle; its coordinator runs."""
        site = self.site_file(name)
        site.parent.mkdir()
        site.write_text(site_toml, encoding="utf-8")
        site.parent.chmod(0o700)
        self.run("fl-client", "enroll", str(site), "--out", f"{name}.request.json", host=name)
        self.run("fl-server", "admit", f"{name}.request.json", "--out", f"{name}.invitation.json")
        if address is not None:
            self._change_address(self.folder / f"{name}.invitation.json", address)
        self.run("fl-client", "join", str(site), f"{name}.invitation.json", "--yes", host=name)
        self.run("fl-client", "approve", str(site), str(self.bundle), "--by", "privacy officer", "--yes", host=name)

    def start_hospital(self, name: str, *, environment: Mapping[str, str] | None = None) -> Service:
        """Start it and wait until the coordinator has it online."""
        self.start_hospitals(name, environment=environment)
        return self.services[name]

    def start_hospitals(self, *names: str, environment: Mapping[str, str] | None = None) -> None:
        """Start them beside each other and wait until the coordinator has all online."""
        for name in names:
            self.start(name, "fl-client", "start", str(self.site_file(name)), environment=environment)
        for name in names:
            self.services[name].await_text("connected")

    def run_study(
        self, study: str, *words: str, check: bool = True, timeout: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a study with the bundle that hospitals approved, to its end."""
        return self.run("fl-server", "run", study, "--bundle", str(self.bundle), *words, check=check, timeout=timeout)

    def last_run(self) -> Path:
        """Folder of the latest run's variant: record, model, checkpoint."""
        headers = sorted(
            (self.folder / "federation" / "runs").glob("*/*/run.json"), key=lambda path: path.stat().st_mtime
        )
        return headers[-1].parent

    def header(self) -> dict[str, Any]:
        """The latest run's record."""
        content: dict[str, Any] = json.loads((self.last_run() / "run.json").read_text(encoding="utf-8"))
        return content

    def rounds(self) -> list[dict[str, Any]]:
        """The latest run's rounds, as far as it is."""
        path = self.last_run() / "rounds.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def journal(self, name: str) -> list[dict[str, Any]]:
        """What a hospital's hash-chained log holds; its own command has to find it whole."""
        self.run("fl-client", "log", "verify", str(self.site_file(name)), host=name)
        path = self.site_file(name).parent / "journal.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def pids(self, name: str) -> list[int]:
        """A service's process and all below it."""
        return [self.services[name].process.pid, *descendants(self.services[name].process.pid)]

    def pid_of(self, name: str, part: str) -> int:
        """The process of a service whose command line holds a text.

        Raises:
            LookupError: There is none.
        """
        found = [pid for pid in self.pids(name) if part in command_line(pid)]
        if not found:
            raise LookupError(f"{name}: no process with {part!r}: {[command_line(pid) for pid in self.pids(name)]}")
        return found[-1]

    def end(self) -> None:
        """End everything that was started, hospitals first."""
        for service in reversed(self.services.values()):
            try:
                service.end()
            except subprocess.TimeoutExpired:
                service.kill()

    def _change_address(self, invitation: Path, address: str) -> None:
        content = json.loads(invitation.read_text(encoding="utf-8"))
        invitation.write_text(json.dumps(content | {"address": address}), encoding="utf-8")

    def _words(self, words: Sequence[str], host: str) -> Iterator[str]:
        yield from self.prefixes.get(host, ())
        yield str(COMMANDS / words[0])
        yield from words[1:]

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "COV_", "PYTEST_"))}
        return {**kept, "COLUMNS": "160", "OMP_NUM_THREADS": "1", **self.environment}


@contextmanager
def federation(folder: Path) -> Iterator[Federation]:
    """A federation in an empty folder, with nothing started; all that was started is ended."""
    made = Federation(folder)
    try:
        yield made
    finally:
        made.end()
