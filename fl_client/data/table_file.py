"""A hospital's table in a CSV or Parquet file, read as it is: no value is scaled, filled in or dropped here."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow.parquet import ParquetFile

from fl_client.data.records import SiteRecords
from fl_client.data.table import TableBuilder, TableColumns, invalid_data
from fl_client.settings import TableSourceSettings

CHUNK_ROWS = 4_096
READ_AHEAD_BYTES = 1 << 16
"""Of each column of a Parquet file; a whole row group otherwise."""


class TableFileSource:
    """Records of a table: two files, or one file with a column that says each row's fold.

    Args:
        settings: Files and columns, from ``site.toml``.
        folder: That relative paths begin at; the one of ``site.toml``.
        features: Columns that the study needs; others are not read.
    """

    def __init__(self, settings: TableSourceSettings, *, folder: Path, features: Sequence[str]) -> None:
        self._settings = settings
        self._folder = folder
        self._columns = TableColumns(
            features=tuple(features), label=settings.label, fold=settings.fold, patient=settings.patient
        )

    def load(self) -> SiteRecords:
        """The records of this hospital's files.

        Raises:
            RefusalError: INVALID_DATA: a file or column is missing, a feature is not a number, a row has no label,
                fold or patient, a patient is in both folds, or there are no rows. The detail stays in the hospital's
                own log.
        """
        table = TableBuilder(self._columns)
        if self._settings.test is None:
            self._add(table, self._settings.train, fold=None)
        else:
            self._add(table, self._settings.train, fold="train")
            self._add(table, self._settings.test, fold="test")
        return table.build()

    def _add(self, table: TableBuilder, name: str, *, fold: str | None) -> None:
        columns = self._columns
        for rows in self._read(self._folder / name):
            features = np.stack([_numbers(rows, column) for column in columns.features], axis=1)
            table.add(features, {column: rows[column].to_numpy(dtype=object) for column in columns.texts}, fold=fold)

    def _read(self, path: Path) -> Iterator[pd.DataFrame]:
        """The file's rows, some at a time."""
        try:
            yield from self._read_parquet(path) if path.suffix == ".parquet" else self._read_csv(path)
        except (OSError, ValueError) as error:
            raise invalid_data(f"{path}: cannot be read ({error}); expected a table in CSV or Parquet") from error

    def _read_parquet(self, path: Path) -> Iterator[pd.DataFrame]:
        with ParquetFile(path, buffer_size=READ_AHEAD_BYTES, pre_buffer=False) as file:
            self._columns.check(file.schema_arrow.names, origin=str(path))
            for batch in file.iter_batches(CHUNK_ROWS, columns=self._columns.names):
                yield batch.to_pandas(ignore_metadata=True)

    def _read_csv(self, path: Path) -> Iterator[pd.DataFrame]:
        columns = self._columns
        texts = dict.fromkeys(columns.texts, str)
        with pd.read_csv(path, dtype=texts, usecols=columns.names.__contains__, chunksize=CHUNK_ROWS) as chunks:
            for rows in chunks:
                columns.check(list(rows.columns), origin=str(path))
                yield rows


def _numbers(rows: pd.DataFrame, name: str) -> NDArray[np.float64]:
    try:
        return rows[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):  # whose text holds the value
        raise invalid_data(f"column {name!r} holds a text; expected numbers") from None
