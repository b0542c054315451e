"""`fl-client check` ends with 0, 1 or 2, fits a terminal, and its JSON is the whole report."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from fl_client.cli import app
from fl_client.data.records import Records, SiteRecords
from fl_contract.study_file import STUDIES

EditRecords = Callable[[Callable[[SiteRecords], SiteRecords]], None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a check on a terminal of some columns."""
    monkeypatch.setenv("NO_COLOR", "1")

    def invoke(*words: object, columns: int = 100) -> Result:
        monkeypatch.setenv("COLUMNS", str(columns))
        return CliRunner().invoke(app, ["check", *map(str, words)])

    return invoke


@pytest.fixture
def spoiled(edit_records: EditRecords) -> None:
    """Every hospital has a gap, an infinity, and values outside the range."""

    def spoil(records: Records) -> Records:
        records.features[0, :3] = np.nan, np.inf, -4711.25
        return records

    edit_records(lambda site: SiteRecords(train=spoil(site.train), test=site.test))


def test_a_hospital_that_could_take_part_ends_with_zero_and_ok(
    run: Callable[..., Result], write_site_file: Callable[..., Path]
) -> None:
    path = write_site_file()

    result = run(path, "--study", "breast-cancer")

    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "OK"
    assert result.stdout.startswith("st-anna for breast-cancer: read, not trained; nothing charged or sent")
    assert "The hospital's policy admits the study." in result.stdout
    assert "To put right" not in result.stdout
    assert [name.name for name in path.parent.iterdir()] == ["site.toml"]


@pytest.mark.usefixtures("spoiled")
def test_a_hospital_that_could_not_ends_with_one_and_a_numbered_list(
    run: Callable[..., Result], write_site_file: Callable[..., Path]
) -> None:
    result = run(write_site_file(delta=1e-7), "--study", "breast-cancer", columns=200)

    assert result.exit_code == 1
    assert "OK" not in result.stdout
    assert "admits" not in result.stdout
    ends = result.stdout.partition("To put right\n")[2].splitlines()
    assert [line.split(";")[0] for line in ends] == [
        "1. privacy.delta=0.001",
        "2. feature 'mean radius': 1 values are NaN or infinite",
        "3. feature 'mean texture': 1 values are NaN or infinite",
    ]
    assert ends[0].rstrip().endswith("(policy)")
    assert "4711" not in result.stdout
    assert "infinite" in result.stdout.partition("Features over all records")[2].splitlines()[2]


@pytest.mark.usefixtures("spoiled")
@pytest.mark.parametrize("columns", [80, 100])
def test_every_line_fits_the_terminal(
    run: Callable[..., Result], write_site_file: Callable[..., Path], columns: int
) -> None:
    result = run(write_site_file(delta=1e-7), "--study", "breast-cancer", columns=columns)

    assert max(map(len, result.stdout.splitlines())) <= columns


@pytest.mark.usefixtures("spoiled")
def test_json_is_the_whole_report_with_its_verdict(
    run: Callable[..., Result], write_site_file: Callable[..., Path]
) -> None:
    result = run(write_site_file(), "--study", "breast-cancer", "--json")

    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert told["ok"] is False
    assert [problem["code"] for problem in told["problems"]] == ["invalid-data", "invalid-data"]
    assert (told["features"][0]["missing"], told["features"][1]["infinite"], told["features"][2]["below"]) == (1, 1, 1)


