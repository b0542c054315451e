"""A hospital's table in a CSV or Parquet file, in the study's names and units: nothing is filled in or dropped."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd
from pyarrow.parquet import ParquetFile

from fl_client.data.records import SiteRecords
from fl_client.data.table import TableBuilder
from fl_client.refusals import gather, invalid_data
from fl_client.source_settings import TableSourceSettings
from fl_contract.errors import RefusalError
from fl_contract.features import TableFeature

CHUNK_ROWS = 4_096
READ_AHEAD_BYTES = 1 << 16
"""Of each column of a Parquet file; a whole row group otherwise."""

EMPTY_TEXTS = ("", "NA", "N/A", "NaN", "nan", "NULL", "null")
"""What programs write into a CSV file for an empty cell; in a column with codes or categories only the first is one."""


class TableFileSource:
    """Records of a table: two files, or one file with a column that says each row's fold.

    Args:
        settings: Files and columns, from ``site.toml``.
        folder: That relative paths begin at; the one of ``site.toml``.
        features: That the study needs.
        numbers: Outcomes that are numbers, by the study's names.
    """

    def __init__(
        self,
        settings: TableSourceSettings,
        *,
        folder: Path,
        features: Sequence[TableFeature],
        numbers: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._features = tuple(features)
        self._numbers = tuple(numbers)

    def files(self) -> list[Path]:
        """One file, or two."""
        named = (self._settings.train, self._settings.test)
        return [self._folder / name for name in named if name is not None]

    def load(self) -> SiteRecords:
        """The records of this hospital's files.

        Raises:
            RefusalError: INVALID_DATA: a file or column is missing, a value or code has no meaning, a row has no
                label, fold or patient, a patient is in both folds, or there are no rows. The detail stays in the
                hospital's own log.
        """
        table = TableBuilder(self._settings, self._features, self._numbers)
        files = {self._settings.train: None if self._settings.test is None else "train"}
        if self._settings.test is not None:
            files[self._settings.test] = "test"
        refusals: list[RefusalError] = []
        for name, fold in files.items():
            with gather(refusals):
                path = self._folder / name
                for rows in read_rows(path, table, coded=table.coded):
                    table.add(rows, origin=str(path), fold=fold)
        return table.build(refusals)


class Columns(Protocol):
    """Which columns of a file are read."""

    @property
    def texts(self) -> Sequence[str]:
        """Those that are read as they are written."""

    @property
    def columns(self) -> list[str]:
        """All of them."""

    def check(self, found: Sequence[str], *, origin: str) -> None:
        """Refuse a file with other columns."""


def read_rows(path: Path, table: Columns, *, coded: Collection[str] = ()) -> Iterator[pd.DataFrame]:
    """A file's rows, some at a time.

    Args:
        path: CSV or Parquet (``.parquet``).
        table: Which columns.
        coded: Those in which only an empty text is an empty cell, in CSV.

    Raises:
        RefusalError: INVALID_DATA: the file cannot be read, or not as such a table.
    """
    try:
        yield from _read_parquet(path, table) if path.suffix == ".parquet" else _read_csv(path, table, coded)
    except (OSError, ValueError) as error:
        raise invalid_data(f"{path}: cannot be read ({error}); expected a table in CSV or Parquet") from error


def _read_csv(path: Path, table: Columns, coded: Collection[str]) -> Iterator[pd.DataFrame]:
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
    table.check(header, origin=str(path))
    with pd.read_csv(
        path,
        dtype=dict.fromkeys(table.texts, str),
        keep_default_na=False,
        na_values={column: EMPTY_TEXTS[:1] if column in coded else EMPTY_TEXTS for column in header},
        chunksize=CHUNK_ROWS,
    ) as chunks:
        for rows in chunks:
            if not isinstance(rows.index, pd.RangeIndex):  # pandas would shift every value by a column
                raise ValueError("rows hold more fields than the first one names")
            yield rows.set_axis(header, axis=1)[table.columns]  # pandas renames the second of two of one name


def _read_parquet(path: Path, table: Columns) -> Iterator[pd.DataFrame]:
    with ParquetFile(path, buffer_size=READ_AHEAD_BYTES, pre_buffer=False) as file:
        table.check(file.schema_arrow.names, origin=str(path))
        for batch in file.iter_batches(CHUNK_ROWS, columns=table.columns):
            yield batch.to_pandas(ignore_metadata=True)
