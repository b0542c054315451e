"""Validation patients: the same ones whatever the order of the records, never trained on, and never divided."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_client.data.records import Records
from fl_client.inputs import training_examples
from fl_client.settings import read_site_settings
from fl_client.site import Site
from fl_client.validation import fitting_records, validation_records
from fl_contract.errors import RefusalError
from fl_contract.study import Study
from fl_contract.study_file import Scalar

FINE_TUNING: dict[str, Scalar] = {"strategy.name": "fine-tuning", "privacy.mechanism": "none"}

SiteOf = Callable[..., Site]


@pytest.fixture
def site_of(write_site_file: Callable[..., Path], study_of: Callable[..., Study]) -> SiteOf:
    """A hospital in a study with these overrides."""

    def make(name: str = "st-anna", **overrides: Scalar) -> Site:
        path = write_site_file(name)
        named = {key.replace("__", ".").replace("_", "-"): value for key, value in overrides.items()}
        study = study_of(overrides={**FINE_TUNING, **named})
        return Site(settings=read_site_settings(path), folder=path.parent, study=study)

    return make


def records_of(*patients: str) -> Records:
    """A record for each name; its only feature is its number."""
    count = len(patients)
    return Records(
        features=np.arange(count, dtype=np.float64)[:, None],
        feature_names=("number",),
        labels=np.array(["benign", "malignant"] * count)[:count],
        patients=np.array(patients),
    )


def numbers_of(records: Records) -> set[int]:
    return set(records.features[:, 0].astype(int).tolist())


@pytest.mark.parametrize(("share", "expected"), [(0.2, 2), (0.25, 2), (0.5, 5), (0.01, 1), (0.99, 9)])
def test_a_share_of_the_patients_is_split_and_one_at_least_on_either_side(
    site_of: SiteOf, share: float, expected: int
) -> None:
    site, records = site_of(strategy__validation_share=share), records_of(*"abcdefghij")

    fitting, validation = fitting_records(site, records), validation_records(site, records)

    assert len(validation) == expected
    assert numbers_of(fitting) | numbers_of(validation) == set(range(10))
    assert not numbers_of(fitting) & numbers_of(validation)


def test_no_patient_is_on_both_sides(site_of: SiteOf) -> None:
    site, records = site_of(strategy__validation_share=0.4), records_of(*"abcdeabcdeaab")

    fitting, validation = fitting_records(site, records), validation_records(site, records)

    assert fitting.patients is not None
    assert validation.patients is not None
    assert set(fitting.patients.tolist()) | set(validation.patients.tolist()) == set("abcde")
    assert not set(fitting.patients.tolist()) & set(validation.patients.tolist())


def test_the_split_does_not_depend_on_the_order_of_the_records(site_of: SiteOf) -> None:
    site, records = site_of(), records_of(*"abcdefghij")
    order = np.random.default_rng(3).permutation(10)

    assert numbers_of(validation_records(site, records)) == numbers_of(validation_records(site, records.take(order)))


def test_another_hospital_and_another_seed_split_otherwise(site_of: SiteOf) -> None:
    records = records_of(*map(str, range(40)))
    sites = [site_of(), site_of("st-berta"), site_of(seed=5)]

    assert len({frozenset(numbers_of(validation_records(site, records))) for site in sites}) == 3


def test_records_without_patients_are_split_one_by_one(site_of: SiteOf) -> None:
    records = replace(records_of(*"aaaaaaaaaa"), patients=None)

    assert len(validation_records(site_of(), records)) == 2


def test_one_patient_cannot_be_split(site_of: SiteOf) -> None:
    with pytest.raises(RefusalError, match="training records of 1 patients; expected two or more"):
        fitting_records(site_of(), records_of("a", "a"))


@pytest.mark.parametrize(
    "overrides",
    [
        {"strategy.name": "fedavg"},
        {"strategy.name": "ditto"},
        {"simulation.trainers": "hospital-1", "federation.min-sites": 1},
    ],
    ids=["fedavg", "ditto", "one trainer"],
)
def test_all_other_studies_train_on_all(site_of: SiteOf, overrides: dict[str, Scalar]) -> None:
    site = site_of(**{key.replace(".", "__").replace("-", "_"): value for key, value in overrides.items()})
    records = records_of(*"abcdefghij")

    assert fitting_records(site, records) is records
    assert len(validation_records(site, records)) == 0


def test_training_leaves_the_validation_patients_out(site_of: SiteOf) -> None:
    site = site_of()
    records = site.load_records().train
    held_back = validation_records(site, records)

    examples = training_examples(site, records)

    assert len(held_back) == round(0.2 * len(records))
    assert len(examples) == len(records) - len(held_back)
