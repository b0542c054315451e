"""A study of survival from the hospitals' tables to the page that a study lead reads."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from table_hospitals import run_at_hospitals

from fl_contract.errors import QuorumError, SettingError
from fl_contract.metrics.survival import SurvivalEvaluation
from fl_contract.study_file import load_study
from fl_server.report import write_report
from fl_server.summary import read_evaluations, summarise

STUDY = """
name = "tried"
title = "Tried"
num-rounds = 3
seed = 7
[schema]
kind = "table"
task = "survival"
label = "death"
time-unit = "days"
features = [{ name = "dose", minimum = -3.0, maximum = 3.0 }, { name = "noise", minimum = -3.0, maximum = 3.0 }]
[model]
kind = "cox"
[training]
learning-rate = 0.3
batch-size = 16
local-steps = 7
[strategy]
name = "fedadam"
[federation]
min-sites = 2
[stopping]
[privacy]
mechanism = "none"
epsilon = 1.0
delta = 1e-3
[simulation]
num-sites = 2
alpha = 1.0
test-fraction = 0.3
epsilon-budget = 0.0
"""
SOURCE = 'label = "died"\ntime = "followed"'


def hospital(number: int, num_patients: int = 80) -> pd.DataFrame:
    """The more of the dose, the earlier the death."""
    generator = np.random.default_rng(number)
    dose = generator.normal(size=num_patients)
    death, end = generator.exponential(np.exp(-2 * dose)), generator.exponential(2.0, num_patients)
    return pd.DataFrame({
        "dose": dose,
        "noise": generator.normal(size=num_patients),
        "died": (death < end).astype(int),
        "followed": np.minimum(death, end),
        "fold": np.where(np.arange(num_patients) % 3 == 0, "test", "train"),
    })  # fmt: skip


def test_risks_rank_the_held_out_patients_and_the_files_say_so(tmp_path: Path) -> None:
    folder = run_at_hospitals(tmp_path, STUDY, [hospital(1), hospital(2)], source=SOURCE, policy="")

    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    last = rounds[-1]
    assert last["pooled"]["figures"]["c_index"] > 0.8
    measured = read_evaluations(folder / "evaluation.json")
    pairs = [each.pairs for each in measured.values() if isinstance(each, SurvivalEvaluation)]
    assert last["pooled"]["figures"]["c_index"] == pytest.approx(
        sum(each.concordant + each.tied / 2 for each in pairs) / sum(each.comparable for each in pairs)
    )
    summary = summarise(folder.parent)
    assert summary["measure"] == "c_index"
    assert summary["variants"]["federated"]["c_index"]["pooled"] == last["pooled"]["figures"]["c_index"]
    page = write_report(folder.parent).read_text()
    assert "C-index" in page
    assert "AUROC" not in page


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("followed", np.nan, "invalid-data"),
        ("followed", -1.0, "invalid-data"),
        ("died", 2, "invalid-data"),
        ("died", 0, "one-class"),
    ],
)
def test_outcomes_that_break_a_rule_refuse_the_study(tmp_path: Path, column: str, value: float, code: str) -> None:
    wrong = hospital(1)
    wrong[column] = value

    with pytest.raises(QuorumError, match=f"hospital-0: {code}"):
        run_at_hospitals(tmp_path, STUDY, [wrong, hospital(2)], source=SOURCE, policy="")


def test_a_source_without_times_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match="invalid-data"):
        run_at_hospitals(tmp_path, STUDY, [hospital(1), hospital(2)], source='label = "died"', policy="")


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ('mechanism = "none"', 'mechanism = "dp-sgd"', "no patient's gradient can be clipped alone"),
        ('kind = "cox"', 'kind = "logistic"', "model.kind='logistic' and schema.task='survival'; this model is for"),
        ('time-unit = "days"\n', "", "time-unit=''; expected one for task = 'survival'"),
    ],
)
def test_a_study_that_cannot_be_is_refused_with_the_rule(tmp_path: Path, old: str, new: str, rule: str) -> None:
    assert old in STUDY
    (tmp_path / "tried.toml").write_text(STUDY.replace(old, new))

    with pytest.raises(SettingError, match=rule):
        load_study("tried", directory=tmp_path)
