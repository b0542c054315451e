"""A hospital's table in a CSV or Parquet file, in the study's names and units: nothing is filled in or dropped."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fl_client.data.mapping import map_features, map_labels, site_columns
from fl_client.data.records import Records, SiteRecords
from fl_client.refusals import gather, refuse_if_any
from fl_client.settings import TableSourceSettings
from fl_contract.errors import RefusalCode, RefusalError

FOLDS = ("train", "test")
"""What the fold column may hold."""

EMPTY_TEXTS = ("", "NA", "N/A", "NaN", "nan", "NULL", "null")
"""What programs write into a CSV file for an empty cell; in a column with codes of its own only the first is one."""


class TableFileSource:
    """Records of a table: two files, or one file with a column that says each row's fold.

    Args:
        settings: Files and columns, from ``site.toml``.
        folder: That relative paths begin at; the one of ``site.toml``.
        features: Columns that the study needs; others are not read as numbers.
    """

    def __init__(self, settings: TableSourceSettings, *, folder: Path, features: Sequence[str]) -> None:
        self._settings = settings
        self._folder = folder
        self._features = tuple(features)

    def load(self) -> SiteRecords:
        """The records of this hospital's files.

        Raises:
            RefusalError: INVALID_DATA: a file or column is missing, a value or code has no meaning, a row has no
                label, fold or patient, or a patient is in both folds. The detail stays in the hospital's own log.
        """
        site = self._read_folds()
        patients = [set() if part.patients is None else set(part.patients) for part in (site.train, site.test)]
        if shared := patients[0] & patients[1]:
            raise _refusal(f"{len(shared)} patients are in training and held-out rows; expected each in one of them")
        if not len(site.train) + len(site.test):
            raise _refusal("the table holds no rows; expected at least one record")
        return site

    def _read_folds(self) -> SiteRecords:
        settings = self._settings
        if settings.fold is not None:
            table = self._read(settings.train)
            records, folds = self._records(table), table[settings.fold].to_numpy(dtype=str)
            train, test = (records.take(np.flatnonzero(folds == fold)) for fold in FOLDS)
            return SiteRecords(train=train, test=test)
        refusals: list[RefusalError] = []
        parts = []
        for name in (settings.train, str(settings.test)):
            with gather(refusals):
                parts.append(self._records(self._read(name)))
        refuse_if_any(refusals)
        return SiteRecords(train=parts[0], test=parts[1])

    def _read(self, name: str) -> pd.DataFrame:
        settings, path = self._settings, self._folder / name
        texts = [column for column in (settings.label, settings.fold, settings.patient) if column is not None]
        times = [settings.time] if settings.time is not None else []
        try:
            table = pd.read_parquet(path) if path.suffix == ".parquet" else self._read_csv(path, texts)
        except (OSError, ValueError) as error:
            raise _refusal(f"{path}: cannot be read ({error}); expected a table in CSV or Parquet") from error
        needed = dict.fromkeys((*site_columns(self._features, settings.columns).values(), *texts, *times))
        counts = {column: int((table.columns == column).sum()) for column in needed}
        if missing := [column for column in needed if counts[column] == 0]:
            raise _refusal(f"{path}: columns {missing} are missing; the study and site.toml name them")
        if twice := [column for column in needed if counts[column] > 1]:
            raise _refusal(f"{path}: columns {twice} are there more than once; expected each once")
        empty = {column: count for column in texts if (count := int(table[column].isna().sum()))}
        broken = [f"column {column!r} is empty in {count} rows; expected a value" for column, count in empty.items()]
        if settings.fold is not None and (unknown := int((~table[settings.fold].dropna().isin(FOLDS)).sum())):
            broken.append(f"column {settings.fold!r}: {unknown} rows hold no fold; expected 'train' or 'test'")
        refuse_if_any([_refusal(f"{path}: {line}") for line in broken])
        return table

    def _read_csv(self, path: Path, texts: Sequence[str]) -> pd.DataFrame:
        settings = self._settings
        coded = {mapped.column or feature for feature, mapped in settings.columns.items() if mapped.codes}
        coded |= {settings.label} if settings.labels else set()
        header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
        table = pd.read_csv(
            path,
            dtype=dict.fromkeys(texts, str),
            keep_default_na=False,
            na_values={column: EMPTY_TEXTS[:1] if column in coded else EMPTY_TEXTS for column in header},
            low_memory=False,
        )
        if not isinstance(table.index, pd.RangeIndex):  # pandas would shift every value by a column
            raise ValueError("rows hold more fields than the first one names")
        return table.set_axis(header, axis=1)  # pandas renames the second of two columns of one name

    def _records(self, table: pd.DataFrame) -> Records:
        settings = self._settings
        patient, time = settings.patient, settings.time
        refusals: list[RefusalError] = []
        features, labels = np.empty((0, 0)), np.empty(0, dtype=np.str_)
        times = None
        with gather(refusals):
            features = map_features(table, self._features, settings.columns)
        with gather(refusals):
            labels = map_labels(table[settings.label], settings.labels, column=settings.label)
        with gather(refusals):
            times = None if time is None else map_features(table, [time], {})[:, 0]
        refuse_if_any(refusals)
        return Records(
            features=features,
            feature_names=self._features,
            labels=labels,
            patients=table[patient].to_numpy(dtype=str) if patient is not None else None,
            times=times,
        )


def _refusal(detail: str) -> RefusalError:
    return RefusalError(RefusalCode.INVALID_DATA, detail)
