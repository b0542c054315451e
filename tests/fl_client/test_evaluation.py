"""A hospital measures by sums and counts that anybody can work out again, and changes nothing by measuring."""

import numpy as np
import pytest
import torch
from measurements import of_classes
from schemas import SURVIVAL, TWO_CLASSES, schema_of
from torch import nn

from fl_client import evaluation
from fl_client.evaluation import BATCH_SIZE, evaluate
from fl_client.preprocessing import Examples
from fl_contract.tasks import task_of
from fl_contract.tasks.task import Task


def identity_model(size: int) -> nn.Module:
    """Its outputs are its inputs."""
    linear = nn.Linear(size, size, bias=False)
    nn.init.eye_(linear.weight)
    return nn.Sequential(linear)


def test_two_classes_are_measured_as_by_hand() -> None:
    logits, labels = np.array([-3.0, -0.1, 0.6, 2.0, 0.3]), np.array([0, 1, 1, 1, 0])
    examples = Examples(inputs=torch.tensor(logits, dtype=torch.float32).unsqueeze(1), labels=torch.tensor(labels))

    evaluation = of_classes(evaluate(identity_model(1), examples, TWO_CLASSES))

    chance = 1 / (1 + np.exp(-logits))
    assert evaluation.num_examples == 5
    assert evaluation.loss_sum == pytest.approx(-np.log(np.where(labels == 1, chance, 1 - chance)).sum(), rel=1e-6)
    # Right are -3.0 (class 0), 0.6 and 2.0 (class 1).
    assert evaluation.num_correct == 3
    # Of the 2 * 3 pairs of a patient without and one with the class, (0.3, -0.1) alone is in the wrong order.
    assert evaluation.auroc == pytest.approx(5 / 6)
    assert evaluation.figures()["sensitivity"] == pytest.approx(2 / 3)
    assert evaluation.figures()["specificity"] == 0.5
    assert evaluation.brier_sum == pytest.approx(((chance - labels) ** 2).sum(), rel=1e-6)
    assert evaluation.brier_square_sum == pytest.approx(((chance - labels) ** 4).sum(), rel=1e-6)
    # With precision 1, 1 and, after the two patients without the class at 0.3 and at -0.1, 3 / 4.
    assert evaluation.figures()["auprc"] == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_scores_are_counted_in_bins_of_a_32nd_of_a_logit_and_of_a_logit_beyond_8() -> None:
    logits, labels = np.array([-9.0, -8.0, 0.0, 0.03, 0.04, 7.98, 50.0]), np.array([0, 0, 1, 1, 0, 1, 1])
    examples = Examples(inputs=torch.tensor(logits, dtype=torch.float32).unsqueeze(1), labels=torch.tensor(labels))

    counts = of_classes(evaluate(identity_model(1), examples, TWO_CLASSES)).scores.counts

    expected = np.zeros((1, 2, 576), dtype=np.int64)
    expected[0, 0, [31, 32, 289]] = 1  # the tail below -8 has 32 bins, and from there to 0 there are 256
    expected[0, 1, [288, 543, 575]] = [2, 1, 1]
    assert np.array_equal(counts, expected)


def test_several_classes_are_measured_as_by_hand() -> None:
    outputs = np.random.default_rng(3).normal(size=(20, 4))
    labels = np.arange(20) % 4
    examples = Examples(inputs=torch.tensor(outputs, dtype=torch.float32), labels=torch.tensor(labels))

    evaluation = of_classes(evaluate(identity_model(4), examples, task_of(schema_of((1,), classes=list("abcd")))))

    chances = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    assert evaluation.loss_sum == pytest.approx(-np.log(chances[np.arange(20), labels]).sum(), rel=1e-6)
    assert evaluation.num_correct == (outputs.argmax(axis=1) == labels).sum()
    odds = np.log(chances / (1 - chances))
    bins = 32 + np.floor((odds + 8) * 32).astype(int)
    for column in range(4):
        for side in (0, 1):
            chosen = bins[(labels == column) == bool(side), column]
            assert np.array_equal(evaluation.scores.counts[column, side], np.bincount(chosen, minlength=576))
    squared = np.square(chances - np.eye(4)[labels]).sum(axis=1)
    assert evaluation.brier_sum == pytest.approx(squared.sum(), rel=1e-6)
    assert evaluation.brier_square_sum == pytest.approx(np.square(squared).sum(), rel=1e-6)
    assert "sensitivity" not in evaluation.figures()


def test_batches_do_not_change_the_sums() -> None:
    count = BATCH_SIZE + 3
    logits = torch.linspace(-4, 4, count).unsqueeze(1)
    examples = Examples(inputs=logits, labels=torch.ones(count, dtype=torch.int64))

    evaluation = of_classes(evaluate(identity_model(1), examples, TWO_CLASSES))

    assert evaluation.num_examples == count
    assert evaluation.loss_sum == pytest.approx(np.log1p(np.exp(-logits.double().numpy())).sum(), rel=1e-6)
    assert evaluation.num_correct == int((logits > 0).sum())


@pytest.mark.parametrize("output", [float("nan"), float("inf"), float("-inf")])
def test_an_output_that_is_no_number_is_refused(output: float) -> None:
    inputs = torch.tensor([[0.5], [output], [0.5]])
    examples = Examples(inputs=inputs, labels=torch.tensor([0, 1, 0]))

    with pytest.raises(ValueError, match="outputs are NaN or infinite"):
        of_classes(evaluate(identity_model(1), examples, TWO_CLASSES))


def test_measuring_changes_no_weight_and_no_statistic_of_the_model() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    examples = Examples(inputs=torch.rand(16, 3), labels=torch.zeros(16, dtype=torch.int64))

    first, second = evaluate(model, examples, TWO_CLASSES), evaluate(model, examples, TWO_CLASSES)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert first.loss_sum == second.loss_sum


def test_a_patients_measurement_does_not_depend_on_the_others() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    inputs = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 0, 1, 1, 0])

    together = evaluate(model, Examples(inputs=inputs, labels=labels), TWO_CLASSES)
    apart = [
        evaluate(model, Examples(inputs=inputs[i : i + 1], labels=labels[i : i + 1]), TWO_CLASSES) for i in range(6)
    ]

    assert together.loss_sum == pytest.approx(sum(one.loss_sum for one in apart), rel=1e-6)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (SURVIVAL, torch.stack([torch.arange(20.0) % 7, torch.arange(20.0) % 2], dim=1)),
        (
            task_of(schema_of((1,), task="regression", target={"minimum": 0.0, "maximum": 9.0})),
            torch.linspace(-1, 1, 20),
        ),
    ],
    ids=["pairs of patients", "sums"],
)
def test_batches_measure_what_all_records_at_once_do(
    monkeypatch: pytest.MonkeyPatch, task: Task, labels: torch.Tensor
) -> None:
    examples = Examples(inputs=torch.sin(torch.arange(20.0)).unsqueeze(1), labels=labels)
    at_once = evaluate(identity_model(1), examples, task)

    monkeypatch.setattr(evaluation, "BATCH_NUMBERS", 3)
    by_batches = evaluate(identity_model(1), examples, task)

    numbers, expected = by_batches.to_numbers(), at_once.to_numbers()
    assert numbers.keys() == expected.keys()
    assert all(numbers[key] == pytest.approx(expected[key], rel=1e-12) for key in expected)
