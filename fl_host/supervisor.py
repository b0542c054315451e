"""The only place that starts the long-running processes of a host, keeps their output, and ends them."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from logging import Logger
from pathlib import Path
from types import FrameType

from fl_host.json_log import open_json_log
from fl_host.leftovers import Groups, hold_groups

LOOK_SECONDS = 0.2
TERMINATE_SECONDS = 10.0
"""For a child to end by itself before it is killed."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Between the end of a child and its restart, in seconds; doubled each time."""
STEADY_SECONDS = 300.0
"""A child that ran this long starts again with the first pause."""
UNEXPECTED_END = 1
"""Exit code where a child that should not have ended did so with 0."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What a terminal shows as colours; Flower prints them everywhere."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Child:
    """A process to keep.

    Attributes:
        name: Of its log, and in messages.
        command: Program and arguments; never through a shell.
        environment: Whole; nothing is inherited beside it.
        folder: Working directory.
        restarts: Start it again when it ends; otherwise its end is the end of all.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    restarts: bool


def supervise(children: Sequence[Child], logs: Path, *, on_ready: Callable[[], None] | None = None) -> int:
    """Run processes until a signal asks to end, or one that does not restart has ended.

    Guarantees:
        - What children write is their owner's alone, unless they say otherwise.
        - Each child is in a process group of its own, and all groups are ended before this returns or raises.
        - Where this process is itself killed, the next one on the same ``logs`` ends what it left.
        - Each line that a child prints is one line of ``<logs>/<name>.jsonl``.

    Args:
        children: Started in this order.
        logs: Folder of the JSON logs.
        on_ready: Called beside them, once all are started; what it raises ends all and is raised here.

    Returns:
        0 after SIGTERM, SIGINT or SIGHUP; otherwise the code of the child that ended, never 0; 128 and the signal's
        number for one that a signal ended.

    Raises:
        RunError: Another process supervises with the same ``logs``.
    """
    log = open_json_log(logs, "supervisor")
    with _ending_signals() as asked, hold_groups(logs) as groups:
        for leader in groups.end_leftovers():
            log.warning("ended what a supervisor that was killed left", extra={"pid": leader})
        kept = [_Kept(child, open_json_log(logs, child.name), log, groups) for child in children]
        try:
            for each in kept:
                each.start()
            ready = _Beside(on_ready)
            while not asked.is_set():
                for each in kept:
                    if (code := each.look()) is not None:
                        log.error("%s ended; ending all", each.child.name, extra={"code": code})
                        return code
                ready.raise_failure()
                asked.wait(LOOK_SECONDS)
            log.info("asked to end")
            return 0
        finally:
            _end_all(kept, log)


@dataclass(kw_only=True)
class _Pause:
    """How long to wait before the next start."""

    seconds: float = field(default_factory=lambda: FIRST_PAUSE)

    def next_after(self, lived: float) -> float:
        """The pause after a life of so many seconds; the one after that is twice as long."""
        pause = FIRST_PAUSE if lived >= STEADY_SECONDS else self.seconds
        self.seconds = min(2 * pause, LONGEST_PAUSE)
        return pause


@dataclass
class _Kept:
    """A child, its process now, and when it starts again."""

    child: Child
    output: Logger
    log: Logger
    groups: Groups
    process: "subprocess.Popen[bytes] | None" = None
    pump: threading.Thread | None = None
    started: float = 0.0
    again: float = 0.0
    pause: _Pause = field(default_factory=_Pause)

    def start(self) -> None:
        """Start the process and a thread that keeps what it prints."""
        self.process = subprocess.Popen(
            self.child.command,
            cwd=self.child.folder,
            env=dict(self.child.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            umask=0o077,
        )
        self.groups.keep(self.process.pid)
        self.started = time.monotonic()
        self.log.info("started %s", self.child.name, extra={"pid": self.process.pid})
        self.pump = threading.Thread(target=self._keep_output, args=(self.process,), daemon=True)
        self.pump.start()

    def look(self) -> int | None:
        """Restart the process if it is due; its code if it has ended for good."""
        if self.process is None:
            if time.monotonic() >= self.again:
                self.start()
            return None
        code = self.process.poll()
        if code is None:
            return None
        self.end_group(signal.SIGKILL)  # what it started and left
        self.process = None
        code = code if code >= 0 else 128 - code
        if not self.child.restarts:
            return code or UNEXPECTED_END
        pause = self.pause.next_after(time.monotonic() - self.started)
        self.again = time.monotonic() + pause
        self.log.warning("%s ended; starting it again", self.child.name, extra={"code": code, "pause_seconds": pause})
        return None

    def end_group(self, number: signal.Signals) -> None:
        """Signal the process and all that it started in its group."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def _keep_output(self, process: "subprocess.Popen[bytes]") -> None:
        if process.stdout is None:
            return
        with process.stdout as lines:
            for line in lines:
                if text := COLOURS.sub("", line.decode(errors="replace")).rstrip():
                    self.output.info("%s", text)


def _end_all(kept: Sequence[_Kept], log: Logger) -> None:
    """End every group: politely, then for good; the last started first."""
    running = [each for each in reversed(kept) if each.process is not None]
    for each in running:
        each.end_group(signal.SIGTERM)
    deadline = time.monotonic() + TERMINATE_SECONDS
    for each in running:
        if each.process is None:
            continue
        try:
            each.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("%s did not end within %g s; killed", each.child.name, TERMINATE_SECONDS)
        each.end_group(signal.SIGKILL)
        each.process.wait()
    for each in running:
        if each.pump is not None:
            each.pump.join(1.0)
    log.info("all ended")


class _Beside(threading.Thread):
    """Runs a task beside the supervision and keeps its failure."""

    def __init__(self, task: Callable[[], None] | None) -> None:
        super().__init__(daemon=True)
        self._task = task
        self._failure: Exception | None = None
        self.start()

    def run(self) -> None:
        """Run the task."""
        try:
            if self._task is not None:
                self._task()
        except Exception as error:  # noqa: BLE001 - handed to the thread that supervises
            self._failure = error

    def raise_failure(self) -> None:
        """Raise what the task raised, if it did."""
        if self._failure is not None:
            raise self._failure


@contextmanager
def _ending_signals() -> Iterator[threading.Event]:
    """An event that is set by the first signal that asks to end; further ones change nothing."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, ask) for number in ENDING}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
