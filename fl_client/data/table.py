"""What every table must hold, wherever it is read from; built chunk by chunk, in the memory of one copy."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fl_client.data.records import Records, SiteRecords
from fl_contract.errors import RefusalCode, RefusalError

FOLDS = ("train", "test")
"""What the fold column may hold."""


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """The columns that are read; a table may have others.

    Attributes:
        features: Those that the study needs, in its order.
        label: Of the class.
        fold: That says ``train`` or ``test``; None where the two are read one after the other.
        patient: That says whose record a row is; None if the source does not say.
    """

    features: tuple[str, ...]
    label: str
    fold: str | None
    patient: str | None

    @property
    def texts(self) -> tuple[str, ...]:
        """Those that are read as they are written, and never empty."""
        return tuple(column for column in (self.label, self.fold, self.patient) if column is not None)

    @property
    def names(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys((*self.features, *self.texts)))

    def check(self, found: Sequence[str], *, origin: str) -> None:
        """Compare with the columns that a table has.

        Raises:
            RefusalError: INVALID_DATA: one is missing, or there are two of that name.
        """
        if missing := [name for name in self.names if name not in found]:
            raise invalid_data(f"{origin}: columns {missing} are missing; the study and site.toml name them")
        if repeated := [name for name in self.names if list(found).count(name) > 1]:
            raise invalid_data(f"{origin}: columns {repeated} are there more than once; expected each once")


class TableBuilder:
    """Collects the chunks of one hospital's table.

    Guarantees:
        - Every row that is added is in the result, in order, or there is no result.
        - Features take the memory of one array, whatever the number of chunks.
    """

    def __init__(self, columns: TableColumns) -> None:
        self._columns = columns
        self._folds = {fold: _Fold(columns) for fold in FOLDS}
        self._num_empty = Counter[str]()
        self._num_unknown_folds = 0

    def add(
        self, features: NDArray[np.float64], texts: Mapping[str, NDArray[np.object_]], *, fold: str | None = None
    ) -> None:
        """Add n rows.

        Args:
            features: [n, F]; NaN is a gap.
            texts: [n] values of each text column; None or NaN is an empty one.
            fold: Of all these rows; None if the fold column says it.
        """
        for column, values in texts.items():
            self._num_empty[column] += int(pd.isna(values).sum())
        labels = texts[self._columns.label].astype(str)
        patients = texts[self._columns.patient].astype(str) if self._columns.patient is not None else None
        if fold is not None:
            self._folds[fold].add(features, labels, patients)
            return
        folds = texts[str(self._columns.fold)].astype(str)
        self._num_unknown_folds += int((~np.isin(folds, FOLDS)).sum())
        for name in FOLDS:
            rows = folds == name
            self._folds[name].add(features[rows], labels[rows], None if patients is None else patients[rows])

    def build(self) -> SiteRecords:
        """All rows.

        Raises:
            RefusalError: INVALID_DATA: there are none, one has no label, fold or patient, or a patient is in both
                folds.
        """
        for column, count in self._num_empty.items():
            if count:
                raise invalid_data(f"column {column!r} is empty in {count} rows; expected a value in each")
        if count := self._num_unknown_folds:
            raise invalid_data(f"column {self._columns.fold!r}: {count} rows hold no fold; expected 'train' or 'test'")
        train, test = (self._folds[fold].records(self._columns.features) for fold in FOLDS)
        if not len(train) + len(test):
            raise invalid_data("the table has no rows; expected training and held-out records")
        if shared := _count_shared(train.patients, test.patients):
            raise invalid_data(f"{shared} patients are in training and held-out rows; expected each in one of them")
        return SiteRecords(train=train, test=test)


class _Fold:
    """Rows of one fold so far."""

    def __init__(self, columns: TableColumns) -> None:
        self._features = _Rows(np.empty((0, len(columns.features))))
        self._labels = _Rows(np.empty(0, dtype=str))
        self._patients = _Rows(np.empty(0, dtype=str)) if columns.patient is not None else None

    def add(self, features: NDArray[np.float64], labels: NDArray[np.str_], patients: NDArray[np.str_] | None) -> None:
        self._features.add(features)
        self._labels.add(labels)
        if self._patients is not None and patients is not None:
            self._patients.add(patients)

    def records(self, names: tuple[str, ...]) -> Records:
        return Records(
            features=self._features.array,
            feature_names=names,
            labels=self._labels.array,
            patients=self._patients.array if self._patients is not None else None,
        )


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


def _count_shared(first: NDArray[Any] | None, second: NDArray[Any] | None) -> int:
    return 0 if first is None or second is None else len(set(second.tolist()).intersection(first.flat))


def invalid_data(detail: str) -> RefusalError:
    """The refusal of a hospital whose data cannot be used; the detail stays in its own log."""
    return RefusalError(RefusalCode.INVALID_DATA, detail)
