"""A check of time series counts, for each channel, what is missing and what is out of range, and what is left out."""

import json
import tomllib
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from fl_client.check_report import print_check
from fl_client.data_check import CheckReport, check_site
from fl_client.settings import SiteSettings
from fl_client.site import Site
from fl_contract.study import Study
from fl_contract.study_file import STUDIES

SCHEMA = {
    "kind": "series",
    "label": "died",
    "classes": ["no", "yes"],
    "channels": [
        {"name": "pulse", "unit": "1/min", "minimum": 20.0, "maximum": 250.0},
        {"name": "temperature", "minimum": 30.0, "maximum": 43.0},
    ],
    "length": 2,
    "step-unit": "hours",
    "missing": "last",
}
TRAIN, TEST = 30, 12


def measured() -> pd.DataFrame:
    """42 patients with a value of both channels in both steps."""
    rows = [
        (f"p{patient}", hour, channel, 60.0 + patient if channel == "pulse" else 36.0 + patient / 10)
        for patient in range(TRAIN + TEST)
        for hour in range(2)
        for channel in ("pulse", "temperature")
    ]
    return pd.DataFrame(rows, columns=["patient", "time", "channel", "value"])


def check(folder: Path, rows: pd.DataFrame, *, schema: dict[str, Any] | None = None, **source: Any) -> CheckReport:
    rows.to_csv(folder / "monitor.csv", index=False)
    number = range(TRAIN + TEST)
    stays = {"patient": [f"p{each}" for each in number], "died": ["yes" if each % 3 == 0 else "no" for each in number]}
    pd.DataFrame(stays | {"fold": ["train"] * TRAIN + ["test"] * TEST}).to_csv(folder / "stays.csv", index=False)
    outcomes = {"kind": "table", "train": "stays.csv", "fold": "fold", "label": "died", "patient": "patient"}
    raw = {
        "name": "st-anna",
        "declared-examples": TRAIN,
        "source": source
        if "kind" in source
        else {"kind": "series", "file": "monitor.csv", "outcomes": outcomes} | source,
        "policy": {"epsilon-budget": 10.0, "delta": 0.001},
    }
    study = tomllib.loads((STUDIES / "heart-disease.toml").read_text(encoding="utf-8")) | {"schema": schema or SCHEMA}
    settings = SiteSettings.parse(raw, origin="test")
    return check_site(Site(settings=settings, folder=folder, study=Study.parse(study, origin="test")))


def test_a_complete_series_is_ok(tmp_path: Path) -> None:
    report = check(tmp_path, measured())

    assert (report.problems, report.warnings) == ((), ())
    assert [(each.name, each.steps, each.missing) for each in report.channels] == [
        ("pulse", 84, 0),
        ("temperature", 84, 0),
    ]


def test_missing_steps_and_values_out_of_range_are_counted_by_channel(tmp_path: Path) -> None:
    rows = measured()
    rows.loc[0, "value"] = 19.0
    rows.loc[4, "value"] = 251.0
    report = check(tmp_path, rows[(rows["channel"] == "pulse") | (rows["patient"] != "p7")].drop(index=8))

    pulse, temperature = report.channels
    assert (pulse.missing, pulse.below, pulse.above, pulse.unmeasured_windows) == (1, 1, 1, 0)
    assert (temperature.missing, temperature.below, temperature.unmeasured_windows) == (2, 0, 1)
    assert report.is_ok


def test_a_gap_is_a_problem_where_the_study_refuses_it(tmp_path: Path) -> None:
    report = check(tmp_path, measured().drop(index=0), schema={**SCHEMA, "missing": "refuse"})

    assert [problem.detail for problem in report.problems] == [
        "feature 'pulse': 1 values are NaN or infinite; expected finite numbers"
    ]


def test_a_channel_in_another_unit_or_under_another_name_is_doubted(tmp_path: Path) -> None:
    rows = measured()
    rows.loc[rows["channel"] == "pulse", "value"] /= 60
    rows.loc[rows["channel"] == "temperature", "channel"] = "Temp"

    source: dict[str, Any] = {"channels": {"puls": {"name": "p"}}, "ignore-others": True}
    report = check(tmp_path, rows, **source)

    assert report.warnings == (
        "source.channels.'puls' is no channel of this study; it changes nothing here",
        "monitor.csv: 84 measurements of channels that the study does not name are left out",
        "channel 'pulse': 84 of 84 measured steps are outside [20, 250] 1/min; look at the unit (factor, offset)",
        "channel 'temperature': never measured; look at its name in the file (source.channels.'temperature'.name)",
    )


def test_a_report_shows_counts_and_no_value_of_a_patient(tmp_path: Path) -> None:
    rows = measured()
    rows.loc[0, "value"] = 4711.5
    report, console = check(tmp_path, rows), Console(file=StringIO(), width=120)

    print_check(report, console)

    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Channels over all windows" in told
    assert "20 to 250 1/min" in told
    assert not [word for word in ("4711", "p41") if word in told + json.dumps(asdict(report))]


def test_another_kind_of_source_is_a_problem(tmp_path: Path) -> None:
    report = check(tmp_path, measured(), kind="table", train="stays.csv", fold="fold", label="died")

    assert [problem.detail for problem in report.problems] == [
        "source.kind='table'; the study needs schema.kind='series'"
    ]
