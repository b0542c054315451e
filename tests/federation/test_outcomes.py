"""Studies of every outcome from the hospitals' files to the page that a study lead reads.

What the coordinator adds up equals what one would measure on all hospitals' patients together.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_diabetes
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score, roc_auc_score
from table_hospitals import run_at_hospitals, run_at_sources

from fl_client.preprocessing import Examples, prepare
from fl_client.settings import read_site_settings
from fl_client.site import Site
from fl_contract.errors import QuorumError
from fl_contract.metrics import merge_measurements
from fl_contract.study import Study
from fl_contract.study_file import load_study
from fl_server.report import write_report
from fl_server.summary import read_evaluations, summarise

REST = """
[training]
optimizer = "Adam"
learning-rate = 0.02
batch-size = 16
local-steps = 20
[strategy]
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


def study_text(schema: str, model: str, *, num_rounds: int) -> str:
    head = f'name = "tried"\ntitle = "Tried"\nnum-rounds = {num_rounds}\nseed = 7\n'
    return f"{head}[schema]\n{schema}\n[model]\n{model}{REST}"


def folds(num_rows: int) -> NDArray[np.str_]:
    return np.where(np.arange(num_rows) % 3 == 0, "test", "train")


def held_out(folder: Path, num_sites: int) -> tuple[NDArray[np.float64], list[Examples], Study]:
    """The final model's outputs for all hospitals' held-out records together, and these records by hospital."""
    study = load_study("tried", directory=folder / "studies")
    examples = []
    for number in range(num_sites):
        place = folder / f"hospital-{number}"
        site = Site(settings=read_site_settings(place / "site.toml"), folder=place, study=study)
        examples.append(prepare(site.load_records().test, study.data_schema))
    model = study.build_model()
    model.load_state_dict(load_file(folder / "run" / "federated" / "model.safetensors"))
    model.eval()
    with torch.no_grad():
        outputs = model(torch.cat([each.inputs for each in examples]))
    return outputs.double().numpy(), examples, study


def pooled_figures(folder: Path) -> list[dict[str, float]]:
    """Of each round."""
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line)["pooled"]["figures"] for line in lines]


# Regression: scikit-learn's diabetes at two hospitals, one of which measures the target in tenths.

DIABETES = load_diabetes(scaled=False)
TARGET = """
kind = "table"
task = "regression"
label = "progression"
target = { unit = "points", minimum = 25.0, maximum = 346.0 }
"""


def diabetes_study(num_rounds: int = 4) -> str:
    features = [
        f'{{ name = "{name}", minimum = {float(column.min())}, maximum = {float(column.max())} }}'
        for name, column in zip(DIABETES.feature_names, DIABETES.data.T, strict=True)
    ]
    schema = f"{TARGET}\nfeatures = [{', '.join(features)}]"
    return study_text(schema, 'kind = "mlp"\nhidden-size = 16', num_rounds=num_rounds)


def diabetes_hospitals() -> list[pd.DataFrame]:
    table = pd.DataFrame(DIABETES.data, columns=DIABETES.feature_names).assign(y=DIABETES.target / 10)
    table["fold"] = folds(len(table))
    return [table.iloc[:150], table.iloc[150:]]


DIABETES_SOURCE = 'label = "y"\n[source.columns.progression]\nfactor = 10.0'


def test_numbers_are_learned_and_their_errors_are_those_of_the_pooled_patients(tmp_path: Path) -> None:
    folder = run_at_hospitals(tmp_path, diabetes_study(), diabetes_hospitals(), source=DIABETES_SOURCE, policy="")

    figures = pooled_figures(folder)
    assert figures[-1]["r2"] > 0.3
    assert figures[-1]["mae"] < figures[0]["mae"]
    outputs, examples, _ = held_out(tmp_path, 2)
    predicted = 185.5 + 160.5 * outputs[:, 0]  # the middle of 25 and 346, and half of what is between them
    true = 185.5 + 160.5 * torch.cat([each.labels for each in examples]).double().numpy()
    assert true == pytest.approx(DIABETES.target[np.r_[:150:3, 150:442][folds(442)[np.r_[:150:3, 150:442]] == "test"]])
    merged = merge_measurements(read_evaluations(folder / "evaluation.json").values()).figures()
    assert merged["r2"] == pytest.approx(r2_score(true, predicted), abs=1e-6)
    assert merged["mae"] == pytest.approx(mean_absolute_error(true, predicted), rel=1e-6)
    assert merged["rmse"] == pytest.approx(mean_squared_error(true, predicted) ** 0.5, rel=1e-6)
    summary = summarise(folder.parent)
    assert summary["measure"] == "r2"
    page = write_report(folder.parent).read_text()
    assert "reaches an R² of" in page
    assert "mean absolute error" in page
    assert "points" in page
    assert "AUROC" not in page


