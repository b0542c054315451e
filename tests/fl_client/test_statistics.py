"""A hospital adds up its training records as its policy allows, and its own statistics never mix train and held-out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fl_client import statistics
from fl_client.inputs import held_out_examples, training_examples
from fl_client.settings import SiteSettings
from fl_client.site import Site
from fl_client.statistics import add_up_features
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.settings import read_toml
from fl_contract.study import Study
from fl_contract.study_file import STUDIES

DIGITS = {"kind": "built-in", "dataset": "digits", "parts": [0], "num-parts": 4, "alpha": 100.0, "test-fraction": 0.3}
TABLE = {"kind": "table", "train": "patients.csv", "fold": "fold", "label": "ill"}
AGE = {"name": "age", "minimum": 0.0, "maximum": 100.0}


@pytest.fixture
def site_with(tmp_path: Path) -> Callable[..., Site]:
    """A hospital in a study without privacy."""

    def make(study: str, schema: Mapping[str, Any], source: Mapping[str, Any], **policy: Any) -> Site:
        raw = read_toml(STUDIES / f"{study}.toml")
        raw["schema"] |= schema
        raw["privacy"]["mechanism"] = "none"
        allowed = {"epsilon-budget": 0.0, "delta": 0.001, "require-privacy": False, "measurements": "exact"}
        allowed |= {key.replace("_", "-"): value for key, value in policy.items()}
        settings = SiteSettings.parse(
            {"name": "st-anna", "declared-examples": 300, "source": source, "policy": allowed}, origin="test"
        )
        return Site(settings=settings, folder=tmp_path, study=Study.parse(raw, origin="test"))

    return make


@pytest.fixture
def ages(tmp_path: Path) -> dict[str, Any]:
    """A source of forty patients: 30 to train on, half of them 20 and half 60 years old, and 10 who are all 80."""
    table = pd.DataFrame({"age": [20, 60] * 15 + [80] * 10, "ill": [0, 1] * 20, "fold": ["train"] * 30 + ["test"] * 10})
    table.to_csv(tmp_path / "patients.csv", index=False)
    return TABLE


def test_held_out_records_are_standardised_by_the_hospitals_training_records(
    site_with: Callable[..., Site], ages: dict[str, Any]
) -> None:
    schema = {"features": [AGE | {"scale": "site-standard"}], "label": "ill", "classes": ["0", "1"]}
    site = site_with("heart-disease", schema, ages)
    records = site.load_records()

    train, test = training_examples(site, records.train), held_out_examples(site, records)

    # Training mean 40 and deviation 20: 20 and 60 years are -1 and 1, 80 years are 2.
    assert sorted(set(train.inputs[:, 0].tolist())) == pytest.approx([-1, 1])
    assert sorted(set(test.inputs[:, 0].tolist())) == pytest.approx([2])
    assert not site.study.needs_statistics


@pytest.mark.parametrize("chunk_values", [1, 7, 2**22])
def test_records_that_are_added_up_in_parts_give_the_same(
    site_with: Callable[..., Site], ages: dict[str, Any], monkeypatch: pytest.MonkeyPatch, chunk_values: int
) -> None:
    monkeypatch.setattr(statistics, "CHUNK_VALUES", chunk_values)
    schema = {"features": [AGE | {"scale": "robust", "missing": "mean"}], "label": "ill", "classes": ["0", "1"]}

    found = add_up_features(site_with("heart-disease", schema, ages, statistics="exact"))

    # 20 and 60 years are -0.6 and 0.2 of the range, and the first of their bins.
    assert found.counts.tolist() == [30]
    assert found.sums.tolist() == pytest.approx([15 * -0.6 + 15 * 0.2], abs=1e-5)
    assert found.square_sums.tolist() == pytest.approx([15 * 0.36 + 15 * 0.04], abs=1e-5)
    assert found.histograms[0][np.flatnonzero(found.histograms[0])].tolist() == [15, 15]


def test_the_least_count_is_of_images_and_not_of_pixels(site_with: Callable[..., Site]) -> None:
    source, schema = DIGITS | {"seed": 7}, {"scale": "standard"}
    num_images = len(site_with("digits", schema, source).load_records().train)

    counts = [
        add_up_features(site_with("digits", schema, source, statistics="exact", min_count=least)).counts.tolist()
        for least in (num_images, num_images + 1)
    ]

    assert counts == [[64 * num_images], [0]]


@pytest.mark.parametrize(
    ("schema", "policy", "code"),
    [
        ({"scale": "standard"}, {}, RefusalCode.POLICY),
        ({}, {"statistics": "exact"}, RefusalCode.INVALID_REQUEST),
    ],
)
def test_nothing_is_added_up_that_the_policy_or_the_study_does_not_want(
    site_with: Callable[..., Site], schema: dict[str, Any], policy: dict[str, Any], code: RefusalCode
) -> None:
    with pytest.raises(RefusalError) as caught:
        add_up_features(site_with("digits", schema, DIGITS | {"seed": 7}, **policy))

    assert caught.value.code is code
