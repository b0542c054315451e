"""Sums of every outcome merge into what one would measure on all records together, and no sums that cannot be pass."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schemas import schema_of
from sklearn.metrics import (
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from torch import Tensor

from fl_contract.metrics import MEASURES, measurement_from_json, merge_measurements
from fl_contract.metrics.measurement import Measurement
from fl_contract.schema import TripleSchema
from fl_contract.tasks import task_of
from fl_contract.tasks.link_prediction import ranks_of
from fl_contract.tasks.task import Task

FINDINGS = task_of(schema_of((1,), task="multi-label", classes=["a", "b", "c"]))
NUMBER = task_of(schema_of((1,), task="regression", target={"unit": "mmHg", "minimum": 1000.0, "maximum": 1080.0}))
LESION = task_of(schema_of((1, 4, 5), task="segmentation", classes=["none", "lesion"]))
ORGANS = task_of(schema_of((1, 4, 5), task="segmentation", classes=["none", "liver", "spleen"]))
TRIPLES = TripleSchema.parse(
    {
        "kind": "triples",
        "task": "link-prediction",
        "label": "tail",
        "classes": [f"e{number}" for number in range(15)],
        "relations": ["treats"],
    },
    origin="test",
)
LINKS = task_of(TRIPLES)
TASKS = {"findings": FINDINGS, "number": NUMBER, "lesion": LESION, "organs": ORGANS, "links": LINKS}


def records_of(name: str, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs and labels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 2 * torch.randn(count, *shape, generator=generator)

    def choose(most: int, *shape: int) -> Tensor:
        return torch.randint(0, most, (count, *shape), generator=generator)

    match name:
        case "findings":
            return draw(3), choose(2, 3).float()
        case "number":
            return draw(1), draw().clamp(-1, 1)
        case "lesion":
            return draw(1, 4, 5), choose(2, 4, 5).to(torch.uint8)
        case "organs":
            return draw(3, 4, 5), choose(3, 4, 5).to(torch.uint8)
        case _:
            return draw(15), choose(15)


def pooled(name: str, *counts: int) -> tuple[Measurement, Tensor, Tensor]:
    """Merged from hospitals with so many records, and all records."""
    parts = [records_of(name, count, seed) for seed, count in enumerate(counts)]
    merged = merge_measurements([TASKS[name].measure(outputs, labels) for outputs, labels in parts])
    return merged, torch.cat([outputs for outputs, _ in parts]), torch.cat([labels for _, labels in parts])


@pytest.mark.parametrize("name", TASKS)
def test_merged_figures_are_those_of_all_records_in_any_order(name: str) -> None:
    merged, outputs, labels = pooled(name, 7, 1, 30)
    parts = [TASKS[name].measure(*records_of(name, count, seed)) for seed, count in enumerate((7, 1, 30))]

    whole, backwards = TASKS[name].measure(outputs, labels), merge_measurements(parts[::-1])

    assert merged.num_examples == 38
    assert merged.figures() == pytest.approx(whole.figures(), rel=1e-12)
    assert merged.to_numbers() == backwards.to_numbers()
    assert merged.loss_sum == pytest.approx(float(TASKS[name].losses(outputs, labels).double().sum()), rel=1e-6)
    assert set(merged.figures()) <= set(MEASURES)


@pytest.mark.parametrize("name", TASKS)
def test_each_records_loss_and_gradient_are_its_own(name: str) -> None:
    outputs, labels = records_of(name, 5)
    outputs.requires_grad_()
    changed = outputs.detach().clone()
    changed[3] = 1 - 2 * changed[3]

    losses = TASKS[name].losses(outputs, labels)
    (gradient,) = torch.autograd.grad(losses[2], outputs)

    assert losses.shape == (5,)
    assert (losses >= 0).all()
    assert (TASKS[name].losses(changed, labels) == losses).tolist() == [True, True, True, False, True]
    assert gradient[2].abs().sum() > 0
    assert gradient[[0, 1, 3, 4]].abs().sum() == 0
    assert TASKS[name].losses(outputs[:0], labels[:0]).shape == (0,)


@pytest.mark.parametrize("name", TASKS)
def test_a_measurement_survives_its_file_and_the_studys_own_check(name: str) -> None:
    sent = TASKS[name].measure(*records_of(name, 9))

    read = measurement_from_json(sent.to_json())

    assert read.to_numbers() == sent.to_numbers()
    TASKS[name].check(read)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("other", TASKS)
def test_a_measurement_of_another_outcome_is_refused(name: str, other: str) -> None:
    if name == other:
        return
    measured = TASKS[other].measure(*records_of(other, 9))

    with pytest.raises(ValueError, match="expected"):
        TASKS[name].check(measured)


@pytest.mark.parametrize("name", TASKS)
def test_every_number_is_needed_and_checked_for_its_type(name: str) -> None:
    numbers = TASKS[name].measure(*records_of(name, 9)).to_numbers()

    for key in numbers:
        for wrong in (None, "1", True, float("nan"), [1.5]):
            with pytest.raises(ValueError, match=key):
                TASKS[name].MEASUREMENT.from_numbers(numbers | {key: wrong})


@pytest.mark.parametrize(
    ("name", "key", "value", "rule"),
    [
        ("findings", "num-correct", 28, "0 to 27 pairs of a patient and a finding"),
        ("findings", "num-examples", 8, "expected the same"),
        ("number", "absolute-error-sum", -1.0, "expected at least 0"),
        ("number", "absolute-error-sum", 1e6, "contradict each other"),
        ("number", "target-sum", 9e9, "contradict each other"),
        ("number", "target-square-sum", -1.0, "expected at least 0"),
        ("lesion", "intersection-pixels", [181, 0], "intersection-pixels are out of range"),
        ("lesion", "true-pixels", [181, 0], "intersection-pixels are out of range"),
        ("lesion", "true-pixels", [200, 200], "expected the same number of all classes together"),
        ("lesion", "predicted-pixels", [60, 60, 60], "expected the same, 2 or more"),
        ("links", "hits-at-1", 10, "expected 0 to all facts"),
        ("links", "hits-at-10", 0, "expected 0 to all facts|contradicts the hits"),
        ("links", "reciprocal-rank-sum", 0.001, "contradicts the hits"),
        ("links", "reciprocal-rank-sum", 9.5, "contradicts the hits"),
    ],
)
def test_sums_that_cannot_be_are_refused(name: str, key: str, value: Any, rule: str) -> None:
    numbers = TASKS[name].measure(*records_of(name, 9)).to_numbers()

    with pytest.raises(ValueError, match=rule):
        TASKS[name].MEASUREMENT.from_numbers(numbers | {key: value})


@pytest.mark.parametrize(
    ("task", "name", "rule"),
    [
        (task_of(schema_of((1,), task="multi-label", classes=["a", "b"])), "findings", "of 3 findings; expected 2"),
        (ORGANS, "lesion", "pixels of 2 classes; expected 3"),
        (task_of(schema_of((1, 9, 5), task="segmentation", classes=["a", "b"])), "lesion", "180 pixels of 9 images"),
        (
            task_of(schema_of((1,), task="regression", target={"minimum": 0.0, "maximum": 1.0})),
            "number",
            "study's range",
        ),
    ],
)
def test_sums_of_another_study_are_refused(task: Task, name: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        task.check(TASKS[name].measure(*records_of(name, 9)))


def test_the_loss_of_findings_is_the_mean_over_them_and_their_figures_are_scikit_learns() -> None:
    merged, outputs, labels = pooled("findings", 300, 500)

    losses = FINDINGS.losses(outputs, labels)

    chances, true = outputs.double().sigmoid().numpy(), labels.numpy()
    assert losses.mean().item() == pytest.approx(np.mean([log_loss(true[:, i], chances[:, i]) for i in range(3)]), 1e-5)
    figures = merged.figures()
    assert figures["auroc"] == pytest.approx(roc_auc_score(true, chances, average="macro"), abs=0.005)
    assert figures["accuracy"] == ((chances > 0.5) == true).mean()


def test_the_loss_of_a_number_is_half_its_squared_error_and_its_figures_are_scikit_learns() -> None:
    merged, outputs, labels = pooled("number", 300, 500)
    # The range is 1000 to 1080 mmHg, so 0 is 1040 and 1 is 40 mmHg more.
    predicted, true = 1040 + 40 * outputs[:, 0].double().numpy(), 1040 + 40 * labels.double().numpy()

    assert NUMBER.losses(outputs, labels)[:5].tolist() == pytest.approx(
        [float((output - label) ** 2 / 2) for output, label in zip(outputs[:5, 0], labels[:5], strict=True)]
    )
    assert merged.figures() == pytest.approx(
        {
            "r2": r2_score(true, predicted),
            "mae": mean_absolute_error(true, predicted),
            "rmse": root_mean_squared_error(true, predicted),
        },
        rel=1e-9,
    )
    assert merged.loss == pytest.approx(mean_squared_error(true, predicted) / 40**2 / 2, rel=1e-9)


@given(level=st.floats(-1, 1), count=st.integers(1, 40))
def test_targets_that_are_all_the_same_have_no_r2(level: float, count: int) -> None:
    measured = NUMBER.measure(torch.zeros(count, 1), torch.full((count,), level))

    assert np.isnan(measured.figures()["r2"])
    assert measured.figures()["mae"] == pytest.approx(40 * abs(float(np.float32(level))))


@pytest.mark.parametrize("name", ["lesion", "organs"])
def test_dice_is_that_of_all_pixels_together(name: str) -> None:
    merged, outputs, labels = pooled(name, 3, 8)
    predicted = outputs[:, 0] > 0 if name == "lesion" else outputs.argmax(dim=1)

    figures = merged.figures()

    by_class = f1_score(labels.flatten(), predicted.flatten(), average=None)  # of each pixel, which is Dice
    assert figures["dice"] == pytest.approx(np.mean(by_class[1:]))
    assert figures["pixel_accuracy"] == pytest.approx((predicted == labels).double().mean().item())


def test_classes_that_are_nowhere_are_left_out_of_dice() -> None:
    outputs, labels = torch.full((2, 3, 4, 5), -9.0), torch.zeros(2, 4, 5, dtype=torch.uint8)
    outputs[:, 0] = 9.0
    nothing = ORGANS.measure(outputs, labels).figures()
    labels[0, 0, :2] = 1
    outputs[0, 1, 0, 0] = 99.0

    # One of two pixels of the liver is found: 2 * 1 / (1 + 2). There is no spleen, and none is found.
    assert ORGANS.measure(outputs, labels).figures()["dice"] == pytest.approx(2 / 3)
    assert np.isnan(nothing["dice"])
    assert nothing["pixel_accuracy"] == 1.0


def test_the_loss_of_a_mask_by_hand() -> None:
    task = task_of(schema_of((1, 4, 4), task="segmentation", classes=["none", "lesion"]))
    labels = torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, 0] = 1

    (loss,) = task.losses(torch.zeros(1, 1, 4, 4), labels).tolist()

    # Even odds cost log 2 a pixel. Of 16 probabilities of 1/2, 4 are on the lesion: (2 * 2 + 1) / (8 + 4 + 1).
    assert loss == pytest.approx(np.log(2) + 1 - 5 / 13)


@pytest.mark.parametrize(
    ("outputs", "tail", "rank"),
    [
        ([3.0, 2.0, 1.0], 0, 1.0),
        ([3.0, 2.0, 1.0], 2, 3.0),
        ([1.0, 1.0, 1.0], 0, 2.0),
        ([2.0, 2.0, 1.0], 1, 1.5),
    ],
    ids=["best", "worst", "all the same", "two the same"],
)
def test_entities_with_one_score_share_the_mean_of_their_ranks(outputs: list[float], tail: int, rank: float) -> None:
    assert ranks_of(torch.tensor([outputs]), torch.tensor([tail])).tolist() == [rank]


def test_ranks_are_added_up_by_hand() -> None:
    outputs = torch.arange(15.0).flip(0).repeat(4, 1)  # entity 0 is best, entity 14 worst

    figures = LINKS.measure(outputs, torch.tensor([0, 1, 9, 10])).figures()

    # Ranks 1, 2, 10 and 11.
    assert figures == pytest.approx({"mrr": (1 + 1 / 2 + 1 / 10 + 1 / 11) / 4, "hits_at_1": 0.25, "hits_at_10": 0.75})
