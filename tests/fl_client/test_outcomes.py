"""Outcomes of every task: the rules that they keep, how they are counted, and the labels that they become."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from schemas import schema_of

from fl_client.data.outcome_columns import place_outcome
from fl_client.data.records import Records
from fl_client.data.table import TableBuilder
from fl_client.data_check import check_site
from fl_client.data_rules import schema_refusals, training_refusals
from fl_client.outcomes import RULES, outcome_rules
from fl_client.preprocessing import prepare
from fl_client.settings import SiteSettings
from fl_client.site import Site
from fl_client.source_settings import TableSourceSettings
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.schema import Schema, TripleSchema
from fl_contract.study import Study
from fl_contract.study_file import STUDIES
from fl_contract.tasks import TASKS

FINDINGS = schema_of((2,), task="multi-label", classes=["oedema", "effusion"])
PRESSURE = schema_of((2,), task="regression", target={"unit": "mmHg", "minimum": 50.0, "maximum": 250.0})
LESION = schema_of((1, 4, 5), task="segmentation", classes=["background", "lesion"])
TRIPLES = TripleSchema.parse(
    {
        "kind": "triples",
        "task": "link-prediction",
        "label": "tail",
        "classes": ["aspirin", "pain", "fever"],
        "relations": ["treats", "causes"],
    },
    origin="test",
)


def rows(outcomes: Any = None, *, labels: Any = None, count: int = 4) -> Records:
    """Rows of a table with two features."""
    return Records(
        features=np.full((count, 2), 0.5),
        feature_names=("x0", "x1"),
        labels=np.array(labels if labels is not None else [""] * count, dtype=np.str_),
        outcomes=None if outcomes is None else np.array(outcomes, dtype=np.float64).reshape(count, -1),
    )


def images(masks: Any) -> Records:
    return Records(
        features=np.zeros((2, 4, 5)),
        feature_names=(),
        labels=np.array(["", ""]),
        masks=None if masks is None else np.array(masks, dtype=np.uint8),
    )


def facts(*triples: tuple[float, float, str]) -> Records:
    return Records(
        features=np.array([triple[:2] for triple in triples]),
        feature_names=("head", "relation"),
        labels=np.array([tail for *_, tail in triples]),
    )


def details(schema: Schema, *folds: Records) -> list[str]:
    refusals = schema_refusals(schema, *folds)
    assert {refusal.code for refusal in refusals} <= {RefusalCode.INVALID_DATA}
    return [refusal.detail for refusal in refusals]


def test_every_task_has_its_rules() -> None:
    assert RULES.keys() == TASKS.keys()


def test_findings_become_a_row_of_zeros_and_ones() -> None:
    records = rows([[0, 1], [1, 1], [0, 0], [0, 1]])

    labels = prepare(records, FINDINGS).labels

    assert (labels.dtype, labels.tolist()) == (torch.float32, [[0, 1], [1, 1], [0, 0], [0, 1]])
    assert outcome_rules(FINDINGS).counts(records) == [1, 3]
    assert details(FINDINGS, records) == []


def test_a_target_is_scaled_by_its_range_and_taken_as_the_bound_outside() -> None:
    records = rows([50.0, 200.0, 400.0, -7.0])

    labels = prepare(records, PRESSURE).labels

    # The range is 200 mmHg long and its middle is 150.
    assert (labels.dtype, labels.tolist()) == (torch.float32, [-1.0, 0.5, 1.0, -1.0])
    rules = outcome_rules(PRESSURE)
    assert (rules.title, rules.groups) == ("Target label in mmHg", ("below 50", "50 to 250", "above 250"))
    assert rules.counts(records) == [1, 2, 1]


def test_masks_become_labels_as_they_are() -> None:
    masks = np.arange(40).reshape(2, 4, 5) % 2
    masks[1] = 0

    labels = prepare(images(masks), LESION).labels

    assert (labels.dtype, labels.tolist()) == (torch.uint8, masks.tolist())
    assert outcome_rules(LESION).counts(images(masks)) == [2, 1]


def test_tails_become_positions_and_facts_are_counted_by_relation() -> None:
    records = facts((0, 0, "pain"), (0, 0, "fever"), (1, 1, "fever"))

    examples = prepare(records, TRIPLES)

    assert examples.inputs.tolist() == [[0, 0], [0, 0], [1, 1]]
    assert (examples.labels.dtype, examples.labels.tolist()) == (torch.int64, [1, 2, 2])
    rules = outcome_rules(TRIPLES)
    assert dict(zip(rules.groups, rules.counts(records), strict=True)) == {"treats": 2, "causes": 1}


@pytest.mark.parametrize(
    ("schema", "records", "expected"),
    [
        (FINDINGS, rows(), ["the source has no numbers for the findings ['oedema', 'effusion']"]),
        (FINDINGS, rows([1, 0, 1, 0]), ["the source has no numbers for the findings ['oedema', 'effusion']"]),
        (
            FINDINGS,
            rows([[0.5, 1], [2, 0], [np.nan, np.inf], [1, 1]]),
            ["finding 'oedema': 3 records hold neither 0 nor 1", "finding 'effusion': 1 records hold neither 0 nor 1"],
        ),
        (PRESSURE, rows(), ["the source has no numbers for the target 'label'"]),
        (PRESSURE, rows([np.nan, np.inf, -np.inf, 120]), ["target 'label': 3 values are missing, NaN or infinite"]),
        (LESION, images(None), ["the source has no masks"]),
        (LESION, images(np.zeros((2, 5, 4))), ["masks are [5, 4]; expected [4, 5]"]),
        (LESION, images(np.full((2, 4, 5), 2)), ["masks: 2 records have pixels of no class"]),
        (TRIPLES, facts((0, 0, "pain"), (0, 1, "ache")), ["column 'tail': 1 records name an entity that the study"]),
        (
            TRIPLES,
            facts((3, 0, "pain"), (np.nan, 2, "pain")),
            ["column 'head': 2 records name nothing", "column 'relation': 1 records name nothing"],
        ),
    ],
)
def test_an_outcome_that_breaks_a_rule_is_counted(schema: Schema, records: Records, expected: list[str]) -> None:
    found = details(schema, records)

    assert len(found) == len(expected)
    assert all(detail.startswith(start) for detail, start in zip(found, expected, strict=True)), found
    with pytest.raises(RefusalError):
        prepare(records, schema)


@pytest.mark.parametrize(
    ("schema", "alike", "different", "detail"),
    [
        (FINDINGS, rows([[0, 1]] * 4), rows([[0, 1]] * 3 + [[0, 0]]), "each finding is the same in every training"),
        (PRESSURE, rows([120] * 4), rows([120, 121, 120, 120]), "every training record has the same label"),
        (PRESSURE, rows([300, 250, 251, 999]), rows([300, 250, 249, 999]), "every training record has the same label"),
        (
            LESION,
            images(np.zeros((2, 4, 5))),
            images(np.eye(20)[:2].reshape(2, 4, 5)),
            "every pixel of every training mask is 'background'",
        ),
        (
            TRIPLES,
            facts((0, 0, "pain"), (2, 0, "pain")),
            facts((0, 0, "pain"), (2, 0, "fever")),
            "every training record has the same tail",
        ),
    ],
)
def test_outcomes_that_are_all_alike_are_refused_unless_the_policy_allows_them(
    schema: Schema, alike: Records, different: Records, detail: str
) -> None:
    (refusal,) = training_refusals(schema, alike, min_examples=1, allow_one_class=False)

    assert refusal.code is RefusalCode.ONE_CLASS
    assert refusal.detail.startswith(detail)
    assert refusal.detail.endswith("or policy.allow-one-class = true")
    assert training_refusals(schema, alike, min_examples=1, allow_one_class=True) == []
    assert training_refusals(schema, different, min_examples=1, allow_one_class=False) == []


@pytest.mark.parametrize(
    ("schema", "source", "detail"),
    [
        (FINDINGS, {"label": "oedema"}, "source.label='oedema'; expected none, each has a column"),
        (PRESSURE, {}, "source.label=None; expected the column of the outcome, for a study of task 'regression'"),
        (schema_of((2,)), {}, "source.label=None; expected the column of the outcome"),
        (PRESSURE, {"label": "bp", "time": "days"}, "source.time='days'; expected none"),
        (
            PRESSURE,
            {"label": "bp", "columns": {"label": {"column": "rr"}}},
            "expected one of them to name the target's",
        ),
        (
            TRIPLES,
            {"label": "tail", "time": "years"},
            "source.time='years'; expected none for a study of task 'link-prediction'",
        ),
    ],
)
def test_columns_that_do_not_fit_the_task_are_refused(schema: Schema, source: dict[str, Any], detail: str) -> None:
    settings = TableSourceSettings.parse({"kind": "table", "train": "a", "test": "b"} | source, origin="test")

    with pytest.raises(RefusalError) as caught:
        place_outcome(settings, schema)

    assert caught.value.code is RefusalCode.INVALID_DATA
    assert detail in caught.value.detail


def test_names_of_a_graph_that_are_the_same_number_are_refused() -> None:
    schema = TRIPLES.model_copy(update={"classes": ("1", "01")})
    settings = TableSourceSettings.parse({"kind": "table", "train": "a", "test": "b", "label": "tail"}, origin="test")

    with pytest.raises(RefusalError, match="feature 'head': the study has two categories that are the same number"):
        TableBuilder(settings, schema.features)


def test_a_check_counts_targets_by_the_range_and_doubts_the_unit(tmp_path: Path) -> None:
    pressures = np.append(np.linspace(60, 200, 30), np.full(12, 1800.0))  # some in another unit
    table = pd.DataFrame({"x0": np.linspace(0, 1, 42), "x1": np.linspace(1, 0, 42), "bp": pressures})
    table["fold"] = np.where(np.arange(42) % 3 == 0, "test", "train")
    table.to_csv(tmp_path / "patients.csv", index=False)
    source = {"kind": "table", "train": "patients.csv", "fold": "fold", "label": "bp", "columns": {"label": {}}}
    policy = {"epsilon-budget": 0.0, "delta": 1e-3, "require-privacy": False, "measurements": "exact"}
    settings = SiteSettings.parse(
        {"name": "st-anna", "declared-examples": 28, "source": source, "policy": policy}, origin="test"
    )
    raw = tomllib.loads((STUDIES / "heart-disease.toml").read_text(encoding="utf-8"))
    changed = {"schema": PRESSURE.model_dump(by_alias=True), "model": {"kind": "mlp"}}
    study = Study.parse(raw | changed | {"privacy": raw["privacy"] | {"mechanism": "none"}}, origin="test")

    report = check_site(Site(settings=settings, folder=tmp_path, study=study))

    assert report.is_ok, report.problems
    assert report.train is not None
    assert report.train.classes == {"below 50": 0, "50 to 250": 20, "above 250": 8}
    assert report.counted_by == "Target label in mmHg"
    assert report.warnings == ("the target: 12 of 42 records are outside its range; look at the unit (factor, offset)",)
