"""The only place that knows which processes a supervisor that was itself killed left behind, and that ends them."""

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fl_contract.errors import RunError
from fl_host.private_files import PRIVATE_FILE

FILE = "supervised.json"
END_SECONDS = 10.0


class Groups:
    """Process groups of one supervisor, kept in a file that outlives it.

    A copy of the file, such as one from a backup, names groups that are not the copy's: it counts as empty.

    Args:
        stream: Of the file, locked.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._groups: dict[str, dict[str, str]] = {}
        found = os.fstat(stream.fileno())
        self._file = f"{found.st_dev}:{found.st_ino}"

    def keep(self, pid: int) -> None:
        """Remember a group by its leader, which was just started; forget those that have ended."""
        self._groups = {group: mark for group, mark in self._groups.items() if _is_ours(int(group), mark)}
        self._groups[str(pid)] = {"boot": _boot(), "started": _started(pid)}
        self._write()

    def end_leftovers(self) -> list[int]:
        """End the groups that the file names; after a crash these are the last supervisor's.

        Returns:
            Leaders of those that still ran.
        """
        with suppress(ValueError):
            kept = json.loads(self._stream.read() or "{}")
            self._groups = kept["groups"] if kept.get("file") == self._file else {}
        found = [int(group) for group, mark in self._groups.items() if _is_ours(int(group), mark)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for group in found:
                with suppress(ProcessLookupError):
                    os.killpg(group, number)
            deadline = time.monotonic() + END_SECONDS
            while any(map(_has_members, found)) and time.monotonic() < deadline:
                time.sleep(0.05)
        self._groups = {}
        self._write()
        return found

    def _write(self) -> None:
        self._stream.seek(0)
        self._stream.truncate()
        json.dump({"file": self._file, "groups": self._groups}, self._stream)
        self._stream.flush()


@contextmanager
def hold_groups(folder: Path) -> Iterator[Groups]:
    """The groups of the only supervisor of a folder; the system frees it when that one ends, however it ends.

    Raises:
        RunError: Another supervisor holds it.
    """
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{folder}: is in use by processes that another command supervises; end that one") from error
        yield Groups(stream)


def _is_ours(group: int, mark: dict[str, str]) -> bool:
    """Whether a group is still the one that was kept: its number is not given anew while it has a member."""
    if mark.get("boot") != _boot() or not _has_members(group):
        return False
    return _started(group) in ("", mark.get("started"))


def _has_members(group: int) -> bool:
    return any(fields[2] == str(group) and fields[0] not in "ZX" for fields in _stats())


def _stats() -> Iterator[list[str]]:
    """State, parent, group and so on of each process, as proc(5) has them from the third field on."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            yield path.read_text(errors="replace").rpartition(")")[2].split()


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
