"""The coordinator's commands: what they print, what they write, and exit codes that tell the truth."""

import io
import json
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

import fl_server.live as live
from fl_server.cli import app
from fl_server.simulation import find_study

QUICK = ["--set", "num-rounds=2", "--set", "privacy.steps-per-round=2"]


def _run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, list(arguments))


@pytest.mark.parametrize("command", [[], ["simulate"], ["report"], ["runs"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    result = _run(*command, "--help")

    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["heart"], "study='heart'; expected one of ['breast-cancer', 'digits']"),
        (["/nowhere/heart.toml"], "study='heart'; expected one of [] in nowhere/"),
        (["--set", "num-rounds=0"], "num-rounds=0; expected"),
        (["--set", "nim-rounds=3"], "nim-rounds=3 is not a known key"),
        (["--set", "num-rounds"], "expected key=value"),
        (["--resume"], "--resume needs --out"),
    ],
)
def test_a_wrong_setting_exits_with_2_and_says_what_is_wrong(arguments: list[str], message: str) -> None:
    result = _run("simulate", "--dry-run", *arguments)

    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"

    result = _run("simulate", "--dry-run", "--out", str(out))

    assert result.exit_code == 0
    assert "31 parameters" in result.output
    assert "ε at most 8" in result.output
    assert not out.exists()


def test_a_study_outside_our_folder_is_found_by_its_path() -> None:
    assert find_study("here/lungs.toml") == ("lungs", Path("here"))


def test_a_simulation_compares_all_ways_to_train_and_writes_summary_and_report(tmp_path: Path) -> None:
    out = tmp_path / "run"

    result = _run("simulate", "--out", str(out), *QUICK)

    assert result.exit_code == 0, result.output
    assert "round   2 of 2" in result.output
    assert "Was it worth joining?" in result.output
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {"study", "rounds", "seconds", "variants", "epsilon", "delta"}
    assert set(summary["variants"]) == {"local", "federated", "private", "pooled"}
    for figures in summary["variants"].values():
        assert set(figures) == {"auroc", "accuracy"}
        assert sorted(figures["auroc"]["sites"]) == [f"hospital-{number}" for number in range(1, 5)]
        assert 0.5 < figures["auroc"]["pooled"] <= 1
    assert all(0 < epsilon <= 8 for epsilon in summary["epsilon"].values())
    assert (out / "report.html").stat().st_size > 10_000
    assert "report.html" in result.output


def test_the_comparisons_of_a_finished_run_are_not_run_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    _run("simulate", "--out", str(out), "--no-baselines", *QUICK)

    result = _run("simulate", "--out", str(out), "--resume", *QUICK)

    assert result.exit_code == 0, result.output
    assert len((out / "private" / "rounds.jsonl").read_text().splitlines()) == 2
    assert (out / "pooled" / "run.json").exists()


def test_a_comparison_that_fails_is_left_out_and_named(tmp_path: Path) -> None:
    few = ["--set", "simulation.alpha=0.2", "--set", "seed=1", "--set", "federation.min-sites=1"]

    result = _run("simulate", "--out", str(tmp_path), *QUICK, *few)

    assert result.exit_code == 0, result.output
    assert "left out." in result.output
    assert "one-class" in result.output or "too-few-patients" in result.output


def test_a_run_that_fails_exits_with_1_and_names_the_reason(tmp_path: Path) -> None:
    result = _run("simulate", "--out", str(tmp_path), *QUICK, "--set", "simulation.epsilon-budget=0.0")

    assert result.exit_code == 1
    assert "budget-exhausted" in result.output
    assert json.loads((tmp_path / "private" / "run.json").read_text())["status"] == "failed"


def test_a_quorum_that_the_virtual_hospitals_cannot_reach_is_refused_at_once(tmp_path: Path) -> None:
    result = _run("simulate", "--out", str(tmp_path / "run"), "--set", "federation.min-sites=5")

    assert result.exit_code == 2
    assert "federation.min-sites=5; expected at most the 4" in result.output.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_flower_takes_studies_from_the_bundle_only(tmp_path: Path) -> None:
    study = tmp_path / "digits.toml"
    study.write_text((Path(__file__).parents[2] / "studies" / "digits.toml").read_text())

    result = _run("simulate", str(study), "--engine", "flower", "--out", str(tmp_path / "run"))

    assert result.exit_code == 2
    assert "copy the file into" in result.output.replace("\n", " ")


def test_runs_are_listed_and_a_report_can_be_written_again(tmp_path: Path) -> None:
    out = tmp_path / "one"
    _run("simulate", "--out", str(out), "--no-baselines", *QUICK)
    (out / "report.html").unlink()

    listed = _run("runs", str(tmp_path))
    written = _run("report", str(out))

    assert listed.exit_code == written.exit_code == 0
    assert "2 of 2" in listed.output
    assert (out / "report.html").exists()


@pytest.mark.parametrize("command", ["runs", "report"])
def test_a_folder_without_a_run_is_named(tmp_path: Path, command: str) -> None:
    result = _run(command, str(tmp_path))

    assert result.exit_code == 1
    assert "no run" in result.output.replace("\n", " ")


def test_the_live_table_shows_hospitals_progress_and_who_is_absent() -> None:
    site = {"num_examples": 80, "test_examples": 33, "loss": 0.2, "auroc": 0.97, "epsilon": 1.47}
    pooled = {"loss": 0.21, "accuracy": 0.9, "auroc": 0.969}
    rounds = [
        {
            "round": 4,
            "seconds": 2.0,
            "sites": {"north": site},
            "pooled": pooled,
            "missing": {"south": {"code": "budget-exhausted", "reason": ""}},
        }
    ]
    header = {
        "title": "T",
        "num_rounds": 10,
        "status": "running",
        "refused": {},
        "settings": {"privacy": {"epsilon": 8.0}},
    }
    console = Console(width=100, record=True, file=io.StringIO())

    console.print(live.render_run(header, rounds))

    text = console.export_text()
    assert "round 4 of 10 · pooled AUROC 0.969 · loss 0.210 · about 12 s left" in text
    assert "1.470 of 8" in text
    assert "budget-exhausted" in text
