"""Each way to break clipping without an error: the naive code breaks the bound, ours keeps it or refuses.

The bound: adding or removing one unit changes the sum of clipped gradients by at most the clip norm. Every case first
shows that the naive step breaks it, on the same records and model, so that no case can pass by being harmless.
"""

import copy
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from opacus import GradSampleModule  # noqa: TID251  the naive code
from opacus.grad_sample import GradSampleModuleFastGradientClipping  # noqa: TID251
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping  # noqa: TID251
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn
from torch.nn import functional

from privacy import noise
from privacy.dp_sgd import LossPerRecord, train_privately
from privacy.errors import PrivacyError
from privacy.plan import PrivacyPlan
from privacy.units import Units

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")

CLIP_NORM = 1.0


@pytest.fixture(autouse=True)
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "secure_normal", lambda count, **_: np.zeros(count))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])


def naive_sum(model: nn.Module, inputs: Tensor, targets: Tensor, loss: LossPerRecord, reduction: str) -> Tensor:
    """Opacus's step as a newcomer writes it, without noise; the sum before division."""
    trained = copy.deepcopy(model)
    wrapped = GradSampleModule(trained, loss_reduction=reduction, strict=False)
    optimizer = DPOptimizer(
        torch.optim.SGD(trained.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    losses = loss(wrapped(inputs), targets)
    losses.backward() if losses.dim() == 0 else losses.sum().backward()
    optimizer.step()
    return weights(model) - weights(trained)


def our_sum(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: LossPerRecord, units: Units, *, pull: float = 0.0
) -> Tensor:
    """Return what one step of ours subtracts, with a pull of the weights towards 0 after clipping."""
    trained = copy.deepcopy(model)
    plan = PrivacyPlan(
        unit=units.unit,
        epsilon=1000.0,
        delta=1e-4,
        clip_norm=CLIP_NORM,
        sampling_rate=1.0,
        steps_per_round=1,
        num_rounds=1,
        noise_multiplier=5.0,
        nominal_units=1,
    )
    optimizer = torch.optim.SGD(trained.parameters(), lr=1.0)

    def add_pull(*_: object) -> None:
        for parameter in trained.parameters():
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach(), alpha=pull)

    optimizer.register_step_pre_hook(add_pull)
    train_privately(trained, optimizer, plan, units, lambda ids: (inputs[ids], targets[ids]), loss)
    return weights(model) - weights(trained)


def records(size: int = 6) -> tuple[Tensor, Tensor]:
    """Nine much alike, and last the one that comes and goes: large, and alone in its class."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.cat([1 + 0.1 * torch.randn(9, size, generator=generator), 100 * torch.ones(1, size)])
    return inputs, torch.tensor([0] * 9 + [1])


def influence(total: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the change of the sum when the last record is left out."""
    inputs, targets = records()
    return float((total(inputs, targets) - total(inputs[:-1], targets[:-1])).norm())


def mlp(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs))


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


CLASS_WEIGHTS = torch.tensor([1.0, 200.0])


def weighted_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, weight=CLASS_WEIGHTS)


def weighted_by_class(outputs: Tensor, targets: Tensor) -> Tensor:
    return CLASS_WEIGHTS[targets] * cross_entropy(outputs, targets)


def test_class_weights_with_a_mean_let_one_record_move_all_others() -> None:
    # The mean divides by the batch's weights, 9 without the rare record, 209 with it: nine gradients shrink 23 times.
    model = mlp()

    assert influence(lambda x, y: naive_sum(model, x, y, weighted_mean, "mean")) > 2 * CLIP_NORM
    with pytest.raises(PrivacyError):
        influence(lambda x, y: our_sum(model, x, y, weighted_mean, Units.records(len(x))))
    ours = influence(lambda x, y: our_sum(model, x, y, weighted_by_class, Units.records(len(x))))
    assert 0.9 * CLIP_NORM < ours <= CLIP_NORM * (1 + 1e-3)


