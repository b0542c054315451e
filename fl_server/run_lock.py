"""The lock on a run's folder: the only place that knows whether a process is running what the folder holds."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_contract.errors import RunError

LOCK_FILE = "run.lock"
PROBE_SECONDS = 0.5
"""Longer than `is_run_live` holds the lock while it looks."""


@contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Hold a run's folder as the only process; the system releases the lock when the process ends, however it ends.

    The file itself stays; only a lock on it counts.

    Raises:
        RunError: Another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK_FILE).open("ab")
    except OSError as error:
        raise RunError(f"{folder}: cannot hold a run; {error.strerror}") from error
    with stream:
        deadline = time.monotonic() + PROBE_SECONDS
        while not _try_lock(stream.fileno()):
            if time.monotonic() > deadline:
                raise RunError(_in_use(folder))
            time.sleep(0.02)
        yield


def is_run_live(folder: Path) -> bool:
    """Whether a process holds the folder now."""
    try:
        stream = (folder / LOCK_FILE).open("rb")
    except OSError:
        return False
    with stream:
        return not _try_lock(stream.fileno())


def refuse_live_run(folder: Path) -> None:
    """Raise the error of `hold_run` if a process holds the folder now."""
    if is_run_live(folder):
        raise RunError(_in_use(folder))


def _in_use(folder: Path) -> str:
    return f"{folder} is being run by another process; wait for it or stop it"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
