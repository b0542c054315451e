"""The only place that opens the SuperLink's database beside the SuperLink, and only to read it."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from fl_host.checks import Finding, failed, ok, warning

MEGABYTE = 1e6
LARGE_BYTES = 5e9
"""Rows go when a run ends, the file keeps its size; above this it is worth a person's while."""


def check_database(path: Path) -> Finding:
    """Its size, and SQLite's own quick check of its pages."""
    if not path.exists():
        return ok("none yet; fl-server start makes it")
    size = sum(each.stat().st_size for each in (path, _log_of(path)) if each.exists())
    try:
        with _reading(path) as connection:
            (told,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        told = str(error)
    text = f"{size / MEGABYTE:.1f} MB"
    if told != "ok":
        return failed(
            f"{text}, cannot be read or is damaged: {told}",
            "stop fl-server start, and put back the last backup of state/",
        )
    if size > LARGE_BYTES:
        return warning(f"{text}, sound", "stop fl-server start between runs, then: sqlite3 superlink.db VACUUM")
    return ok(f"{text}, sound")


def online_sites(path: Path) -> dict[str, bool]:
    """Name of each registered node, and whether it is online; empty without a database."""
    if not path.exists():
        return {}
    with _reading(path) as connection:
        rows = connection.execute(
            "SELECT name, status = 'online' AND online_until > ? FROM node WHERE status != 'unregistered'",
            (time.time(),),
        ).fetchall()
    return {str(name): bool(is_online) for name, is_online in rows}


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A stopped SuperLink leaves no write-ahead log: then nothing can change, and nothing needs to be made to read."""
    mode = "mode=ro" if _log_of(path).exists() else "immutable=1"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=5.0)) as connection:
        yield connection