def test_a_batch_normalisation_without_weights_couples_the_records() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2))

    assert influence(lambda x, y: naive_sum(model, x, y, cross_entropy, "sum")) > 1.5 * CLIP_NORM
    with pytest.raises(PrivacyError, match="BatchNorm1d"):
        influence(lambda x, y: our_sum(model, x, y, cross_entropy, Units.records(len(x))))


def test_images_of_one_patient_clipped_one_by_one_add_up() -> None:
    # Record by record, a patient with five images moves the sum by up to five clip norms; as one unit by one.
    model, (inputs, targets) = mlp(), records()
    inputs, targets = torch.cat([inputs, inputs[-1:].repeat(4, 1)]), torch.cat([targets, targets[-1:].repeat(4)])
    patients = [*range(9), 9, 9, 9, 9, 9]

    naive = naive_sum(model, inputs, targets, cross_entropy, "sum") - naive_sum(
        model, inputs[:9], targets[:9], cross_entropy, "sum"
    )
    ours = our_sum(model, inputs, targets, cross_entropy, Units.patients(patients)) - our_sum(
        model, inputs[:9], targets[:9], cross_entropy, Units.patients(patients[:9])
    )

    assert naive.norm() > 4 * CLIP_NORM
    assert 0.9 * CLIP_NORM < ours.norm() <= CLIP_NORM * (1 + 1e-3)


