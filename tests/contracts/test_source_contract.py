"""What every source promises: all that was written, the same at each load, and refusals that name no patient."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from source_cases import CASES, PERSON, Written

from fl_client.data.records import Records, SiteRecords
from fl_contract.errors import RefusalCode, RefusalError

HELD = (np.uint8, np.uint16, np.int16, np.float32, np.float64)
"""Types that pixels are held in; tables and series are in float64."""

FAULTS = [(name, fault) for name, case in CASES.items() for fault in case.faults]


@pytest.fixture(params=CASES)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    return CASES[request.param].write(tmp_path)


def contents(features: NDArray[np.generic], labels: NDArray[np.str_]) -> Counter[tuple[bytes, str]]:
    """How often each record occurs."""
    values = features.reshape(len(labels), -1).astype(np.float64)
    return Counter((row.tobytes(), str(label)) for row, label in zip(values, labels, strict=True))


def whole(site: SiteRecords) -> Counter[tuple[bytes, str]]:
    return contents(site.train.features, site.train.labels) + contents(site.test.features, site.test.labels)


def same(first: Records, second: Records) -> bool:
    patients = (first.patients is None) == (second.patients is None)
    if first.patients is not None and second.patients is not None:
        patients = first.patients.tolist() == second.patients.tolist()
    return (
        patients
        and np.array_equal(first.features, second.features, equal_nan=True)
        and first.labels.tolist() == second.labels.tolist()
        and first.feature_names == second.feature_names
    )


def test_two_loads_give_the_same_records_in_the_same_order(written: Written) -> None:
    first, second = written.source.load(), written.source.load()

    assert same(first.train, second.train)
    assert same(first.test, second.test)


def test_every_record_that_was_written_is_there_once_with_its_label(written: Written) -> None:
    site = written.source.load()

    assert whole(site) == contents(written.features, written.labels)
    assert written.held_out in (None, len(site.test))


def test_features_names_labels_and_patients_fit_together(written: Written) -> None:
    site = written.source.load()

    for records in (site.train, site.test):
        assert len(records) > 0
        assert records.features.dtype in (HELD if written.is_image else (np.float64,))
        assert records.features.shape == (len(records), *site.train.features.shape[1:])
        assert records.labels.shape == (len(records),)
        assert records.labels.dtype.kind == "U"
        assert records.feature_names == written.feature_names
        if written.feature_names:
            assert records.features.shape[1:] == (len(written.feature_names),)
        else:
            assert records.features.shape[1:] == written.features.shape[1:]


def test_each_record_is_its_patient_s_and_no_patient_is_in_both_folds(written: Written) -> None:
    site = written.source.load()

    if written.patients is None:
        assert site.train.patients is None
        assert site.test.patients is None
        return
    assert site.train.patients is not None
    assert site.test.patients is not None
    train, test = site.train.patients.astype(str), site.test.patients.astype(str)
    features = np.concatenate([site.train.features, site.test.features])
    assert contents(features, np.concatenate([train, test])) == contents(written.features, written.patients)
    assert not set(train) & set(test)


def test_a_change_to_the_records_in_memory_does_not_reach_the_next_load(written: Written) -> None:
    written.source.load().train.features[:] = 101

    assert whole(written.source.load()) == contents(written.features, written.labels)


def test_every_file_that_the_source_reads_is_listed(written: Written, tmp_path: Path) -> None:
    files = written.source.files()

    if files is not None:
        there = {path for path in tmp_path.rglob("*") if path.is_file()}
        assert set(files) == there


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=[f"{name}: {fault}" for name, fault in FAULTS])
def test_a_fault_refuses_the_data_and_names_source_and_rule_but_no_patient(
    tmp_path: Path, name: str, fault: str
) -> None:
    spoil, named = CASES[name].faults[fault]
    source = CASES[name].write(tmp_path).source
    spoil(tmp_path)

    with pytest.raises(RefusalError) as caught:
        source.load()

    assert caught.value.code is RefusalCode.INVALID_DATA
    assert named in caught.value.detail
    assert PERSON not in caught.value.detail
