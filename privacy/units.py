"""The only place that knows which records belong to which unit of privacy, and that makes batches of whole units."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privacy.bounds import require_count
from privacy.errors import PrivacySettingError
from privacy.noise import secure_uniform
from privacy.sampling import sample_poisson

MAX_RECORDS_PER_PATIENT = 16
"""Records of one patient that enter a step, at most, drawn anew in each; they are in memory together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitBatch:
    """Whole units, with their records side by side.

    Attributes:
        records: Index of each record, int64, shape [R]; a CPU tensor, as `Fetch` gets it.
        unit_of_record: Position of each record's unit in the batch, from 0, ascending; shape [R].
        num_units: Units in the batch; each has at least one record.
    """

    records: Tensor
    unit_of_record: Tensor
    num_units: int

    @property
    def has_one_record_each(self) -> bool:
        """Whether units and records are the same."""
        return self.records.shape[0] == self.num_units

    @property
    def records_per_unit(self) -> Tensor:
        """Number of records of each unit, shape [U]."""
        return torch.bincount(self.unit_of_record, minlength=self.num_units)

    def split_off_first(self) -> tuple["UnitBatch", "UnitBatch"]:
        """Cut after the first unit; the second part may have none."""
        num_first = int(self.records_per_unit[0])
        return self._cut(0, num_first, 0, 1), self._cut(num_first, len(self.records), 1, self.num_units)

    def split(self, max_records: int) -> Iterator["UnitBatch"]:
        """Cut into parts of at most so many records, but never a unit in two: a part has at least one unit."""
        if len(self.records) <= max_records:
            yield self
            return
        ends = self.records_per_unit.cumsum(0).tolist()
        first_unit = first_record = 0
        for unit, end in enumerate(ends):
            is_last = unit + 1 == self.num_units
            if is_last or ends[unit + 1] - first_record > max_records:
                yield self._cut(first_record, end, first_unit, unit + 1)
                first_unit, first_record = unit + 1, end

    def _cut(self, first_record: int, end_record: int, first_unit: int, end_unit: int) -> "UnitBatch":
        return UnitBatch(
            records=self.records[first_record:end_record],
            unit_of_record=self.unit_of_record[first_record:end_record] - first_unit,
            num_units=end_unit - first_unit,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Units:
    """What one promise of privacy protects, and the records each of them has; private, so never released.

    Attributes:
        unit: As in the plan; both must be the same.
        ordered: Indices of all records, those of a unit side by side.
        starts: Where each unit's records begin in ``ordered``, and the end of the last.
    """

    unit: Literal["record", "patient"]
    ordered: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def records(cls, num_records: int) -> "Units":
        """Every record is a unit of its own; right only where no patient has two.

        >>> len(Units.records(3))
        3
        """
        require_count("num_records", num_records, at_least=0)
        return cls(unit="record", ordered=np.arange(num_records), starts=np.arange(num_records + 1))

    @classmethod
    def patients(cls, patient_of_record: Sequence[int] | Sequence[str] | NDArray[Any]) -> "Units":
        """Every patient is a unit.

        Args:
            patient_of_record: Each record's patient, by number or non-empty text. A missing one is an error: the
                records of unknown patients could be of one and the same.

        >>> len(Units.patients(["ann", "bob", "ann"]))
        2
        """
        names = _require_names(patient_of_record)
        _, patients = np.unique(names, return_inverse=True)
        counts = np.bincount(patients) if len(patients) else np.zeros(0, dtype=np.int64)
        return cls(
            unit="patient",
            ordered=np.argsort(patients, kind="stable"),
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )

    @classmethod
    def alone(cls, unit: Literal["record", "patient"], num_records: int) -> "Units":
        """Every record is a unit of its own, whatever it is called.

        >>> len(Units.alone("patient", 3))
        3
        """
        return cls.records(num_records) if unit == "record" else cls.patients(range(num_records))

    def __len__(self) -> int:
        """Number of units."""
        return len(self.starts) - 1

    def mean(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Average over each unit's records, so that a unit counts once however many records it has.

        Args:
            values: [N, C], a row for each record.

        Returns:
            [U, C].

        >>> Units.patients(["ann", "bob", "ann"]).mean(np.array([[1.0], [5.0], [2.0]])).tolist()
        [[1.5], [5.0]]
        """
        sums = np.add.reduceat(values[self.ordered].astype(np.float64), self.starts[:-1], axis=0)
        means: NDArray[np.float64] = sums / np.diff(self.starts)[:, np.newaxis]
        return means

    def sample(self, sampling_rate: float) -> UnitBatch:
        """Draw a Poisson batch of units: each joins independently, with all its records or a random few of many.

        >>> Units.patients([7, 8, 7]).sample(1.0).records
        tensor([0, 2, 1])
        """
        chosen = sample_poisson(len(self), sampling_rate)
        if self.unit == "record":
            count_up = torch.from_numpy(self.starts[: len(chosen)])
            return UnitBatch(records=torch.from_numpy(chosen), unit_of_record=count_up, num_units=len(chosen))
        counts = self.starts[chosen + 1] - self.starts[chosen]
        unit_of_record = np.repeat(np.arange(len(chosen)), counts)
        rank = np.arange(len(unit_of_record)) - np.repeat(np.cumsum(counts) - counts, counts)
        records = self.ordered[self.starts[chosen][unit_of_record] + rank]
        if (counts > MAX_RECORDS_PER_PATIENT).any():
            shuffled = np.lexsort((secure_uniform(len(records)), unit_of_record))
            kept = np.sort(shuffled[rank < MAX_RECORDS_PER_PATIENT])
            records, unit_of_record = records[kept], unit_of_record[kept]
        return UnitBatch(
            records=torch.from_numpy(records),
            unit_of_record=torch.from_numpy(unit_of_record),
            num_units=len(chosen),
        )


def _require_names(patient_of_record: Sequence[int] | Sequence[str] | NDArray[Any]) -> NDArray[Any]:
    names = patient_of_record.tolist() if isinstance(patient_of_record, np.ndarray) else list(patient_of_record)
    are_numbers = all(type(name) is int for name in names)
    if not are_numbers and not all(isinstance(name, str) and name.strip() for name in names):
        raise PrivacySettingError(
            "patient_of_record has values that are missing or of another type; "
            "expected a whole number for every record, or a non-empty text for every record"
        )
    return np.asarray(names)
