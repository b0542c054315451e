"""A hospital's table in PostgreSQL or SQLite: one query, read only, in chunks.

Errors of the driver and of the database may hold a user, a password or a patient's value. None of their text is kept:
they become our own words here, with the database's code and a name out of the query at most.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from fl_client.data.credentials import read_credentials
from fl_client.data.records import SiteRecords
from fl_client.data.table import TableBuilder
from fl_client.refusals import invalid_data
from fl_client.source_settings import SqlSourceSettings
from fl_contract.features import TableFeature

CHUNK_ROWS = 1_000
CONNECT_TIMEOUT_SECONDS = 10
LOCK_TIMEOUT_SECONDS = 10
NUMBERS = {bool, int, float, Decimal, NoneType}
ORIGIN = "source.query"

MEANINGS = (
    (
        r"^28|authentication failed|no pg_hba.conf entry",
        "the server refuses the user or the password; expected those of source.credentials",
    ),
    (r"^3D000|FATAL: +database .* does not exist", "the server has no database of that name"),
    (r"translate host name|resolve host", "there is no host of that name"),
    (
        r"connection (failed|is bad|to server)|timeout expired|closed the connection|^08|^57P",
        "there is no connection: no server answers at source.url, or it ended this one, or refuses its kind",
    ),
    (r"^SQLITE_CANTOPEN", "the file is absent or cannot be opened"),
    (r"^SQLITE_NOTADB", "the file is no SQLite database"),
    (r"^SQLITE_BUSY", "another program is writing to the file; try again"),
    (r"^25006|^SQLITE_READONLY|^0A000.*data-modifying", "the query writes; expected one that only reads"),
    (r"^42P01|no such table", "the query names a table that the database does not have"),
    (r"^42703|no such column", "the query names a column that the database does not have"),
    (r"^42883|no such function", "the query names a function that the database does not have for such values"),
    (r"^42501", "the user may not read what the query names; expected the right to SELECT"),
    (r"^42601|syntax error|incomplete input|one statement", "the query is not SQL; expected one SELECT statement"),
    (r"^22", "a value cannot be converted or computed as the query asks"),
    (r"^57014", "the server stopped the query, by its own time limit or somebody's request"),
)
"""What a database's code, or the beginning of its text, means in our words; the first that is found."""

NAME = re.compile(r'(?:no such (?:table|column|function): |near "|column "?|relation "|function )([\w.]+)')
"""Where an error names a part of the query."""


class SqlSource:
    """Records of a table that a query gives.

    Args:
        settings: Database, query and columns, from ``site.toml``.
        folder: That relative paths begin at; the one of ``site.toml``.
        features: That the study needs; other columns are not kept.
        numbers: Outcomes that are numbers, by the study's names.
    """

    def __init__(
        self,
        settings: SqlSourceSettings,
        *,
        folder: Path,
        features: Sequence[TableFeature],
        numbers: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._features = tuple(features)
        self._numbers = tuple(numbers)

    def files(self) -> None:
        """None: a database does not say when its records change."""

    def connect(self) -> None:
        """Log in and out again; the query is not run.

        Raises:
            RefusalError: INVALID_DATA: the database cannot be reached, or refuses the login.
        """
        try:
            with self._open().connect():
                pass
        except SQLAlchemyError as error:
            raise invalid_data(f"{self._settings.url}: {_explain(error, '')}") from None

    def load(self) -> SiteRecords:
        """The records that the query gives, all as they are at one moment.

        Raises:
            RefusalError: INVALID_DATA: the database cannot be reached or refuses the query, the query writes or gives
                no rows, a column is missing, a feature is not a number, a row has no label, fold or patient, or a
                patient is in both folds. The detail stays in the hospital's own log.
        """
        table = TableBuilder(self._settings, self._features, self._numbers)
        for rows in self._read(table):
            columns = {name: _values(rows[name], name, is_text=name in table.texts) for name in table.columns}
            table.add(pd.DataFrame(columns, copy=False), origin=ORIGIN)
        return table.build()

    def _read(self, table: TableBuilder) -> Iterator[dict[str, tuple[Any, ...]]]:
        """Some rows at a time, as column name to values."""
        settings = self._settings
        engine = self._open()
        try:
            with engine.connect() as connection, connection.exec_driver_sql(settings.query) as result:
                if not result.returns_rows:
                    raise invalid_data("source.query gives no table; expected one SELECT statement")
                names = list(result.keys())
                table.check(names, origin=ORIGIN)
                for rows in result.partitions(CHUNK_ROWS):
                    yield dict(zip(names, zip(*rows, strict=True), strict=True))
        except SQLAlchemyError as error:
            raise invalid_data(f"{settings.url}: {_explain(error, settings.query)}") from None

    def _open(self) -> Engine:
        """The database, for reading only; nothing is connected yet."""
        settings = self._settings
        url = make_url(settings.url)
        options: dict[str, Any] = {
            "stream_results": True,
            "yield_per": CHUNK_ROWS,
            "no_parameters": True,  # the query goes out as it is written, colons and percent signs included
            "postgresql_readonly": True,
        }
        create = partial(create_engine, poolclass=NullPool, hide_parameters=True, execution_options=options)
        if settings.credentials is None:
            address = f"{(self._folder / str(url.database)).absolute().as_uri()}?mode=ro"
            return create(
                "sqlite://", creator=partial(sqlite3.connect, address, uri=True, timeout=LOCK_TIMEOUT_SECONDS)
            )
        login = read_credentials(settings.credentials, folder=self._folder)
        url = url.set(drivername="postgresql+psycopg", username=login.user, password=login.password)
        return create(url, connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS})


def _values(values: Sequence[Any], name: str, *, is_text: bool) -> NDArray[Any]:
    """Numbers as float64, all else as it is; an empty text is an empty value, as in a CSV file."""
    kinds = set(map(type, values))
    if bytes in kinds:
        raise invalid_data(f"column {name!r} holds bytes; expected texts or numbers, CAST in {ORIGIN}")
    if kinds <= NUMBERS and not is_text:
        return np.array(values, dtype=np.float64)
    return np.fromiter((None if value == "" else value for value in values), dtype=object, count=len(values))


def _explain(error: SQLAlchemyError, query: str) -> str:
    """Our words for a database's error: its text may hold what must not be said."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None) or type(cause).__name__
    told = f"{code} {cause}"
    words = next((words for pattern, words in MEANINGS if re.search(pattern, told)), "the database reports an error")
    found = NAME.search(told)
    if found is not None and found.group(1) in query:
        words = f"{words}: {found.group(1)!r}"
    return f"{words} ({code})"
