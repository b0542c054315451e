"""The SuperLink's database keeps few pages in memory, whatever its size."""

import sqlite3
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fl_server.host.memory_limits import limit_database_caches


@pytest.mark.parametrize(
    ("setting", "value"),
    [("cache_size", -8000), ("mmap_size", 0), ("foreign_keys", 1), ("journal_mode", "wal"), ("busy_timeout", 5000)],
)
def test_a_connection_of_flowers_has_our_limits_and_flowers_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: object
) -> None:
    flower: Any = import_module("flwr.supercore.sql_mixin")
    monkeypatch.setattr(flower, "SQLITE_PRAGMAS", flower.SQLITE_PRAGMAS)
    limit_database_caches()

    connection = sqlite3.connect(tmp_path / "state.db")
    flower._set_sqlite_pragmas(connection, None)

    assert connection.execute(f"PRAGMA {setting}").fetchone() == (value,)
