"""What keeps a SuperLink that runs for months at one size: the only place that sets limits to its caches.

docs/log.md says what each saves.
"""

from importlib import import_module
from typing import Any

FEW_ARENAS = {"MALLOC_ARENA_MAX": "2"}
"""Environment of a process whose threads come and go: else the C library keeps freed memory apart for each of them."""
SQLITE_LIMITS = {"cache_size": "-8000", "mmap_size": "0"}
"""For each of up to 15 connections: at most 8 MB of pages, where Flower's own settings keep 64 and map 256."""


def limit_database_caches() -> None:
    """Give SQLite connections that Flower opens from here on our limits; its other settings stay."""
    sql_mixin: Any = import_module("flwr.supercore.sql_mixin")
    sql_mixin.SQLITE_PRAGMAS = tuple((dict(sql_mixin.SQLITE_PRAGMAS) | SQLITE_LIMITS).items())
