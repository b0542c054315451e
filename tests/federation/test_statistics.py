"""Standardisation and imputation equal what one would compute on all hospitals' training records in one table."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler
from table_hospitals import run_at_hospitals

from fl_contract.errors import QuorumError, RunError, SettingError
from fl_contract.study import load_study
from fl_server.report import write_report

STUDY = """
name = "gaps"
title = "Gaps"
num-rounds = 2
seed = 7
[schema]
kind = "table"
label = "disease"
classes = ["0", "1"]
features = [
    { name = "age", minimum = 0.0, maximum = 100.0, scale = "standard" },
    { name = "bmi", minimum = 10.0, maximum = 60.0, scale = "standard", missing = "mean" },
    { name = "smokes", minimum = 0.0, maximum = 1.0, missing = "mean" },
    { name = "constant", minimum = 0.0, maximum = 8.0, scale = "standard" },
]
[model]
kind = "logistic"
[training]
learning-rate = 0.1
[strategy]
[federation]
min-sites = 3
[stopping]
[privacy]
mechanism = "none"
epsilon = 1.0
delta = 1e-3
[simulation]
num-sites = 3
alpha = 1.0
test-fraction = 0.3
epsilon-budget = 0.0
"""
FEATURES = ["age", "bmi", "smokes", "constant"]


def hospital(number: int, num_records: int) -> pd.DataFrame:
    """Patients of another age at each hospital; the first measures no body mass index at all."""
    generator = np.random.default_rng(number)
    bmi = generator.normal(27, 12, num_records)  # some beyond the range
    bmi[generator.random(num_records) < 0.3] = np.nan
    smokes = generator.integers(0, 2, num_records).astype(float)
    smokes[:3] = np.nan
    table = pd.DataFrame({
        "age": generator.normal(40 + 10 * number, 9, num_records),
        "bmi": np.nan if number == 0 else bmi,
        "smokes": smokes,
        "constant": 3.0,
        "disease": generator.integers(0, 2, num_records),
        "fold": np.where(np.arange(num_records) % 4 == 0, "test", "train"),
    })  # fmt: skip
    table.loc[:1, "disease"] = [0, 1]
    return table


def run(folder: Path, tables: list[pd.DataFrame], policy: str = 'statistics = "exact"') -> Path:
    """Run the study at these hospitals; the folder of the run."""
    return run_at_hospitals(folder, STUDY, tables, source='label = "disease"', policy=policy, name="gaps")


def scaled(table: pd.DataFrame) -> np.ndarray:
    """Features mapped from their range onto [-1, 1], as the study says."""
    ranges = {"age": (0, 100), "bmi": (10, 60), "smokes": (0, 1), "constant": (0, 8)}
    columns = [2 * (table[name].clip(*ranges[name]) - ranges[name][0]) / (ranges[name][1] - ranges[name][0]) - 1
               for name in FEATURES]  # fmt: skip
    return np.stack(columns, axis=1)


@pytest.fixture
def tables() -> list[pd.DataFrame]:
    return [hospital(number, num_records) for number, num_records in enumerate((40, 90, 61))]


def test_the_model_standardises_as_on_the_pooled_table(tmp_path: Path, tables: list[pd.DataFrame]) -> None:
    folder = run(tmp_path, tables)

    model = load_study("gaps", directory=tmp_path / "studies").build_model()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    pooled = pd.concat(tables)
    train, test = (scaled(pooled[pooled["fold"] == fold]) for fold in ("train", "test"))
    imputer = SimpleImputer().fit(train)
    expected = imputer.transform(test)
    standard = [0, 1, 3]
    # Of known values alone: a mean that fills a gap would make the deviation smaller.
    expected[:, standard] -= np.nanmean(train[:, standard], axis=0)
    expected[:, standard] /= np.where(
        np.nanstd(train[:, standard], axis=0) > 0, np.nanstd(train[:, standard], axis=0), 1
    )
    assert expected[:, 0] == pytest.approx(StandardScaler().fit(train[:, :1]).transform(test[:, :1])[:, 0], abs=1e-6)

    found = model.get_submodule("standardise")(torch.from_numpy(test.astype(np.float32)))

    assert found.numpy() == pytest.approx(expected, abs=1e-6)


def test_a_small_count_is_left_out(tmp_path: Path, tables: list[pd.DataFrame]) -> None:
    train = tables[1]["fold"] == "train"
    known = train & tables[1]["bmi"].notna()
    tables[1].loc[known[known].index[9:], "bmi"] = np.nan  # nine values are left: below the least count of ten

    folder = run(tmp_path, tables)

    model = load_file(folder / "model.safetensors")
    of_third = scaled(tables[2][tables[2]["fold"] == "train"])[:, 1]
    assert float(model["standardise.fill"][1]) == pytest.approx(np.nanmean(of_third), abs=1e-6)


def test_a_feature_that_nobody_measures_stops_the_run_by_its_name(tmp_path: Path, tables: list[pd.DataFrame]) -> None:
    for table in tables:
        table["bmi"] = np.nan

    with pytest.raises(RunError, match=r"no hospital has enough values of \['bmi'\]"):
        run(tmp_path, tables)


def test_a_policy_that_gives_no_statistics_refuses_before_round_1(tmp_path: Path, tables: list[pd.DataFrame]) -> None:
    with pytest.raises(QuorumError, match="hospital-0: policy"):
        run(tmp_path, tables, policy="")


def test_what_left_is_in_the_outbound_log(tmp_path: Path, tables: list[pd.DataFrame]) -> None:
    run(tmp_path, tables)

    lines = (tmp_path / "hospital-1" / "outbound.jsonl").read_text().splitlines()
    (sent,) = [entry for entry in map(json.loads, lines) if entry["kind"] == "query.statistics"]
    assert sent["fields"] == {"config": ["site"], "metrics": ["counts", "square-sums", "sums"]}
    page = " ".join(write_report(tmp_path / "run").read_text().split())
    assert "before round 1 count, sum and sum of squares of each feature" in page


def test_a_private_study_cannot_ask_for_statistics(tmp_path: Path) -> None:
    content: dict[str, Any] = tomllib.loads(STUDY)
    assert content["privacy"]["mechanism"] == "none"
    (tmp_path / "gaps.toml").write_text(STUDY.replace('mechanism = "none"', 'mechanism = "dp-sgd"'))

    with pytest.raises(SettingError, match="these statistics have no noise"):
        load_study("gaps", directory=tmp_path)
