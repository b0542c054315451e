"""Losses are one number a patient, independent of the others; classes and scores follow their definitions."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from measurements import of_classes
from pydantic import ValidationError
from schemas import THREE_CLASSES, TWO_CLASSES, schema_of
from torch import Tensor

from fl_contract.tasks import task_of
from fl_contract.tasks.classification import class_logits, loss_per_example, num_outputs


def outputs_of(batch: int, classes: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return 3 * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels_of(batch: int, classes: int) -> Tensor:
    return torch.randint(0, max(2, classes), (batch,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("num_classes", "expected"), [(2, 1), (3, 3), (10, 10)])
def test_two_classes_need_one_output_and_more_one_each(num_classes: int, expected: int) -> None:
    assert num_outputs(num_classes) == expected


@pytest.mark.parametrize("batch", [0, 1, 6])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_loss_is_one_number_a_patient_and_torchs_own(batch: int, classes: int) -> None:
    outputs, labels = outputs_of(batch, classes), labels_of(batch, classes)

    losses = loss_per_example(outputs, labels)

    assert losses.shape == (batch,)
    for row, label, loss in zip(outputs, labels, losses, strict=True):
        expected = (
            F.binary_cross_entropy_with_logits(row[0], label.double()) if classes == 1 else F.cross_entropy(row, label)
        )
        assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_losses_by_hand() -> None:
    # Even odds cost log 2; a logit of log 3 is a probability of 3/4, so its loss is -log(3/4) or -log(1/4).
    binary = loss_per_example(torch.tensor([[0.0], [math.log(3)], [math.log(3)]]), torch.tensor([1, 1, 0]))
    # Odds of 1 : 1 : 2.
    several = loss_per_example(torch.tensor([[0.0, 0.0, math.log(2)]]), torch.tensor([2]))

    assert binary.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)], abs=1e-6)
    assert several.tolist() == pytest.approx([math.log(2)], abs=1e-6)


@pytest.mark.parametrize("classes", [1, 4])
def test_each_patients_loss_and_gradient_are_its_own(classes: int) -> None:
    outputs, labels = outputs_of(5, classes).requires_grad_(), labels_of(5, classes)
    changed = outputs.detach().clone()
    changed[3, 0] += 10

    (gradient,) = torch.autograd.grad(loss_per_example(outputs, labels)[2], outputs)
    same = loss_per_example(changed, labels) == loss_per_example(outputs, labels)

    assert gradient.abs().sum(dim=1).nonzero().flatten().tolist() == [2]
    assert same.tolist() == [True, True, True, False, True]


EXTREMES = [-1e30, -1e4, -100.0, 0.0, 100.0, 1e4, 1e30]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", EXTREMES)
def test_extreme_outputs_give_finite_losses_and_scores(size: float, dtype: torch.dtype) -> None:
    binary = torch.tensor([[size], [size]], dtype=dtype)
    several = torch.tensor([[size, 0, -size], [0, 0, size]], dtype=dtype)

    for outputs in (binary, several):
        losses = loss_per_example(outputs, torch.tensor([0, 1]))
        assert torch.isfinite(losses).all()
        assert (losses >= 0).all()
        assert torch.isfinite(class_logits(outputs)).all()


@pytest.mark.parametrize(
    ("outputs", "classes"),
    [
        ([[-0.1], [0.0], [0.1]], [0, 0, 1]),  # a tie is the first class
        ([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0]], [1, 0]),
    ],
)
def test_the_most_probable_class_is_predicted(outputs: list[list[float]], classes: list[int]) -> None:
    task = TWO_CLASSES if len(outputs[0]) == 1 else THREE_CLASSES

    measured = of_classes(task.measure(torch.tensor(outputs), torch.tensor(classes)))

    assert measured.accuracy == 1.0


@pytest.mark.parametrize(("threshold", "found", "cleared"), [(0.2, 2, 1), (0.5, 1, 1), (0.7, 0, 2)])
def test_two_classes_are_decided_by_the_studys_threshold(threshold: float, found: int, cleared: int) -> None:
    # Chances of 0.27 and 0.62 with the class, of 0.12 and 0.65 without.
    task = task_of(schema_of((1,), classes=["no", "yes"], threshold=threshold))
    outputs = torch.tensor([[-1.0], [0.5], [-2.0], [0.6]])

    measured = of_classes(task.measure(outputs, torch.tensor([1, 1, 0, 0])))

    assert measured.figures()["sensitivity"] == found / 2
    assert measured.figures()["specificity"] == cleared / 2
    assert measured.num_correct == found + cleared
    task.check(measured)
    with pytest.raises(ValueError, match=f"threshold={threshold}; expected the study's, 0.9"):
        task_of(schema_of((1,), classes=["no", "yes"], threshold=0.9)).check(measured)


@pytest.mark.parametrize("outcome", [{"classes": ["a", "b", "c"]}, {"task": "survival", "time_unit": "days"}])
def test_only_two_classes_have_a_threshold(outcome: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"threshold=0\.3; expected one for classification into two classes only"):
        schema_of((1,), threshold=0.3, **outcome)


def test_the_score_of_a_binary_task_is_its_output() -> None:
    outputs = outputs_of(4, 1)

    assert torch.equal(class_logits(outputs), outputs)


@settings(deadline=None)
@given(st.lists(st.floats(-7, 7), min_size=3, max_size=6))
def test_a_score_is_the_log_odds_of_a_class_against_the_rest(row: list[float]) -> None:
    logits = class_logits(torch.tensor([row], dtype=torch.float64))[0]

    # log(p / (1 - p)) with p = exp(x_k) / sum(exp(x)); the rest is summed without p itself.
    for k, score in enumerate(logits.tolist()):
        rest = math.fsum(math.exp(x) for j, x in enumerate(row) if j != k)
        assert score == pytest.approx(row[k] - math.log(rest), abs=1e-6)


def test_scores_in_float32_are_good_to_a_tenth_of_a_bin_within_the_histogram() -> None:
    # A bin is 0.25 wide and the histogram ends at 8.
    row = torch.tensor([[8.0, 0.0], [4.0, 0.0], [-8.0, 0.0]])

    assert class_logits(row)[:, 0].tolist() == pytest.approx([8.0, 4.0, -8.0], abs=0.025)
