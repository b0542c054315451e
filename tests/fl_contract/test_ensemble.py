"""An ensemble says what its members say on average, as probabilities or as numbers, and is read from one state."""

import math
from typing import Any

import pytest
import torch
from schemas import SURVIVAL, THREE_CLASSES, TWO_CLASSES, schema_of
from torch import Tensor, nn

from fl_contract.models.ensemble import Ensemble, join_members
from fl_contract.study_file import load_study
from fl_contract.tasks import task_of
from fl_contract.tasks.task import Task

FINDINGS = task_of(schema_of((3,), task="multi-label", classes=["a", "b"]))
NUMBER = task_of(schema_of((3,), task="regression", target={"minimum": 0.0, "maximum": 9.0}))
LOG = math.log


@pytest.mark.parametrize(
    ("task", "outputs", "expected"),
    [
        # Probabilities 3/4 and 1/2: 5/8 on average, odds of 5 : 3.
        (TWO_CLASSES, [[[LOG(3)]], [[0.0]]], [[LOG(5 / 3)]]),
        # One member that is sure and one that is sure of the contrary: even odds.
        (TWO_CLASSES, [[[500.0]], [[-500.0]]], [[0.0]]),
        # All agree.
        (TWO_CLASSES, [[[2.5], [-40.0]]] * 3, [[2.5], [-40.0]]),
        # Odds 1 : 1 : 2 and 1 : 0 : 0 of e^-800: 5/8, 1/8, 1/4.
        (THREE_CLASSES, [[[0.0, 0.0, LOG(2)]], [[800.0, 0.0, 0.0]]], [[LOG(5 / 8), LOG(1 / 8), LOG(1 / 4)]]),
        (FINDINGS, [[[LOG(3), 0.0]], [[0.0, LOG(7)]]], [[LOG(5 / 3), LOG(11 / 5)]]),
        (NUMBER, [[[0.5], [2.0]], [[-1.0], [0.0]]], [[-0.25], [1.0]]),
        # A member whose baseline is 10 higher orders the two patients as before.
        (SURVIVAL, [[[1.0], [2.0]], [[12.0], [11.5]]], [[6.5], [6.75]]),
    ],
    ids=["two classes", "extremes", "agreement", "three classes", "findings", "number", "survival"],
)
def test_predictions_are_averaged_as_the_task_means_them(task: Task, outputs: Any, expected: Any) -> None:
    combined = task.combine(torch.tensor(outputs, dtype=torch.float64))

    assert torch.allclose(combined, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def linear(weight: float) -> nn.Module:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return layer


def test_an_ensemble_asks_every_member() -> None:
    ensemble = Ensemble([linear(1.0), linear(4.0)], NUMBER.combine)

    assert ensemble(torch.tensor([[2.0], [-1.0]])).tolist() == [[5.0], [-2.5]]


@pytest.mark.parametrize("num_members", [1, 3])
def test_joined_states_of_a_studys_models_are_that_of_its_ensemble(num_members: int) -> None:
    study = load_study("breast-cancer")
    states = [
        {name: number + tensor.numpy() for name, tensor in study.build_model().state_dict().items()}
        for number in range(num_members)
    ]
    joined = join_members(states)
    ensemble = study.build_ensemble(num_members)

    ensemble.load_state_dict({name: torch.from_numpy(array) for name, array in joined.items()})

    assert list(ensemble.state_dict()) == list(joined)
    inputs = torch.zeros(2, 30)

    def probabilities(number: int) -> Tensor:
        model = study.build_model()
        model.load_state_dict({name: torch.from_numpy(array) for name, array in states[number].items()})
        outputs: Tensor = model(inputs)
        return outputs.sigmoid()

    mean = torch.stack([probabilities(number) for number in range(num_members)]).mean(dim=0)
    assert torch.allclose(ensemble(inputs).sigmoid(), mean)