# Multi-label: two findings that the features show, at hospitals that call one of them by another name.

FINDINGS = """
kind = "table"
task = "multi-label"
label = "findings"
classes = ["oedema", "effusion"]
features = [{ name = "a", minimum = -3.0, maximum = 3.0 }, { name = "b", minimum = -3.0, maximum = 3.0 }]
"""
FINDINGS_SOURCE = '[source.columns]\neffusion = { column = "pleura", codes = { no = 0.0, yes = 1.0 } }'


def findings_hospital(number: int, num_patients: int = 90) -> pd.DataFrame:
    generator = np.random.default_rng(number)
    features = generator.normal(size=(num_patients, 2))
    has = features + 0.5 * generator.normal(size=features.shape) > (0.3, 0.8)
    return pd.DataFrame({
        "a": features[:, 0],
        "b": features[:, 1],
        "oedema": has[:, 0].astype(int),
        "pleura": np.where(has[:, 1], "yes", "no"),
        "fold": folds(num_patients),
    })  # fmt: skip


def test_findings_are_learned_and_measured_as_of_the_pooled_patients(tmp_path: Path) -> None:
    study = study_text(FINDINGS, 'kind = "logistic"', num_rounds=4).replace("0.02", "0.2")
    tables = [findings_hospital(1), findings_hospital(2)]

    folder = run_at_hospitals(tmp_path, study, tables, source=FINDINGS_SOURCE, policy="")

    assert pooled_figures(folder)[-1]["auroc"] > 0.9
    outputs, examples, _ = held_out(tmp_path, 2)
    true = torch.cat([each.labels for each in examples]).numpy()
    merged = merge_measurements(read_evaluations(folder / "evaluation.json").values()).figures()
    assert merged["auroc"] == pytest.approx(roc_auc_score(true, outputs, average="macro"), abs=0.01)
    assert merged["accuracy"] == pytest.approx(((outputs > 0) == (true > 0)).mean())
    page = write_report(folder.parent).read_text()
    assert "mean over the findings" in page
    assert "the share of pairs of a patient and a finding that were predicted rightly" in page


# Segmentation: bright discs on dark ground, with masks of another coding at each hospital.

DISCS = """
kind = "image"
task = "segmentation"
label = "lesions"
classes = ["background", "lesion"]
height = 16
width = 16
maximum = 255.0
"""


def write_discs(place: Path, number: int, lesion_value: int, num_images: int = 36) -> str:
    """Images, masks and index of a hospital; its source's settings."""
    generator, rows = np.random.default_rng(number), []
    place.mkdir()
    for image in range(num_images):
        centre, radius = generator.uniform(4, 12, size=2), generator.uniform(2, 5)
        inside = np.hypot(*(np.indices((16, 16)) - centre[:, None, None])) < radius
        pixels = np.clip(np.where(inside, 170, 80) + generator.normal(0, 20, (16, 16)), 0, 255)
        for kind, content in (("image", pixels), ("mask", inside * lesion_value)):
            Image.fromarray(content.astype(np.uint8)).save(place / f"{kind}-{image}.png")
        rows.append({"file": f"image-{image}.png", "mask": f"mask-{image}.png"})
    pd.DataFrame(rows).assign(fold=folds(num_images)).to_csv(place / "index.csv", index=False)
    values = "" if lesion_value == 1 else f'mask-values = {{ 0 = "background", {lesion_value} = "lesion" }}'
    return f'kind = "image-folder"\nfolder = "."\n[source.index]\ntable = "index.csv"\nmask = "mask"\n{values}'


