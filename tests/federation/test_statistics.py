"""Standardisation and imputation equal what one would compute on all hospitals' training records in one table."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors.torch import load_file
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler
from table_hospitals import run_at_hospitals

from fl_client.journal import Journal
from fl_client.settings import read_site_settings
from fl_client.site import Site
from fl_contract.errors import QuorumError, RunError, SettingError
from fl_contract.study import Study
from fl_contract.study_file import Scalar, load_study
from fl_server.app import app as server_app
from fl_server.local_grid import COORDINATOR_NODE, LocalGrid, load_client_app
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


MIXED = (
    STUDY[: STUDY.index("features = [")]
    + """features = [
    { name = "age", minimum = 0.0, maximum = 100.0, scale = "robust" },
    { name = "bmi", minimum = 10.0, maximum = 60.0, missing = "median" },
    { name = "pain", categories = ["typical", "atypical", "none"], missing = "most-frequent" },
    { name = "sex", categories = ["f", "m"] },
    { name = "crp", minimum = 1.0, maximum = 100.0, scale = "site-standard", missing = "site-mean" },
]
"""
    + STUDY[STUDY.index("[model]") :]
    .replace('"logistic"', '"mlp"\nembedding-size = 2')
    .replace("min-sites = 3", "min-sites = 2")
)
PAINS = ["typical", "atypical", "none"]


def mixed_hospital(number: int) -> pd.DataFrame:
    """600 patients; one hospital writes pain as 1, 2, 3, the other as the study does, and most have none."""
    generator = np.random.default_rng(number)
    pain = generator.choice(3, 600, p=[0.2, 0.2, 0.6]) + 1
    table = pd.DataFrame({
        "age": np.repeat(np.arange(30.5, 50), 30) + 10 * number,
        "bmi": np.repeat(np.arange(20.525, 40, 1), 30),
        "pain": pd.Series(pain, dtype=object) if number == 0 else np.array(PAINS)[pain - 1],
        "sex": generator.choice(["f", "m"], 600),
        "crp": generator.normal(20 + 30 * number, 3, 600).clip(1, 100),
        "disease": generator.integers(0, 2, 600),
        "fold": np.where(np.arange(600) % 3 == 0, "test", "train"),
    })  # fmt: skip
    table.loc[generator.random(600) < 0.1, ["pain", "crp"]] = None
    table.loc[400:, "bmi"] = np.nan
    return table


def test_medians_categories_and_quartiles_are_those_of_the_pooled_table(tmp_path: Path) -> None:
    tables = [mixed_hospital(number) for number in range(2)]

    folder = run_at_hospitals(
        tmp_path,
        MIXED,
        tables,
        source='label = "disease"\n[source.columns.pain]\ncodes = { 1 = "typical", 2 = "atypical", 3 = "none" }',
        policy='statistics = "exact"',
        name="gaps",
    )

    state = load_file(folder / "model.safetensors")
    pooled = pd.concat(table[table["fold"] == "train"] for table in tables)
    # 20 values of 20 patients each at a hospital: no bin, a thousandth of the range, holds fewer than 10.
    age, bmi = (2 * pooled[name] / top - rest for name, top, rest in (("age", 100, 1), ("bmi", 50, 1.4)))
    half_a_bin = 1e-3 + 1e-6
    assert pooled["pain"].isin(["none", 3]).sum() > 0.5 * len(pooled)
    assert state["standardise.fill"].tolist() == pytest.approx([0, bmi.median(), 2, 0, 0], abs=half_a_bin)
    assert state["standardise.shift"].tolist() == pytest.approx([age.median(), 0, 0, 0, 0], abs=half_a_bin)
    distance = age.quantile(0.75) - age.quantile(0.25)
    assert state["standardise.spread"].tolist() == pytest.approx([distance, 1, 1, 1, 1], abs=2 * half_a_bin)
    # Two numbers for each of two features of categories, and three features of numbers.
    assert state["network.0.embeddings.0.weight"].shape == (2, 3)
    assert state["network.1.weight"].shape[1] == 3 + 2 * 2
    (sent,) = _sent_statistics(tmp_path / "hospital-1")
    assert sent["metrics"] == ["counts", "histograms", "square-sums", "sums"]


IMAGES = """
name = "scans"
title = "Scans"
num-rounds = 1
seed = 7
[schema]
kind = "image"
label = "digit"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
height = 8
width = 8
maximum = 16.0
scale = "standard"
[model]
kind = "small-cnn"
width = 4
""" + STUDY[STUDY.index("[training]") :].replace("alpha = 1.0", 'dataset = "digits"\nalpha = 100.0')


def test_images_are_standardised_by_all_hospitals_pixels(tmp_path: Path) -> None:
    (tmp_path / "scans.toml").write_text(IMAGES)
    study = load_study("scans", directory=tmp_path)
    run_config: dict[str, Scalar] = {"study": "scans", "out": str(tmp_path / "run")}
    nodes: list[dict[str, Scalar]] = [
        {"partition-id": number, "num-partitions": 3, "studies": str(tmp_path)} for number in range(3)
    ]
    grid = LocalGrid(load_client_app(), nodes, run_config=run_config)
    try:
        server_app(grid, Context(1, COORDINATOR_NODE, {"studies": str(tmp_path)}, RecordDict(), run_config))
    finally:
        grid.close()

    (model,) = (tmp_path / "run").glob("*/model.safetensors")
    state = load_file(model)
    settings = [read_site_settings(path) for path in (tmp_path / "run").glob("**/site.toml")]
    images = np.concatenate([
        Site(settings=each, folder=tmp_path, study=study).load_records().train.features for each in settings
    ])  # fmt: skip
    scaled = images / 8 - 1
    assert len(settings) == 3
    assert state["standardise.shift"].tolist() == pytest.approx([scaled.mean()], abs=1e-6)
    assert state["standardise.spread"].tolist() == pytest.approx([scaled.std()], abs=1e-6)


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


def _sent_statistics(folder: Path) -> list[Any]:
    """Fields of each release of statistics."""
    return [entry.fields["fields"] for entry in Journal(folder).read() if entry.fields["reply"] == "query.statistics"]


def test_what_left_is_in_the_journal(tmp_path: Path, tables: list[pd.DataFrame]) -> None:
    run(tmp_path, tables)

    (sent,) = _sent_statistics(tmp_path / "hospital-1")
    assert sent == {"config": ["site"], "metrics": ["counts", "square-sums", "sums"]}
    page = " ".join(write_report(tmp_path / "run").read_text().split())
    assert "before round 1 counts, sums, sums of squares and histograms of features" in page


@pytest.mark.parametrize(
    "change",
    [
        {"scale": "standard"},
        {"scale": "robust"},
        {"scale": "site-standard"},
        {"missing": "mean"},
        {"missing": "median"},
        {"name": "x", "categories": ["a", "b"], "missing": "most-frequent"},
    ],
)
def test_a_private_study_cannot_ask_for_statistics(change: dict[str, Any]) -> None:
    raw = tomllib.loads(STUDY.replace('mechanism = "none"', 'mechanism = "dp-sgd"'))
    plain = {"name": "age", "minimum": 0.0, "maximum": 100.0}
    raw["schema"]["features"] = [plain]
    Study.parse(raw, origin="gaps.toml")
    raw["schema"]["features"] = [change if "categories" in change else plain | change]

    with pytest.raises(SettingError, match="these statistics have no noise"):
        Study.parse(raw, origin="gaps.toml")
