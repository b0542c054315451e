"""What every table must hold, wherever it is read from; built chunk by chunk, in the memory of one copy."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fl_client.column_settings import AS_IT_IS, ColumnSettings, TableColumnSettings
from fl_client.data.mapping import (
    code_refusals,
    map_column,
    map_features,
    map_labels,
    say_unknown_values,
    site_columns,
)
from fl_client.data.records import Records, SiteRecords
from fl_client.refusals import invalid_data, refuse_if_any
from fl_contract.errors import RefusalError
from fl_contract.features import CategoryFeature, TableFeature

FOLDS = ("train", "test")
"""What the fold column may hold."""


class TableBuilder:
    """Collects the chunks of one hospital's table, in the study's names, units and classes.

    Guarantees:
        - Every row that is added is in the result, in order, or there is no result.
        - Features take the memory of one array, whatever the number of chunks.

    Args:
        settings: What the columns are.
        features: Those that the study needs; a table may have others.
        numbers: Outcomes that are numbers, by the study's names; mapped as features are.

    Raises:
        RefusalError: INVALID_DATA: ``source.columns`` gives codes that a feature of the study cannot take.
    """

    def __init__(
        self, settings: TableColumnSettings, features: Sequence[TableFeature], numbers: Sequence[str] = ()
    ) -> None:
        refuse_if_any([invalid_data(line) for line in code_refusals(features, settings.columns)])
        self._settings, self._features, self._numbers = settings, tuple(features), tuple(numbers)
        self._folds = {fold: self._empty_fold() for fold in FOLDS}
        self._num_empty = Counter[tuple[str, str]]()
        self._num_unknown_folds = Counter[str]()
        self._num_unknown = Counter[str]()
        self._num_unknown_labels = 0

    @property
    def texts(self) -> tuple[str, ...]:
        """Columns that are read as they are written, and never empty."""
        settings = self._settings
        return tuple(column for column in (settings.label, settings.fold, settings.patient) if column is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features, as the study calls them."""
        return tuple(feature.name for feature in self._features)

    @property
    def coded(self) -> frozenset[str]:
        """Columns in which any text may be a code."""
        settings = self._settings
        columns = site_columns(self.names, settings.columns)
        coded = {name for name, mapped in settings.columns.items() if mapped.codes}
        coded |= {feature.name for feature in self._features if isinstance(feature, CategoryFeature)}
        labels = {settings.label} if settings.label is not None and settings.labels else set()
        return frozenset(labels | {columns[name] for name in coded if name in columns})

    @property
    def columns(self) -> list[str]:
        """All columns that are read, each once."""
        mapped = site_columns(self.names, self._settings.columns).values()
        outcomes = (column for column, _ in self._outcomes.values())
        return list(dict.fromkeys((*mapped, *self.texts, *outcomes)))

    @property
    def _outcomes(self) -> dict[str, tuple[str, ColumnSettings]]:
        """Column and settings of each outcome that is a number, by what it is called: the numbers, or the time."""
        settings = self._settings
        outcomes = {
            name: (column, settings.columns.get(name, AS_IT_IS))
            for name, column in site_columns(self._numbers, settings.columns).items()
        }
        return outcomes if settings.time is None else outcomes | {settings.time: (settings.time, AS_IT_IS)}

    def check(self, found: Sequence[str], *, origin: str) -> None:
        """Compare with the columns that a table has.

        Raises:
            RefusalError: INVALID_DATA: one is missing, or there are two of that name.
        """
        check_columns(self.columns, found, origin=origin)

    def add(self, rows: pd.DataFrame, *, origin: str, fold: str | None = None) -> None:
        """Add rows.

        Args:
            rows: Holds `columns`; None or NaN is an empty value.
            origin: Where they are from, for messages.
            fold: Of all these rows; None if the fold column says it.
        """
        settings = self._settings
        for column in self.texts:
            self._num_empty[origin, column] += int(rows[column].isna().sum())
        features, num_unknown = map_features(rows, self._features, settings.columns)
        self._num_unknown += num_unknown
        labels = np.full(len(rows), "")
        if settings.label is not None:
            labels, num_unknown_labels = map_labels(rows[settings.label], settings.labels)
            self._num_unknown_labels += num_unknown_labels
        arrays = {"features": features, "labels": labels}
        if settings.patient is not None:
            arrays["patients"] = rows[settings.patient].to_numpy(dtype=str)
        if outcomes := self._outcomes:
            arrays["outcomes"] = np.empty((len(rows), len(outcomes)))
            for position, (name, (column, mapped)) in enumerate(outcomes.items()):
                arrays["outcomes"][:, position], count = map_column(rows[column], mapped)
                self._num_unknown[name] += count
        folds = rows[str(settings.fold)] if fold is None else pd.Series(fold, index=rows.index)
        self._num_unknown_folds[origin] += int((~folds.dropna().isin(FOLDS)).sum())
        for name in FOLDS:
            chosen = (folds == name).to_numpy(dtype=bool, na_value=False)
            for kind, values in arrays.items():
                self._folds[name][kind].add(values[chosen])

    def _empty_fold(self) -> dict[str, "_Rows"]:
        rows = {"features": _Rows(np.empty((0, len(self._features)))), "labels": _Rows(np.empty(0, dtype=str))}
        if self._settings.patient is not None:
            rows["patients"] = _Rows(np.empty(0, dtype=str))
        if self._outcomes:
            rows["outcomes"] = _Rows(np.empty((0, len(self._outcomes))))
        return rows

    def build(self, refusals: Sequence[RefusalError] = ()) -> SiteRecords:
        """All rows.

        Args:
            refusals: What kept rows from being added.

        Raises:
            RefusalError: INVALID_DATA: there are none, one has no label, fold or patient, a value or code has no
                meaning, or a patient is in both folds.
        """
        refuse_if_any([*refusals, *(invalid_data(line) for line in self._broken())])
        train, test = (self._records(self._folds[fold]) for fold in FOLDS)
        if not len(train) + len(test):
            raise invalid_data("the table has no rows; expected training and held-out records")
        if shared := _count_shared(train.patients, test.patients):
            raise invalid_data(f"{shared} patients are in training and held-out rows; expected each in one of them")
        return SiteRecords(train=train, test=test)

    def _records(self, fold: dict[str, "_Rows"]) -> Records:
        return Records(feature_names=self.names, **{kind: rows.array for kind, rows in fold.items()})

    def _broken(self) -> list[str]:
        label, fold = self._settings.label, self._settings.fold
        lines = [
            f"{origin}: column {column!r} is empty in {count} rows; expected a value"
            for (origin, column), count in self._num_empty.items()
            if count
        ]
        lines += [
            f"{origin}: column {fold!r}: {count} rows hold no fold; expected 'train' or 'test'"
            for origin, count in self._num_unknown_folds.items()
            if count
        ]
        lines += say_unknown_values(self._num_unknown, self._features, self._settings.columns)
        if count := self._num_unknown_labels:
            lines.append(
                f"label column {label!r}: {count} rows hold a code that source.labels does not list; list each code"
            )
        return lines


