"""A hospital's long file becomes windows in the study's channels, units and steps; what is left out is counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fl_client.data.records import SiteRecords
from fl_client.data.series import SeriesSource
from fl_client.source_settings import SeriesSourceSettings
from fl_contract.errors import RefusalError, SettingError
from fl_contract.schema import SeriesSchema

NAN = np.nan
STAYS = "patient,outcome,fold\na,ill,train\nb,well,train\nc,well,test\n"
OUTCOMES = {"kind": "table", "train": "stays.csv", "fold": "fold", "label": "outcome", "patient": "patient"}


def schema_of(**changes: Any) -> SeriesSchema:
    channels = [{"name": name, "minimum": 0.0, "maximum": 300.0} for name in ("pulse", "temperature")]
    raw = {"kind": "series", "label": "outcome", "classes": ["well", "ill"], "channels": channels, "length": 3}
    return SeriesSchema.parse(raw | {"step-unit": "hours"} | changes, origin="test")


def load(folder: Path, rows: str | pd.DataFrame, schema: Any = None, **changes: Any) -> SiteRecords:
    """Three stays, with ill and well training patients and one held out."""
    (folder / "stays.csv").write_text(STAYS)
    raw: dict[str, Any] = {"kind": "series", "file": "monitor.csv", "outcomes": OUTCOMES}
    if isinstance(rows, str):
        (folder / "monitor.csv").write_text("patient,time,channel,value\n" + rows)
    else:
        raw["file"] = "monitor.parquet"
        rows.to_parquet(folder / "monitor.parquet", index=False)
    settings = SeriesSourceSettings.parse(raw | changes, origin="test")
    return SeriesSource(settings, folder=folder, schema=schema or schema_of()).load()


def refusal(folder: Path, rows: str, **changes: Any) -> str:
    with pytest.raises(RefusalError) as caught:
        load(folder, rows, **changes)
    return caught.value.detail


EVERYBODY = "a,0,pulse,60\nb,0,pulse,70\nc,0,pulse,80\n"


def test_the_hospital_s_own_names_and_units_become_the_study_s(tmp_path: Path) -> None:
    rows = "a,0,HR,60\na,1,HR,-1\na,1,TF,98.6\nb,0,HR,70\nc,0,HR,80\n"
    channels: dict[str, Any] = {"pulse": {"name": "HR", "missing": [-1]}}
    channels["temperature"] = {"name": "TF", "factor": 0.5, "offset": 1.0}

    site = load(tmp_path, rows, channels=channels)

    # 98.6 * 0.5 + 1
    assert np.array_equal(site.train.features[0], [[60, NAN, NAN], [NAN, 50.3, NAN]], equal_nan=True)
    assert site.train.labels.tolist() == ["ill", "well"]
    assert site.train.patients is not None
    assert site.train.patients.tolist() == ["a", "b"]
    assert site.test.features[0, 0, 0] == 80
    assert site.notes == ("monitor.csv: 1 rows have no value; they count as not measured",)


def test_a_step_is_the_study_s_and_times_are_brought_to_its_unit(tmp_path: Path) -> None:
    # Minutes: 0.1 hours a step, so that 17.9 is in the third and 18 in the fourth, which is after the window.
    rows = EVERYBODY + "a,6,pulse,1\na,17.9,pulse,2\na,18,pulse,3\n"

    site = load(tmp_path, rows, schema_of(step=0.1), **{"time-factor": 1 / 60})

    assert site.train.features[0, 0].tolist() == [60, 1, 2]
    assert site.notes == ("monitor.csv: 1 measurements lie outside the windows and are left out",)


@pytest.mark.parametrize("is_parquet", [False, True])
def test_timestamps_count_from_each_patient_s_first_measurement(tmp_path: Path, is_parquet: bool) -> None:
    rows = (
        "a,2024-02-28T22:30:00,pulse,60\na,2024-02-29T00:30:00,pulse,62\na,2024-02-29T00:29:59,pulse,61\n"
        "b,1999-12-31T23:59:59+01:00,pulse,70\nb,2000-01-01T00:59:59+01:00,pulse,71\nc,2024-01-01,pulse,80\n"
    )
    table: str | pd.DataFrame = rows
    if is_parquet:
        table = pd.DataFrame(
            [line.split(",") for line in rows.split()], columns=["patient", "time", "channel", "value"]
        )
        table["time"] = pd.to_datetime(table["time"], format="ISO8601", utc=True)
        table["value"] = table["value"].astype(float)

    site = load(tmp_path, table, times="timestamps")

    assert site.train.features[:, 0].tolist() == [[60, 61, 62], [70, 71, pytest.approx(NAN, nan_ok=True)]]


def test_timestamps_need_steps_in_a_unit_of_time(tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match=r"step-unit='beats' and source\.times='timestamps'"):
        load(tmp_path, EVERYBODY, schema_of(**{"step-unit": "beats"}), times="timestamps")


@pytest.mark.parametrize(
    ("times", "written", "rule"),
    [("timestamps", "zero", "no timestamp of ISO 8601"), ("numbers", "2024-01-01T00:00:00", "no number that can be")],
)
def test_a_time_of_another_kind_is_refused(tmp_path: Path, times: str, written: str, rule: str) -> None:
    assert f"3 rows hold {rule}" in refusal(tmp_path, EVERYBODY.replace(",0,", f",{written},"), times=times)


def test_other_channels_are_refused_unless_they_are_to_be_left_out(tmp_path: Path) -> None:
    rows = EVERYBODY + "a,0,SpO2,97\nb,0,SpO2,98\n"

    assert "2 rows are of channels that the study does not name" in refusal(tmp_path, rows)
    site = load(tmp_path, rows, **{"ignore-others": True})

    assert site.notes == ("monitor.csv: 2 measurements of channels that the study does not name are left out",)
    assert len(site.train) == 2


def test_patients_without_outcome_and_outcomes_without_measurement_are_counted(tmp_path: Path) -> None:
    site = load(tmp_path, "a,0,pulse,60\nc,0,pulse,80\nz,0,pulse,1\nz,1,pulse,1\nb,-2,pulse,5\n")

    assert site.train.patients is not None
    assert site.train.patients.tolist() == ["a"]
    assert site.notes == (
        "monitor.csv: 1 patients with measurements have no outcome and are left out",
        "monitor.csv: 1 measurements lie outside the windows and are left out",
        "monitor.csv: 1 patients with an outcome have no measurement and are left out",
    )


def test_every_window_of_a_patient_has_the_patient_s_outcome(tmp_path: Path) -> None:
    rows = EVERYBODY + "".join(f"b,{hour},pulse,{hour}\n" for hour in range(1, 9))

    site = load(tmp_path, rows, windows="all", stride=3)

    # Nine hours of b are three windows.
    assert site.train.labels.tolist() == ["ill", "well", "well", "well"]
    assert site.train.patients is not None
    assert site.train.patients.tolist() == ["a", "b", "b", "b"]
    assert site.train.features[3, 0].tolist() == [6, 7, 8]


def test_rows_in_any_order_and_over_several_chunks_give_the_same_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        f"{patient},{hour},{name},{hour + 3}"
        for patient in "abc"
        for hour in range(3)
        for name in ("pulse", "temperature", "pulse")
    ]
    whole = load(tmp_path, "\n".join(lines))

    monkeypatch.setattr("fl_client.data.table_file.CHUNK_ROWS", 4)
    shuffled = load(tmp_path, "\n".join(np.random.default_rng(3).permutation(lines)))

    assert np.array_equal(whole.train.features, shuffled.train.features)
    assert np.array_equal(whole.test.features, shuffled.test.features)


def test_two_channels_of_one_name_are_refused(tmp_path: Path) -> None:
    assert "two channels of the study one name" in refusal(
        tmp_path, EVERYBODY, channels={"pulse": {"name": "temperature"}}
    )


def test_a_stride_beyond_a_window_is_refused(tmp_path: Path) -> None:
    assert "source.stride=4; expected at most" in refusal(tmp_path, EVERYBODY, windows="all", stride=4)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"stride": 2}, "stride=2; expected none for windows = 'first'"),
        ({"times": "timestamps", "time-factor": 2.0}, "time-factor=2.0; expected none"),
        ({"channels": {"pulse": {"factor": 0.0}}}, "factor=0; expected another number"),
        (
            {"outcomes": {key: value for key, value in OUTCOMES.items() if key != "patient"}},
            "outcomes.patient is missing",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], rule: str) -> None:
    raw: dict[str, Any] = {"kind": "series", "file": "m.csv", "outcomes": OUTCOMES}

    with pytest.raises(SettingError, match=rule):
        SeriesSourceSettings.parse(raw | changes, origin="test")
