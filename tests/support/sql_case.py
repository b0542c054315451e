"""A small table in an SQLite file and the source that reads it, for suites that every source passes."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd
from schemas import numbers

from fl_client.data.sql import SqlSource
from fl_client.source_settings import SqlSourceSettings

FILE = "patients.sqlite"


def save_sqlite(table: pd.DataFrame, path: Path) -> None:
    """Write the file anew, with ``table`` as its table ``records``; NaN and None become NULL."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        table.to_sql("records", connection, index=False)


def sql_case(folder: Path, table: pd.DataFrame, features: Sequence[str]) -> SqlSource:
    """Write a table with the columns ``outcome``, ``fold`` and ``person`` beside its features, and give its source."""
    save_sqlite(table, folder / FILE)
    raw = {"kind": "sql", "url": f"sqlite:///{FILE}", "query": "SELECT * FROM records"}
    columns = {"label": "outcome", "fold": "fold", "patient": "person"}
    return SqlSource(SqlSourceSettings.parse(raw | columns, origin="test"), folder=folder, features=numbers(*features))
