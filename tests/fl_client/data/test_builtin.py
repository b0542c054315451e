"""Virtual hospitals share out a real data set: all of its patients, each at one hospital."""

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

from fl_client.data.builtin import BuiltInSource
from fl_client.data.records import Records, SiteRecords
from fl_client.source_settings import SourceSettings
from fl_contract.study_file import load_study


def load(*parts: int, dataset: str = "breast-cancer", seed: int = 2026) -> SiteRecords:
    settings = {
        "kind": "built-in",
        "dataset": dataset,
        "parts": list(parts),
        "num-parts": 4,
        "alpha": 2.0,
        "test-fraction": 0.3,
        "seed": seed,
    }
    return BuiltInSource(SourceSettings.parse(settings, origin="test")).load()


def patients(records: Records) -> list[bytes]:
    """Each patient as their measurements and label, which no two share in the breast-cancer data."""
    return [row.tobytes() + label.encode() for row, label in zip(records.features, records.labels, strict=True)]


def everyone(site: SiteRecords) -> list[bytes]:
    return patients(site.train) + patients(site.test)


def test_four_hospitals_hold_all_569_patients_and_none_twice() -> None:
    held = [patient for part in range(4) for patient in everyone(load(part))]

    assert len(held) == 569
    assert len(set(held)) == 569


def test_training_and_held_out_patients_never_overlap() -> None:
    for part in range(4):
        site = load(part)
        assert not set(patients(site.train)) & set(patients(site.test))


def test_the_pooled_site_trains_on_and_holds_out_the_same_patients_as_the_hospitals() -> None:
    hospitals, pooled = [load(part) for part in range(4)], load(0, 1, 2, 3)

    for side in ("train", "test"):
        union = Counter(patient for site in hospitals for patient in patients(getattr(site, side)))
        assert Counter(patients(getattr(pooled, side))) == union


def test_a_hospital_holds_the_same_patients_at_every_call() -> None:
    assert everyone(load(1)) == everyone(load(1))
    assert set(everyone(load(1))) != set(everyone(load(1, seed=7)))


def test_malignant_is_the_positive_class() -> None:
    data, schema = load_breast_cancer(), load_study("breast-cancer").data_schema
    malignant: NDArray[np.float64] = data.data[data.target == 0]  # scikit-learn counts malignant as 0

    records = load(0, 1, 2, 3).train

    assert schema.classes[1] == "malignant"
    assert {row.tobytes() for row in records.features[records.labels == "malignant"]} <= {
        row.tobytes() for row in malignant
    }
    assert set(records.labels) == set(schema.classes)


def test_columns_carry_the_names_that_the_study_asks_for() -> None:
    schema = load_study("breast-cancer").data_schema

    assert schema.kind == "table"
    assert {feature.name for feature in schema.features} <= set(load(0).train.feature_names)


def test_digits_are_images_of_eight_by_eight_pixels() -> None:
    sites = [load(part, dataset="digits") for part in range(4)]

    assert {side.features.shape[1:] for site in sites for side in (site.train, site.test)} == {(8, 8)}
    assert sum(len(site.train) + len(site.test) for site in sites) == 1797
    assert set(sites[0].train.labels) == set(load_study("digits").data_schema.classes)


@pytest.mark.parametrize("dataset", ["breast-cancer", "digits"])
def test_a_change_to_the_records_in_memory_does_not_reach_the_next_call(dataset: str) -> None:
    first = load(0, dataset=dataset).train.features
    kept = first.copy()

    first[:] = -1.0

    assert np.array_equal(load(0, dataset=dataset).train.features, kept)
