"""The check on four real hospitals: every `?`, the cholesterol of 0 for "not measured", and rows without gaps."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fl_client.cli import app
from fl_client.data_check import CheckReport, check_site
from fl_client.inputs import training_examples
from fl_client.settings import SiteSettings
from fl_client.site import Site
from fl_contract.study import Study
from fl_contract.study_file import STUDIES, load_study

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "heart_disease"
COLUMNS = [
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal"),
    "num",
]
LABELS = {"0": "0", "1": "1", "2": "1", "3": "1", "4": "1"}
RANGES = {
    **{"age": (20, 90), "sex": (0, 1), "cp": (1, 4), "trestbps": (80, 220), "chol": (100, 600), "fbs": (0, 1)},
    **{"restecg": (0, 2), "thalach": (60, 220), "exang": (0, 1), "oldpeak": (-3, 7), "slope": (1, 3), "ca": (0, 3)},
    "thal": (3, 7),
}

pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA.name}: the four hospitals' files are not beside us")


def raw_table(hospital: str) -> pd.DataFrame:
    """All rows and columns as the hospital published them, every third held out."""
    table = pd.read_csv(DATA / f"processed.{hospital}.data", header=None, names=COLUMNS, dtype=str)
    number = np.arange(len(table))
    return table.assign(patient=number, fold=np.where(number % 3 == 2, "test", "train"))


def raw_study() -> Study:
    """A study of all thirteen features, as they are coded."""
    raw = tomllib.loads((STUDIES / "heart-disease.toml").read_text(encoding="utf-8"))
    features = [{"name": name, "minimum": low, "maximum": high} for name, (low, high) in RANGES.items()]
    schema = {"kind": "table", "label": "disease", "classes": ["0", "1"], "features": features}
    return Study.parse(raw | {"schema": schema}, origin="test")


@pytest.fixture
def open_site(tmp_path: Path) -> Callable[..., Site]:
    def write(table: pd.DataFrame, study: Study, columns: dict[str, Any]) -> Site:
        table.to_csv(tmp_path / "patients.csv", index=False)
        source = {"kind": "table", "train": "patients.csv", "fold": "fold", "label": "num", "patient": "patient"}
        raw = {
            "name": "hospital",
            "declared-examples": max(10, 10 * round((table["fold"] == "train").sum() / 10)),
            "source": source | {"labels": LABELS, "columns": columns},
            "policy": {"epsilon-budget": 10.0, "delta": 0.0001},
        }
        return Site(settings=SiteSettings.parse(raw, origin="site.toml"), folder=tmp_path, study=study)

    return write


def counts(report: CheckReport, field: str) -> dict[str, int]:
    """Each feature with a count above 0."""
    return {each.name: getattr(each, field) for each in report.features if getattr(each, field)}


@pytest.mark.parametrize(
    ("hospital", "num_records", "num_missing"),
    # From the description of the data: records, and cells that hold a `?`.
    [("cleveland", 303, 6), ("hungarian", 294, 782), ("switzerland", 123, 273), ("va", 200, 698)],
)
def test_every_missing_cell_of_the_original_files_is_counted(
    open_site: Callable[..., Site], hospital: str, num_records: int, num_missing: int
) -> None:
    table = raw_table(hospital)

    report = check_site(open_site(table, raw_study(), {name: {"missing": ["?"]} for name in RANGES}))

    assert report.train is not None
    assert report.test is not None
    assert report.train.records + report.test.records == num_records
    missing = counts(report, "missing")
    assert sum(missing.values()) == num_missing
    assert missing == {name: count for name in RANGES if (count := int((table[name] == "?").sum()))}
    assert [problem.detail.split(":")[0] for problem in report.problems] == [f"feature {name!r}" for name in missing]


def test_a_mark_that_the_site_does_not_name_is_an_error_for_every_column_at_once(
    open_site: Callable[..., Site],
) -> None:
    report = check_site(open_site(raw_table("switzerland"), raw_study(), {}))

    named = [problem.detail.split("'")[1] for problem in report.problems]
    assert named == ["trestbps", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal"]


def test_a_cholesterol_of_0_at_every_swiss_patient_is_doubted_and_then_counted_as_missing(
    open_site: Callable[..., Site],
) -> None:
    columns: dict[str, Any] = {name: {"missing": ["?"]} for name in RANGES}
    before = check_site(open_site(raw_table("switzerland"), raw_study(), columns))
    after = check_site(open_site(raw_table("switzerland"), raw_study(), columns | {"chol": {"missing": ["?", 0]}}))

    assert counts(before, "below")["chol"] == 123
    found = "feature 'chol': one value outside [100, 600] stands in 123 of 123 records (100%)"
    assert any(warning.startswith(found) for warning in before.warnings)
    assert counts(after, "missing")["chol"] == 123
    assert not any("'chol'" in warning for warning in after.warnings)


def test_the_example_in_the_documents_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(__file__).parents[2] / "docs" / "data-check.md").read_text(encoding="utf-8")
    (site,) = re.findall(r"```toml\n(.*?)```", document, flags=re.DOTALL)
    (output,) = re.findall(r"```\n(switzerland for .*?)```", document, flags=re.DOTALL)
    (tmp_path / "site.toml").write_text(site, encoding="utf-8")
    raw_table("switzerland").to_csv(tmp_path / "patients.csv", index=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")

    result = CliRunner().invoke(app, ["check", str(tmp_path / "site.toml"), "--study", "heart-disease"])

    assert result.exit_code == 1
    assert [line.rstrip() for line in result.stdout.splitlines()] == output.splitlines()


def categories(column: str, values: tuple[int, ...]) -> dict[str, Any]:
    """One column of codes as a feature for each code, 1 or 0."""
    return {
        f"{column}_{value}": {"column": column, "codes": {str(other): float(other == value) for other in values}}
        for value in values
    }


@pytest.mark.parametrize(
    ("hospital", "num_train", "num_test"),
    [("cleveland", 199, 104), ("hungarian", 172, 89), ("switzerland", 30, 16), ("va", 85, 45)],
)
def test_the_rows_without_gaps_are_ok_and_mapped_by_the_sites_file_alone(
    open_site: Callable[..., Site], hospital: str, num_train: int, num_test: int
) -> None:
    split = pd.read_csv(DATA / "flamby_split.csv")
    rows = split[split["center"] == hospital]
    table = raw_table(hospital).iloc[rows["file_row"]].assign(fold=rows["fold"].to_numpy())
    site = open_site(
        table, load_study("heart-disease"), categories("cp", (1, 2, 3, 4)) | categories("restecg", (0, 1, 2))
    )

    report = check_site(site)

    assert report.problems == ()
    assert report.train is not None
    assert report.test is not None
    assert (report.train.records, report.test.records) == (num_train, num_test)
    assert report.train.classes["1"] + report.test.classes["1"] == rows["label"].sum()
    labels = training_examples(site, site.load_records().train).labels.tolist()
    assert labels == rows[rows["fold"] == "train"]["label"].tolist()