class _Rows:
    """An array that grows in place: nothing else refers to it, and the system moves a large one without copying it."""

    def __init__(self, empty: NDArray[Any]) -> None:
        self.array = empty

    def add(self, more: NDArray[Any]) -> None:
        start, dtype = len(self.array), np.promote_types(self.array.dtype, more.dtype)
        if dtype != self.array.dtype:  # a longer text than any before
            self.array = self.array.astype(dtype)
        self.array.resize((start + len(more), *more.shape[1:]), refcheck=False)
        self.array[start:] = more


def check_columns(needed: Sequence[str], found: Sequence[str], *, origin: str) -> None:
    """Compare columns that are needed with those that a table has.

    Raises:
        RefusalError: INVALID_DATA: one is missing, or there are two of that name.
    """
    counts = Counter(found)
    if missing := [name for name in needed if counts[name] == 0]:
        raise invalid_data(f"{origin}: columns {missing} are missing; the study and site.toml name them")
    if twice := [name for name in needed if counts[name] > 1]:
        raise invalid_data(f"{origin}: columns {twice} are there more than once; expected each once")


def _count_shared(first: NDArray[Any] | None, second: NDArray[Any] | None) -> int:
    return 0 if first is None or second is None else len(set(second.tolist()).intersection(first.flat))
