"""The only place that finds out, from outside, whether a host's processes run; nothing is written or signalled."""

import fcntl
from collections.abc import Sequence
from pathlib import Path

PROCESSES = Path("/proc")


def is_locked(path: Path) -> bool:
    """Whether another process holds an exclusive lock on a file; False if the file is absent."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def has_process(words: Sequence[str]) -> bool:
    """Whether a process that this user may see was started with all of these words."""
    wanted = set(words)
    for command in PROCESSES.glob("[0-9]*/cmdline"):
        try:
            found = command.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
        if wanted <= set(found):
            return True
    return False
