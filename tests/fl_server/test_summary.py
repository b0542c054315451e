"""The summary holds the figures that follow from a run folder's files, and says which file is damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measurements import of_bins, of_classes

from fl_contract.errors import RunError
from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.intervals import wilson
from fl_server.summary import (
    RunFolder,
    natural_order,
    read_evaluations,
    read_variants,
    subtract,
    summarise,
    write_evaluations,
    write_summary,
)


def report(**fields: Any) -> dict[str, Any]:
    """What one hospital did in one round."""
    empty = dict.fromkeys(("num_examples", "test_examples", "loss", "epsilon", "delta", "steps"))
    return empty | {"figures": {}, "bytes_down": 10, "bytes_up": 10, "seconds": 0.1} | fields


def write_variant(
    out: Path,
    name: str,
    evaluations: dict[str, Evaluation] | None = None,
    *,
    rounds: list[dict[str, dict[str, Any]]] | None = None,
    mechanism: str = "none",
    **header: Any,
) -> Path:
    """A variant's folder with the given hospitals' reports in each round."""
    folder = out / name
    folder.mkdir(parents=True)
    privacy = {
        "mechanism": mechanism,
        "unit": "record",
        "epsilon": 8.0,
        "delta": 0.001,
        "clip-norm": 1.0,
        "sampling-rate": 0.5,
        "steps-per-round": 2,
    }
    run = {
        "study": "tiny",
        "title": "Tiny",
        "variant": name,
        "run": "ab",
        "engine": "local",
        "status": "completed",
        "reason": "",
        "started": "2026-01-01T00:00:00+00:00",
        "finished": None,
        "seconds": 2.5,
        "seed": 1,
        "num_rounds": 3,
        "num_parameters": 2,
        "versions": {},
        "sites": {},
        "refused": {},
        "settings": {"privacy": privacy},
    }
    (folder / "run.json").write_text(json.dumps(run | header))
    lines = [
        {"round": number, "seconds": 1.0, "sites": sites, "pooled": None, "missing": {}}
        for number, sites in enumerate(rounds or [], start=1)
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if evaluations is not None:
        write_evaluations(folder / "evaluation.json", evaluations)
    return folder


def test_an_evaluation_survives_its_file_unchanged(tmp_path: Path) -> None:
    written = of_bins([40, 50], [10, 45], loss_sum=1.25)

    path = write_evaluations(tmp_path / "evaluation.json", {"a": written})
    read = read_evaluations(path)

    assert list(read) == ["a"]
    evaluation = of_classes(read["a"])
    assert (evaluation.num_examples, evaluation.loss_sum, evaluation.num_correct) == (4, 1.25, 3)
    np.testing.assert_array_equal(evaluation.scores.counts, written.scores.counts)
    assert evaluation.scores.counts.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "EOF"),
        ('{"a": {"num-examples": 1}}', "kind=None; expected one of"),
        ('{"a": {"kind": "classes", "num-examples": 1, "score-counts": [1, 0]}}', "score-counts has 2 entries"),
        ('{"a": {"kind": "classes", "num-examples": 1}}', "score-counts=None; expected list"),
        ('{"a": {"kind": "noised", "noised-cells": [1, 0]}}', "noise-scale=None; expected float"),
    ],
)
def test_a_damaged_evaluation_is_named_with_its_rule(tmp_path: Path, text: str, rule: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(text)

    with pytest.raises(RunError, match=rf"evaluation\.json cannot be read; .*{rule}"):
        read_evaluations(path)


def test_local_figures_are_each_hospitals_own_and_pooled_is_the_mean_over_models(tmp_path: Path) -> None:
    write_variant(
        tmp_path,
        "local-a",
        {"a": of_bins([40, 50], [10, 45]), "b": of_bins([20], [20])},
    )
    write_variant(
        tmp_path,
        "local-b",
        {"a": of_bins([30, 30], [30, 30]), "b": of_bins([60], [5])},
    )

    local = summarise(tmp_path)["variants"]["local"]

    # a's model on a: of the 4 pairs only (40, 45) is wrong: 3/4. b's model on b: its one pair is right: 1.
    assert local["auroc"]["sites"] == {"a": 0.75, "b": 1.0}
    # a's model on all: cases 40, 50, 20 beat 2, 3 and 1.5 of the controls 10, 45, 20: 6.5 of 9 pairs.
    # b's model on all: cases 30, 30, 60 beat 2, 2 and 3 of the controls 30, 30, 5: 7 of 9. Mean 13.5 / 18.
    assert local["auroc"]["pooled"] == pytest.approx(0.75)
    assert local["accuracy"]["sites"] == {"a": 0.75, "b": 1.0}
    assert local["accuracy"]["pooled"] == pytest.approx(4 / 6)  # 3 + 1 of 6 and 2 + 2 of 6
    assert local["accuracy"]["interval"] == pytest.approx(wilson(4, 6))  # the mean of two that are alike


def test_a_joint_model_is_measured_by_hospital_and_on_all_patients_together(tmp_path: Path) -> None:
    evaluations = {"a": of_bins([40, 50], [10, 45]), "b": of_bins([20], [20])}
    write_variant(tmp_path, "federated", evaluations, rounds=[{}, {}])

    summary = summarise(tmp_path)

    figures = summary["variants"]["federated"]
    assert list(summary["variants"]) == ["federated"]
    assert list(figures) == [
        "auroc", "auprc", "accuracy", "sensitivity", "specificity", "brier", "calibration_error",
    ]  # fmt: skip
    assert all(list(each) == ["pooled", "interval", "sites", "site_intervals"] for each in figures.values())
    assert figures["auroc"]["pooled"] == pytest.approx(6.5 / 9)
    assert figures["auroc"]["sites"] == {"a": 0.75, "b": 0.5}
    assert figures["accuracy"]["sites"] == {"a": 0.75, "b": 0.5}
    assert figures["accuracy"]["interval"] == pytest.approx(wilson(4, 6))
    assert figures["accuracy"]["site_intervals"] == {
        "a": pytest.approx(wilson(3, 4)), "b": pytest.approx(wilson(1, 2)),
    }  # fmt: skip
    assert figures["sensitivity"]["pooled"] == pytest.approx(2 / 3)  # 40 and 50 of the cases are above bin 32, 20 not
    assert figures["specificity"]["sites"] == {"a": 0.5, "b": 1.0}
    assert (summary["study"], summary["rounds"], summary["epsilon"], summary["delta"]) == ("tiny", 2, {}, {})


def test_the_private_run_gives_the_rounds_and_all_runs_together_the_seconds(tmp_path: Path) -> None:
    write_variant(tmp_path, "private", rounds=[{}, {}, {}], mechanism="dp-sgd")
    write_variant(tmp_path, "federated", rounds=[{}])
    write_variant(tmp_path, "local-a", status="failed")

    summary = summarise(tmp_path)

    assert summary["rounds"] == 3
    assert summary["seconds"] == 7.5
    assert summary["variants"] == {}


def test_a_hospital_that_left_keeps_its_last_spend(tmp_path: Path) -> None:
    spent = [
        {"a": report(epsilon=1.0, delta=0.001), "b": report(epsilon=2.0, delta=0.01)},
        {"a": report(epsilon=1.5, delta=0.001), "b": report()},
        {"a": report(epsilon=1.9, delta=0.001)},
    ]
    write_variant(tmp_path, "private", rounds=spent, mechanism="dp-sgd", status="failed")

    summary = summarise(tmp_path)

    assert summary["epsilon"] == {"a": 1.9, "b": 2.0}
    assert summary["delta"] == {"a": 0.001, "b": 0.01}


def test_without_a_mechanism_no_epsilon_is_claimed(tmp_path: Path) -> None:
    write_variant(tmp_path, "private", rounds=[{"a": report(epsilon=1.0, delta=0.001)}], mechanism="none")

    summary = summarise(tmp_path)

    assert summary["epsilon"] == {}
    assert summary["delta"] == {}


def test_an_undefined_figure_becomes_null(tmp_path: Path) -> None:
    write_variant(tmp_path, "federated", {"a": of_bins([40], [])})
    write_variant(tmp_path, "local-a", {"a": of_bins([40], [])})
    write_variant(tmp_path, "private", rounds=[{"a": report(epsilon=float("inf"), delta=0.001)}], mechanism="dp-sgd")

    path = write_summary(tmp_path)

    summary = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert path == tmp_path / "summary.json"
    undefined = {"pooled": None, "interval": None, "sites": {"a": None}, "site_intervals": {"a": None}}
    assert summary["variants"]["federated"]["auroc"] == undefined
    assert summary["variants"]["local"]["auroc"] == undefined
    assert summary["epsilon"] == {"a": None}


def test_a_failed_variant_and_a_missing_local_model_are_left_out(tmp_path: Path) -> None:
    both = {"a": of_bins([40], [10]), "b": of_bins([20], [20])}
    write_variant(tmp_path, "private", both, mechanism="dp-sgd", status="failed")
    write_variant(tmp_path, "pooled")
    write_variant(tmp_path, "local-a", both)
    write_variant(tmp_path, "local-b", both, status="failed")
    write_variant(tmp_path, "local-c", {"a": both["a"]})

    variants = summarise(tmp_path)["variants"]

    assert list(variants) == ["local"]
    assert variants["local"]["accuracy"]["sites"] == {"a": 1.0}
    assert variants["local"]["accuracy"]["pooled"] == pytest.approx((3 / 4 + 2 / 2) / 2)


def test_a_last_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    folder = write_variant(tmp_path, "private", rounds=[{}, {}], mechanism="dp-sgd")
    with (folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "sec')

    variants = read_variants(tmp_path)

    assert [each.round for each in variants["private"].rounds] == [1, 2]


def test_a_run_that_failed_before_its_first_round_can_be_read(tmp_path: Path) -> None:
    folder = write_variant(tmp_path, "private", mechanism="dp-sgd", status="failed")
    (folder / "rounds.jsonl").unlink()

    assert summarise(tmp_path)["rounds"] == 0


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.json", "[]", r"private/run\.json"),
        ("rounds.jsonl", '{"round": 1}\n', r"private/rounds\.jsonl cannot be read; seconds: Field required"),
    ],
)
def test_a_damaged_file_is_named_with_the_key_and_the_rule(tmp_path: Path, file: str, text: str, message: str) -> None:
    folder = write_variant(tmp_path, "private", mechanism="dp-sgd")
    (folder / file).write_text(text)

    with pytest.raises(RunError, match=message):
        summarise(tmp_path)


def test_a_run_without_privacy_terms_is_refused(tmp_path: Path) -> None:
    write_variant(tmp_path, "private", settings={"privacy": {"mechanism": "dp-sgd"}})

    with pytest.raises(RunError, match=r"run\.json cannot be read; unit: Field required"):
        summarise(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    write_variant(tmp_path, "something-else")

    with pytest.raises(RunError, match="no run found; expected a folder such as private/"):
        summarise(tmp_path)


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["hospital-10", "b", "hospital-2", "aa", "hospital-2"]

    assert natural_order(names) == ["aa", "b", "hospital-2", "hospital-10"]


def test_a_difference_with_an_undefined_figure_is_undefined() -> None:
    assert subtract(0.75, 0.5) == 0.25
    assert subtract(None, 0.5) is None
    assert subtract(0.5, None) is None


def test_the_folder_knows_every_hospital_that_any_file_names(tmp_path: Path) -> None:
    absence = {"code": "one-class", "reason": "Same label."}
    measured = {"a": of_bins([40], [10])}
    write_variant(tmp_path, "private", measured, rounds=[{"b": report()}], mechanism="dp-sgd", refused={"c": absence})
    write_variant(tmp_path, "local-d", measured)

    folder = RunFolder.read(tmp_path)

    assert folder.sites == ["a", "b", "c", "d"]
    assert (folder.joint, folder.main_kind) == ("private", "private")
    assert folder.change("a") is None  # there is no model of a alone
    assert folder.change() == 0.0
