"""A batch holds whole units: all records of a drawn patient, or a random few of many, and of nobody else."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import PrivacySettingError
from privacy.units import MAX_RECORDS_PER_PATIENT, UnitBatch, Units

PATIENTS = ["d", "a", "c", "a", "d", "a", "b"]


def test_records_are_units_of_their_own() -> None:
    batch = Units.records(4).sample(1.0)

    assert batch.records.tolist() == [0, 1, 2, 3]
    assert batch.unit_of_record.tolist() == [0, 1, 2, 3]
    assert batch.num_units == 4
    assert batch.has_one_record_each


def test_a_drawn_patient_brings_every_record() -> None:
    batch = Units.patients(PATIENTS).sample(1.0)

    # Patients in alphabetical order: a has records 1, 3, 5; b has 6; c has 2; d has 0, 4.
    assert batch.records.tolist() == [1, 3, 5, 6, 2, 0, 4]
    assert batch.unit_of_record.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert batch.records_per_unit.tolist() == [3, 1, 1, 2]
    assert not batch.has_one_record_each


@pytest.mark.parametrize("names", [[3, 1, 3], ["x", "y", "x"], np.array([3, 1, 3]), np.array(["x", "y", "x"])])
def test_patients_are_numbers_or_texts(names: Any) -> None:
    assert len(Units.patients(names)) == 2


@pytest.mark.parametrize(
    "names", [[1, None], ["a", ""], ["a", " "], [1.0, 2.0], ["a", float("nan")], [1, "a"], [True], np.array([1.5])]
)
def test_a_missing_or_odd_patient_is_refused(names: Any) -> None:
    with pytest.raises(PrivacySettingError, match="patient_of_record"):
        Units.patients(names)


def test_the_mean_of_a_unit_is_over_all_its_records_and_over_no_others() -> None:
    # In the order a, b, c, d: the records 1, 3 and 5; 6; 2; 0 and 4.
    values = np.array([[0, 1], [10, 1], [20, 1], [30, 1], [40, 1], [50, 1], [60, 4]], dtype=np.float32)

    means = Units.patients(PATIENTS).mean(values)

    assert means.tolist() == [[30.0, 1.0], [60.0, 4.0], [20.0, 1.0], [20.0, 1.0]]
    assert means.dtype == np.float64
    assert Units.records(7).mean(values).tolist() == values.tolist()


def test_a_site_without_records_has_empty_batches() -> None:
    for units in (Units.records(0), Units.patients([])):
        batch = units.sample(0.5)

        assert len(units) == 0
        assert (len(batch.records), batch.num_units) == (0, 0)
        assert list(batch.split(10)) == [batch]


def test_patients_are_drawn_as_wholes_with_the_rate_whatever_they_bring() -> None:
    units = Units.patients([0] * 9 + [1, 2, 2])
    drawn = np.zeros((4000, 3), dtype=bool)

    for step in range(len(drawn)):
        batch = units.sample(0.25)
        counts = {0: 9, 1: 1, 2: 2}
        patients = [0 if record < 9 else 1 if record == 9 else 2 for record in batch.records.tolist()]
        assert all(patients.count(patient) == counts[patient] for patient in patients)
        drawn[step, patients] = True

    # Each frequency has standard error sqrt(0.25*0.75/4000) = 0.0069, each correlation 0.0158; 5.5 of them.
    assert np.abs(drawn.mean(axis=0) - 0.25).max() < 5.5 * 0.0069
    assert np.abs(np.corrcoef(drawn, rowvar=False)[np.triu_indices(3, k=1)]).max() < 5.5 * 0.0158


def test_of_a_patient_with_many_records_a_random_few_enter_a_step() -> None:
    num_many = 2 * MAX_RECORDS_PER_PATIENT
    units = Units.patients([0] + [1] * num_many + [2])
    seen = np.zeros(num_many + 2)

    for _ in range(400):
        batch = units.sample(1.0)
        assert batch.records_per_unit.tolist() == [1, MAX_RECORDS_PER_PATIENT, 1]
        assert len(set(batch.records.tolist())) == MAX_RECORDS_PER_PATIENT + 2
        assert batch.unit_of_record.tolist() == sorted(batch.unit_of_record.tolist())
        seen[batch.records] += 1

    # Each of the many is in half of 400 steps: 200, standard deviation 10; 6 of them.
    assert seen[0] == seen[-1] == 400
    assert np.abs(seen[1:-1] - 200).max() < 6 * 10


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=12), max_records=st.integers(0, 20))
def test_parts_hold_every_unit_once_and_whole(counts: list[int], max_records: int) -> None:
    unit_of_record = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    batch = UnitBatch(records=torch.arange(sum(counts)), unit_of_record=unit_of_record, num_units=len(counts))

    parts = list(batch.split(max_records))

    assert torch.cat([part.records for part in parts]).tolist() == batch.records.tolist()
    assert [count for part in parts for count in part.records_per_unit.tolist()] == counts
    for part in parts:
        assert part.unit_of_record[0] == 0
        assert len(part.records) <= max_records or part.num_units == 1


def test_the_first_unit_can_be_split_off() -> None:
    first, rest = Units.patients(PATIENTS).sample(1.0).split_off_first()

    assert (first.records.tolist(), first.num_units) == ([1, 3, 5], 1)
    assert (rest.records.tolist(), rest.num_units) == ([6, 2, 0, 4], 3)
    assert rest.unit_of_record.tolist() == [0, 1, 2, 2]
