"""For every shipped model, loss and way of clipping, one unit changes the clipped sum by at most the clip norm.

Measured through the whole training step, with the noise switched off from outside; the product has no such option.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from schemas import schema_of
from torch import Tensor, nn

from fl_contract.models import ModelSettings, build_model
from fl_contract.tasks.classification import loss_per_example
from privacy import dp_sgd, noise
from privacy.dp_sgd import LossPerRecord, train_privately
from privacy.plan import PrivacyPlan
from privacy.units import Units

MODELS: dict[str, dict[str, Any]] = {
    "logistic": {"kind": "logistic"},
    "mlp": {"kind": "mlp", "num-hidden-layers": 2},
    "small-cnn": {"kind": "small-cnn", "width": 4},
    "small-cnn with group norm": {"kind": "small-cnn", "width": 4, "norm": "group"},
    "resnet18": {"kind": "resnet18", "width": 8},
}
PATIENTS = torch.tensor([0, 1, 1, 2, 3, 3, 3, 4])
SCALES = torch.tensor([1e-3, 0.1, -1.0, 1.0, 30.0, 1.0, -30.0, 1e3])


def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.tensor([1.0, 50.0, 7.0])[targets] * loss_per_example(outputs, targets)


LOSSES: dict[str, tuple[int, LossPerRecord]] = {
    "binary": (1, loss_per_example),
    "multi-class": (3, loss_per_example),
    "class weights": (3, weighted),
}


@pytest.fixture(params=["book-keeping", "hooks"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Without noise, and for hooks as if no layer were known."""
    monkeypatch.setattr(noise, "secure_normal", lambda count, **_: np.zeros(count))
    if request.param == "hooks":
        monkeypatch.setattr(dp_sgd, "is_covered", lambda _: False)
    return str(request.param)


def clipped_sum(
    model: nn.Module, rows: Tensor, unit: str, clip_norm: float, loss: LossPerRecord, method: str
) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    inputs = (SCALES[:, None, None, None] * torch.randn(8, 1, 8, 8, generator=generator))[rows]
    targets = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])[rows]
    trained = copy.deepcopy(model)
    plan = PrivacyPlan(
        unit="patient" if unit == "patient" else "record",
        epsilon=1000.0,
        delta=1e-4,
        clip_norm=clip_norm,
        sampling_rate=1.0,
        steps_per_round=1,
        num_rounds=1,
        noise_multiplier=5.0,
        nominal_units=1,
    )
    result = train_privately(
        trained,
        torch.optim.SGD(trained.parameters(), lr=1.0),
        plan,
        Units.patients(PATIENTS[rows].tolist()) if unit == "patient" else Units.records(len(rows)),
        lambda ids: (inputs[ids], targets[ids]),
        lambda outputs, labels: 1000 * loss(outputs, labels),  # steep: bounded activations keep gradients small
    )
    assert result.method == method
    before, after = (torch.cat([p.detach().double().flatten() for p in m.parameters()]) for m in (model, trained))
    return before - after


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("unit", ["record", "patient"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_one_unit_changes_the_sum_by_at_most_the_clip_norm(
    name: str, loss: str, unit: str, clip_norm: float, method: str
) -> None:
    num_outputs, loss_per_record = LOSSES[loss]
    settings: ModelSettings = TypeAdapter(ModelSettings).validate_python(MODELS[name])
    model = build_model(settings, schema_of((1, 8, 8)), num_outputs=num_outputs, seed=1)
    owners = PATIENTS if unit == "patient" else torch.arange(8)
    everyone = clipped_sum(model, torch.arange(8), unit, clip_norm, loss_per_record, method)

    influences = []
    for owner in owners.unique():
        rows = (owners != owner).nonzero().squeeze(1)
        without = clipped_sum(model, rows, unit, clip_norm, loss_per_record, method)
        influences.append(float((everyone - without).norm()))

    assert 0.99 * clip_norm < max(influences) <= clip_norm * (1 + 1e-3)