def test_images_are_shown_with_their_size(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(
        'name = "st-anna"\ndeclared-examples = 310\n[source]\nkind = "built-in"\ndataset = "digits"\nparts = [0]\n'
        "num-parts = 4\nalpha = 100.0\ntest-fraction = 0.3\nseed = 7\n[policy]\nepsilon-budget = 10.0\ndelta = 0.001\n"
        'unit = "record"\n'
    )

    result = run(tmp_path / "site.toml", "--study", "digits")

    assert result.exit_code == 0
    assert "8 × 8 × 1" in result.stdout
    assert "not said" in result.stdout


def test_categories_are_shown_with_the_records_of_each(run: Callable[..., Result], tmp_path: Path) -> None:
    pain = 'features = [{ name = "pain", categories = ["[typical]", "none"] }]'
    study = (
        (STUDIES / "heart-disease.toml").read_text(encoding="utf-8").replace('name = "heart-disease"', 'name = "pain"')
    )
    (tmp_path / "pain.toml").write_text(re.sub(r"features = \[.*?\n\]", pain, study, flags=re.DOTALL))
    rows = ["[typical],1,train"] * 9 + ["none,0,train"] * 9 + [",0,test"] * 2 + ["none,1,test"] * 10
    (tmp_path / "patients.csv").write_text("\n".join(["pain,disease,fold", *rows]))
    (tmp_path / "site.toml").write_text(
        'name = "st-anna"\ndeclared-examples = 20\n[source]\nkind = "table"\ntrain = "patients.csv"\n'
        'fold = "fold"\nlabel = "disease"\n[policy]\nepsilon-budget = 10.0\ndelta = 0.001\n'
    )

    result = run(tmp_path / "site.toml", "--study", "pain", "--studies", tmp_path)

    table = result.stdout.partition("Categories over all records")[2].partition("The hospital")[0]
    shown = [re.sub(r"[│\s]+", " ", line).strip() for line in table.splitlines() if line.startswith("│")]
    assert shown == ["pain [typical] 9 (30%)", "none 19 (63%)", "missing 2 (7%)"]


@pytest.mark.parametrize(
    ("text", "study", "message"),
    [
        ("name = 7", "breast-cancer", "site.toml: name=7; expected a text"),
        ("name = ", "breast-cancer", "is not valid TOML"),
        (None, "breast-cancer", "cannot be read (No such file or directory)"),
        ("", "brest-cancer", "study='brest-cancer'; expected one of"),
    ],
)
def test_a_wrong_setting_ends_with_two(
    run: Callable[..., Result],
    write_site_file: Callable[..., Path],
    text: str | None,
    study: str,
    message: str,
) -> None:
    path = write_site_file()
    if text is None:
        path.unlink()
    elif text:
        path.write_text(text)

    result = run(path, "--study", study)

    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_study_of_another_folder_can_be_checked(
    run: Callable[..., Result], write_site_file: Callable[..., Path], tmp_path: Path
) -> None:
    result = run(write_site_file(), "--study", "mine", "--studies", tmp_path)

    assert result.exit_code == 2
    assert f"study='mine'; expected one of [] in {tmp_path.name}/" in result.stderr


def write_table(folder: Path, *, sex: list[str], labels: list[str]) -> Path:
    lines = [f"{a},{b},{fold}" for a, b, fold in zip(sex, labels, ["train"] * 3 + ["test"], strict=True)]
    (folder / "patients.csv").write_text("\n".join(["sex,outcome,fold", *lines]))
    (folder / "site.toml").write_text(
        'name = "st-anna"\ndeclared-examples = 10\n[source]\nkind = "table"\ntrain = "patients.csv"\nfold = "fold"\n'
        'label = "outcome"\n[policy]\nepsilon-budget = 10.0\ndelta = 0.0001\n'
    )
    study = (STUDIES / "heart-disease.toml").read_text(encoding="utf-8")
    features = 'features = [{ name = "sex", minimum = 0.0, maximum = 1.0 }]\n'
    study = re.sub(r"features = \[.*?^\]\n", features, study, flags=re.DOTALL | re.MULTILINE)
    (folder / "mine.toml").write_text(study.replace('name = "heart-disease"', 'name = "mine"'))
    return folder / "site.toml"


def test_records_of_an_unknown_class_have_a_row_of_their_own(run: Callable[..., Result], tmp_path: Path) -> None:
    path = write_table(tmp_path, sex=["1", "0", "1", "0"], labels=["1", "ill [4711]", "0", "0"])

    result = run(path, "--study", "mine", "--studies", tmp_path)

    assert result.exit_code == 1
    assert re.search(r"none of these +│ +1 \(33%\) +│ +0 \(0%\)", result.stdout)
    assert "4711" not in result.stdout


def test_records_that_cannot_be_read_leave_only_the_list(run: Callable[..., Result], tmp_path: Path) -> None:
    path = write_table(tmp_path, sex=["m", "f", "m", "[4711]"], labels=["1", "1", "0", "0"])

    result = run(path, "--study", "mine", "--studies", tmp_path)

    assert result.exit_code == 1
    assert "1. column 'sex' of feature 'sex': 4 rows hold a text or code" in result.stdout
    assert "Records" not in result.stdout
    assert "No record is dropped" not in result.stdout
    assert "4711" not in result.stdout
