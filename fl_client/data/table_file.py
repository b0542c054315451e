"""A hospital's table in a CSV or Parquet file, read as it is: no value is scaled, filled in or dropped here."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fl_client.data.records import Records, SiteRecords
from fl_client.settings import TableSourceSettings
from fl_contract.errors import RefusalCode, RefusalError

FOLDS = ("train", "test")
"""What the fold column may hold."""


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
            RefusalError: INVALID_DATA: a file or column is missing, a feature is not a number, a row has no label,
                fold or patient, a patient is in both folds, or there are no rows. The detail stays in the hospital's
                own log.
        """
        train, test = self._read_folds()
        if (column := self._settings.patient) is not None and (shared := _texts(train, column) & _texts(test, column)):
            raise _refusal(f"{len(shared)} patients are in training and held-out rows; expected each in one of them")
        if train.empty and test.empty:
            raise _refusal("the table holds no rows; expected at least one record")
        return SiteRecords(train=self._records(train), test=self._records(test))

    def _read_folds(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        settings = self._settings
        train = self._read(settings.train)
        if settings.fold is None:
            return train, self._read(str(settings.test))
        folds = train[settings.fold].astype(str)
        if unknown := int((~folds.isin(FOLDS)).sum()):
            raise _refusal(f"column {settings.fold!r}: {unknown} rows hold no fold; expected 'train' or 'test'")
        return train[folds == "train"], train[folds == "test"]

    def _read(self, name: str) -> pd.DataFrame:
        settings, path = self._settings, self._folder / name
        texts = [column for column in (settings.label, settings.fold, settings.patient) if column is not None]
        try:
            if path.suffix == ".parquet":
                table = pd.read_parquet(path)
            else:
                table = pd.read_csv(path, dtype=dict.fromkeys(texts, str))
        except (OSError, ValueError) as error:
            raise _refusal(f"{path}: cannot be read ({error}); expected a table in CSV or Parquet") from error
        if missing := [column for column in (*self._features, *texts) if column not in table.columns]:
            raise _refusal(f"{path}: columns {missing} are missing; the study and site.toml name them")
        for column in texts:
            if empty := int(table[column].isna().sum()):
                raise _refusal(f"{path}: column {column!r} is empty in {empty} rows; expected a value in each")
        return table

    def _records(self, table: pd.DataFrame) -> Records:
        patient = self._settings.patient
        return Records(
            features=np.stack([_numbers(table, name) for name in self._features], axis=1),
            feature_names=self._features,
            labels=table[self._settings.label].to_numpy(dtype=str),
            patients=table[patient].to_numpy(dtype=str) if patient is not None else None,
        )


def _texts(table: pd.DataFrame, column: str) -> set[str]:
    return set(table[column].astype(str))


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    try:
        return table[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise _refusal(f"column {name!r} holds a text; expected numbers") from error


def _refusal(detail: str) -> RefusalError:
    return RefusalError(RefusalCode.INVALID_DATA, detail)