def test_masks_are_learned_and_their_dice_is_that_of_all_pixels(tmp_path: Path) -> None:
    sources = [write_discs(tmp_path / f"hospital-{number}", number, value) for number, value in enumerate((255, 1))]
    study = study_text(DISCS, 'kind = "unet"\nwidth = 8\nnum-levels = 2', num_rounds=3)

    folder = run_at_sources(tmp_path, study, sources)

    figures = pooled_figures(folder)
    assert figures[-1]["dice"] > 0.85
    outputs, examples, _ = held_out(tmp_path, 2)
    predicted, true = outputs[:, 0] > 0, torch.cat([each.labels for each in examples]).numpy() == 1
    merged = merge_measurements(read_evaluations(folder / "evaluation.json").values()).figures()
    assert merged["dice"] == pytest.approx(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
    assert merged["pixel_accuracy"] == pytest.approx((predicted == true).mean())
    page = write_report(folder.parent).read_text()
    assert "reaches a Dice of" in page
    assert "AUROC" not in page


# Link prediction: who is whose neighbour in a row, by two relations.

ENTITIES = [f"e{number}" for number in range(12)]
FACTS = f"""
kind = "triples"
task = "link-prediction"
label = "tail"
classes = {json.dumps(ENTITIES)}
relations = ["next", "before"]
"""


def neighbours(number: int) -> pd.DataFrame:
    """Every neighbour many times over: a fact that is held out was also trained on."""
    generator = np.random.default_rng(number)
    heads, steps = generator.integers(1, 11, 120), generator.choice([1, -1], 120)
    return pd.DataFrame({
        "subject": [ENTITIES[head] for head in heads],
        "relation": np.where(steps == 1, "next", "before"),
        "object": [ENTITIES[tail] for tail in heads + steps],
        "fold": folds(120),
    })  # fmt: skip


FACTS_SOURCE = 'label = "object"\n[source.columns.head]\ncolumn = "subject"'


def test_links_are_learned_and_their_ranks_are_those_of_all_facts(tmp_path: Path) -> None:
    study = study_text(FACTS, 'kind = "transe"\nembedding-size = 8', num_rounds=6).replace("0.02", "0.1")

    folder = run_at_hospitals(tmp_path, study, [neighbours(1), neighbours(2)], source=FACTS_SOURCE, policy="")

    figures = pooled_figures(folder)
    assert figures[-1]["mrr"] > 0.8
    outputs, examples, _ = held_out(tmp_path, 2)
    tails = torch.cat([each.labels for each in examples]).numpy()
    ranks = 1 + (outputs > outputs[np.arange(len(tails)), tails][:, None]).sum(axis=1)
    merged = merge_measurements(read_evaluations(folder / "evaluation.json").values()).figures()
    assert merged["mrr"] == pytest.approx((1 / ranks).mean(), rel=1e-6)
    assert (merged["hits_at_1"], merged["hits_at_10"]) == ((ranks <= 1).mean(), (ranks <= 10).mean())
    page = write_report(folder.parent).read_text()
    assert "reaches an MRR of" in page
    assert "AUROC" not in page


Change = Callable[[pd.DataFrame], pd.DataFrame]


def refused(tmp_path: Path, study: str, tables: Sequence[pd.DataFrame], source: str) -> str:
    with pytest.raises(QuorumError) as caught:
        run_at_hospitals(tmp_path, study, tables, source=source, policy="")
    log = (tmp_path / "hospital-0" / "site.log").read_text()
    return f"{caught.value}\n{log}"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"y": np.nan}, "invalid-data"),
        ({"y": np.inf}, "invalid-data"),
        ({"y": "much"}, "invalid-data"),
        ({"y": 12.5}, "one-class"),
        ({"y": 1e6}, "one-class"),  # all taken as the upper bound
    ],
    ids=["missing", "infinite", "a text", "all the same", "all above"],
)
def test_targets_that_break_a_rule_refuse_the_study(tmp_path: Path, change: dict[str, Any], rule: str) -> None:
    first, second = diabetes_hospitals()

    told = refused(tmp_path, diabetes_study(1), [first.assign(**change), second], DIABETES_SOURCE)

    assert f"hospital-0: {rule}" in told
    assert "much" not in told


@pytest.mark.parametrize(
    ("change", "source", "rule"),
    [
        ({"oedema": 2}, FINDINGS_SOURCE, "finding 'oedema': 90 records hold neither 0 nor 1"),
        ({"oedema": np.nan}, FINDINGS_SOURCE, "finding 'oedema': 90 records hold neither 0 nor 1"),
        ({"pleura": "maybe"}, FINDINGS_SOURCE, "column 'pleura' of feature 'effusion': 90 rows hold a text or code"),
        ({"oedema": 1, "pleura": "no"}, FINDINGS_SOURCE, "each finding is the same in every training record"),
        ({}, "", "columns ['effusion'] are missing"),
        ({}, f'label = "oedema"\n{FINDINGS_SOURCE}', "source.label='oedema'; expected none, each has a column"),
    ],
    ids=["a 2", "missing", "no code", "all the same", "no column", "a label"],
)
def test_findings_that_break_a_rule_refuse_the_study(
    tmp_path: Path, change: dict[str, Any], source: str, rule: str
) -> None:
    study = study_text(FINDINGS, 'kind = "logistic"', num_rounds=1)

    told = refused(tmp_path, study, [findings_hospital(1).assign(**change), findings_hospital(2)], source)

    assert rule in told