class FlatBags(nn.Module):
    """Three images a record, side by side in the batch, in a model of a single layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs.reshape(-1, 2)).reshape(len(inputs), 3, 2).sum(dim=1)
        return outputs


def test_bags_flattened_into_the_batch_are_clipped_image_by_image() -> None:
    torch.manual_seed(0)
    model = FlatBags()

    assert influence(lambda x, y: naive_sum(model, x, y, cross_entropy, "sum")) > 2 * CLIP_NORM
    with pytest.raises(PrivacyError, match="keep records in the first dimension"):
        influence(lambda x, y: our_sum(model, x, y, cross_entropy, Units.records(len(x))))


def column(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, targets[:, None].float(), reduction="none")


def test_a_column_of_losses_times_a_row_of_factors_is_a_square() -> None:
    # Ghost clipping weighs losses by factors: [B] * [B, 1] is [B, B], every record gets the sum of all factors.
    torch.manual_seed(0)
    model = nn.Linear(6, 1)

    def ghost_by_hand(inputs: Tensor, targets: Tensor) -> Tensor:
        losses = column(model(inputs), targets)
        norms = [
            torch.cat(
                [part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)]
            )
            for loss in losses
        ]
        factors = torch.stack([(CLIP_NORM / gradient.norm()).clamp(max=1.0) for gradient in norms])
        parts = torch.autograd.grad((factors * losses).sum(), list(model.parameters()))
        return torch.cat([part.double().flatten() for part in parts])

    assert influence(ghost_by_hand) > 2 * CLIP_NORM
    with pytest.raises(PrivacyError, match="expected"):
        influence(lambda x, y: our_sum(model, x, y, column, Units.records(len(x))))


def scalar(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="sum")


def test_a_scalar_loss_cannot_be_weighed_by_record() -> None:
    model = nn.Linear(6, 2)
    nn.init.zeros_(model.weight)

    def unclipped(inputs: Tensor, targets: Tensor) -> Tensor:
        parts = torch.autograd.grad(scalar(model(inputs), targets), list(model.parameters()))
        return torch.cat([part.double().flatten() for part in parts])

    assert influence(unclipped) > 50 * CLIP_NORM
    with pytest.raises(PrivacyError, match=r"gave shape \(\)"):
        influence(lambda x, y: our_sum(model, x, y, scalar, Units.records(len(x))))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_record_that_is_not_finite_makes_the_naive_sum_so(value: float) -> None:
    model, (inputs, targets) = mlp(), records()
    inputs[3, 2] = value

    assert not naive_sum(model, inputs, targets, cross_entropy, "sum").isfinite().all()
    assert our_sum(model, inputs, targets, cross_entropy, Units.records(10)).isfinite().all()


@pytest.mark.parametrize("is_known", [True, False])
def test_a_penalty_is_whole_as_a_hook_of_the_optimizer_which_sees_it_after_clipping(is_known: bool) -> None:
    # A pull towards 0 of 100 times the weights, far above the clip norm.
    torch.manual_seed(0)
    known, unknown = nn.Linear(6, 2), nn.Sequential(nn.Unflatten(1, (6, 1)), nn.ConvTranspose1d(6, 2, 1), nn.Flatten())
    model = known if is_known else unknown
    (inputs, targets), units = records(), Units.records(10)

    plain = our_sum(model, inputs, targets, cross_entropy, units)
    pulled = our_sum(model, inputs, targets, cross_entropy, units, pull=100.0)

    torch.testing.assert_close(pulled, plain + 100 * weights(model), rtol=1e-4, atol=1e-4)


def ghost_sum(model: nn.Module, inputs: Tensor, targets: Tensor, *, later: float) -> Tensor:
    """Opacus's ghost clipping at the clip norm, whose optimizer makes its noise for a later one; without noise."""
    trained = copy.deepcopy(model)
    wrapped = GradSampleModuleFastGradientClipping(trained, max_grad_norm=CLIP_NORM, loss_reduction="sum")
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(trained.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    optimizer.max_grad_norm = later
    losses = cross_entropy(wrapped(inputs), targets)
    DPTensorFastGradientClipping(wrapped, optimizer, losses, loss_reduction="sum").backward()
    optimizer.step()
    return weights(model) - weights(trained)


def test_a_clip_norm_that_is_changed_later_changes_the_noise_and_not_the_clipping() -> None:
    # Ghost clipping keeps the norm in the module and makes noise for that of the optimizer; ours are one frozen number.
    plan = PrivacyPlan(
        epsilon=1000.0,
        delta=1e-4,
        clip_norm=CLIP_NORM,
        sampling_rate=1.0,
        steps_per_round=1,
        num_rounds=1,
        noise_multiplier=5.0,
        nominal_units=1,
    )

    assert influence(lambda x, y: ghost_sum(mlp(), x, y, later=0.01)) > 50 * 0.01
    with pytest.raises(FrozenInstanceError):
        plan.clip_norm = 0.01  # type: ignore[misc]


def test_a_clip_norm_that_follows_the_batch_is_moved_by_one_record() -> None:
    # Clipped at the mean norm of the batch, the sum of nine has noise for their mean; a tenth of any size moves it.
    model = nn.Linear(6, 2)
    nn.init.zeros_(model.weight)

    def gradients(inputs: Tensor, targets: Tensor) -> Tensor:
        losses = cross_entropy(model(inputs), targets)
        parts = (torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses)
        return torch.stack([torch.cat([part.double().flatten() for part in each]) for each in parts])

    def adaptive_sum(inputs: Tensor, targets: Tensor) -> Tensor:
        each = gradients(inputs, targets)
        norms = each.norm(dim=1)
        total: Tensor = ((norms.mean() / norms).clamp(max=1.0)[:, None] * each).sum(dim=0)
        return total

    inputs, targets = records()
    noise_is_for = float(gradients(inputs[:-1], targets[:-1]).norm(dim=1).mean())

    assert influence(adaptive_sum) > 2 * noise_is_for
    ours = influence(lambda x, y: our_sum(model, x, y, cross_entropy, Units.records(len(x))))
    assert 0.9 * CLIP_NORM < ours <= CLIP_NORM * (1 + 1e-3)


def test_a_batch_in_parts_gets_its_noise_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # With a memory for one record a part there are ten parts; noise per part would be sqrt(10) times as large.
    monkeypatch.undo()
    monkeypatch.setattr("privacy.dp_sgd.CHUNK_BYTES", 1)
    model = nn.Linear(20_000, 1, bias=False)
    nn.init.zeros_(model.weight)

    total = our_sum(
        model, torch.ones(10, 20_000), torch.zeros(10), lambda out, _: 0.0 * out.squeeze(-1), Units.records(10)
    )

    assert abs(float(total.std()) / (5 * CLIP_NORM) - 1) < 5 / (2 * 20_000) ** 0.5
