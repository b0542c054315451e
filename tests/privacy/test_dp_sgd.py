"""Private training moves the weights by noised sums of clipped gradients and by nothing else.

The sensitivity tests switch the noise off from outside, by replacing the generator; the product has no such option.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from opacus import GradSampleModule  # noqa: TID251  only to be refused
from opacus.layers import DPLSTM
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from privacy import book_keeping, dp_sgd, noise, per_record
from privacy.dp_sgd import LossPerRecord, PrivateTrainingResult, train_privately
from privacy.errors import PrivacyError, PrivacySettingError, UnsupportedModelError
from privacy.plan import PrivacyPlan
from privacy.units import Units


def make_plan(
    *, clip_norm: float = 1.0, sampling_rate: float = 1.0, steps: int = 1, nominal_units: int = 1
) -> PrivacyPlan:
    """Build a plan with noise multiplier 5, whose epsilon is beside the point here."""
    return PrivacyPlan(
        epsilon=1000.0,
        delta=1e-4,
        clip_norm=clip_norm,
        sampling_rate=sampling_rate,
        steps_per_round=steps,
        num_rounds=1,
        noise_multiplier=5.0,
        nominal_units=nominal_units,
    )


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def weighted_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.tensor([1.0, 50.0])[targets] * cross_entropy(outputs, targets)


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs.squeeze(-1), targets.double().float(), reduction="none")


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.squeeze(-1) - targets) ** 2


def train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    plan: PrivacyPlan,
    loss: LossPerRecord = cross_entropy,
    *,
    learning_rate: float = 1.0,
) -> PrivateTrainingResult:
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    return train_privately(
        model, optimizer, plan, Units.records(len(inputs)), lambda ids: (inputs[ids], targets[ids]), loss
    )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])


def clipped_sum(model: nn.Module, inputs: Tensor, targets: Tensor, plan: PrivacyPlan, loss: LossPerRecord) -> Tensor:
    """Return the sum that one noiseless step with learning rate 1 and divisor 1 subtracted from the weights."""
    trained = copy.deepcopy(model)
    train(trained, inputs, targets, plan, loss)
    return weights(model) - weights(trained)


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "secure_normal", lambda count, **_: np.zeros(count))


@pytest.fixture
def no_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant the bug that every test of sensitivity must find."""
    for module in (book_keeping, per_record):
        monkeypatch.setattr(module, "clip_factors", lambda norms, _: torch.ones_like(norms, dtype=torch.float32))


# --- sensitivity -----------------------------------------------------------------------------------------------------


class ScaleThenLinear(nn.Module):
    """Parameters outside any layer, a scalar among them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(6))
        self.head = nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.scale * inputs + self.shift)
        return outputs


class LastOfSequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = DPLSTM(2, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.lstm(inputs.reshape(-1, 3, 2))[0][:, -1])
        return outputs


class TwiceTheSameLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(torch.tanh(self.layer(torch.tanh(self.layer(inputs)))))
        return outputs


MODELS: dict[str, Callable[[], nn.Module]] = {
    "logistic": lambda: nn.Linear(6, 2),
    "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)),
    "layernorm": lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    ),
    "bare-parameters": ScaleThenLinear,
    "recurrent": LastOfSequence,
    "shared-layer": TwiceTheSameLayer,
    "weight-norm": lambda: nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 2)),
    "one-logit": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)),
}
CASES: list[tuple[str, LossPerRecord]] = [
    *((name, cross_entropy) for name in MODELS if name != "one-logit"),
    ("mlp", weighted_cross_entropy),
    ("one-logit", binary_cross_entropy),
    ("one-logit", squared_error),
]


def adversarial_records() -> tuple[Tensor, Tensor]:
    """Ten records of scales from 0.001 to 1000, both signs, the rare class once, most of them nearly alike."""
    generator = torch.Generator().manual_seed(5)
    scales = torch.tensor([1e-3, -1e-3, 0.1, 1.0, -1.0, 1.0, 30.0, -30.0, 1e3, -1e3])
    inputs = scales[:, None] * (1 + 0.1 * torch.randn(10, 6, generator=generator))
    return inputs, torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 0, 1])


def largest_influence(model: nn.Module, plan: PrivacyPlan, loss: LossPerRecord) -> float:
    """Return the largest change of the clipped sum when one of the adversarial records is left out.

    The loss is taken a thousand times: bounded activations would else keep gradients below the larger clip norms.
    """

    def steep_loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return 1000 * loss(outputs, labels)

    inputs, targets = adversarial_records()
    everyone = clipped_sum(model, inputs, targets, plan, steep_loss)
    influences = []
    for left_out in range(len(inputs)):
        others = [index for index in range(len(inputs)) if index != left_out]
        without = clipped_sum(model, inputs[others], targets[others], plan, steep_loss)
        influences.append(float((everyone - without).norm()))
    return max(influences)


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 5.0])
@pytest.mark.parametrize(("name", "loss"), CASES)
def test_one_record_changes_the_sum_by_at_most_the_clip_norm(name: str, loss: LossPerRecord, clip_norm: float) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()

    influence = largest_influence(model, make_plan(clip_norm=clip_norm), loss)

    # The outliers' gradients are far above every clip norm here, so the bound is also reached.
    assert 0.99 * clip_norm < influence <= clip_norm * (1 + 1e-3)


@pytest.mark.usefixtures("no_noise", "no_clipping")
@pytest.mark.parametrize(("name", "loss"), CASES)
def test_the_sensitivity_check_finds_missing_clipping(name: str, loss: LossPerRecord) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()

    assert largest_influence(model, make_plan(), loss) > 10


@pytest.mark.usefixtures("no_noise")
def test_gradients_inside_the_clip_norm_are_summed_unchanged() -> None:
    torch.manual_seed(0)
    model = MODELS["mlp"]()
    inputs, targets = torch.randn(6, 6), torch.tensor([0, 1, 0, 1, 1, 0])

    summed = clipped_sum(model, inputs, targets, make_plan(clip_norm=1e4), cross_entropy)

    expected = torch.autograd.grad(cross_entropy(model(inputs), targets).sum(), list(model.parameters()))
    torch.testing.assert_close(summed, torch.cat([part.double().flatten() for part in expected]), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("no_noise")
def test_the_sum_is_divided_by_the_public_expected_size_and_not_by_the_private_one() -> None:
    # Loss 3*w*x - so gradient 3 - clipped to 1; three records sum to 3. Expected batch: 1.0 * 10 records, so the
    # weight moves by 3/10, whatever the true number of records.
    model = nn.Linear(1, 1, bias=False)
    start = model.weight.item()

    train(model, torch.ones(3, 1), torch.zeros(3), make_plan(nominal_units=10), lambda out, _: 3 * out.squeeze(-1))

    assert model.weight.item() == pytest.approx(start - 0.3, abs=1e-5)


# --- losses and models that would break clipping silently ------------------------------------------------------------


def weighted_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 50.0]))


def weighted_mean_in_parts(outputs: Tensor, targets: Tensor) -> Tensor:
    class_weights = torch.tensor([1.0, 50.0])[targets]
    return class_weights * cross_entropy(outputs, targets) / class_weights.sum()


def contrast_to_the_batch(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs - outputs.mean(dim=0), targets)


def column_of_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs[:, :1], targets[:, None].float(), reduction="none")


def accidental_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, :1] - targets) ** 2


@pytest.mark.parametrize("loss", [weighted_mean, column_of_losses, accidental_square, lambda outputs, _: outputs.sum()])
def test_a_loss_that_is_not_one_value_per_record_is_refused(loss: LossPerRecord) -> None:
    inputs, targets = adversarial_records()

    with pytest.raises(PrivacySettingError, match=r"loss_per_record gave shape .*; expected \(1,\)"):
        train(MODELS["mlp"](), inputs, targets, make_plan(), loss)


@pytest.mark.parametrize("loss", [weighted_mean_in_parts, contrast_to_the_batch])
def test_a_loss_per_record_that_depends_on_the_other_records_is_refused(loss: LossPerRecord) -> None:
    inputs, targets = adversarial_records()

    with pytest.raises(PrivacySettingError, match="when it stands alone"):
        train(MODELS["mlp"](), inputs, targets, make_plan(), loss)


class FlattenedBags(nn.Module):
    """Three images per patient, flattened: clipping would see images where the plan protects patients."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs.reshape(-1, 2)).reshape(len(inputs), 3, 2).mean(dim=1)
        return outputs


@pytest.mark.parametrize("is_known", [True, False])
def test_a_model_that_splits_a_record_into_several_rows_is_refused(
    is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dp_sgd, "is_covered", lambda _: is_known)
    inputs, targets = adversarial_records()

    with pytest.raises(UnsupportedModelError, match=r"'layer.weight' got 3 gradients for 1 records"):
        train(FlattenedBags(), inputs, targets, make_plan())


class HomemadeBatchNorm(nn.Module):
    """Keeps the batch mean in a buffer, in a layer that has no parameters and a name that no list knows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, inputs: Tensor) -> Tensor:
        self.mean = inputs.mean(dim=0)
        return inputs


def test_a_buffer_that_a_step_changes_is_put_back_and_the_model_refused() -> None:
    inputs, targets = adversarial_records()
    model = nn.Sequential(HomemadeBatchNorm(), nn.Linear(6, 2))

    with pytest.raises(UnsupportedModelError, match=r"buffers \['0.mean'\] changed"):
        train(model, inputs, targets, make_plan())

    assert torch.equal(model.get_buffer("0.mean"), torch.zeros(6))


def test_a_layer_on_the_refused_list_stops_training_before_the_first_record() -> None:
    model = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2))
    fetched: list[Tensor] = []

    def fetch(ids: Tensor) -> tuple[Tensor, Tensor]:
        fetched.append(ids)
        return ids, ids

    with pytest.raises(UnsupportedModelError, match="BatchNorm1d"):
        train_privately(
            model, torch.optim.SGD(model.parameters()), make_plan(), Units.records(10), fetch, cross_entropy
        )

    assert fetched == []


def test_a_layer_that_only_the_library_refuses_is_refused_as_ours() -> None:
    inputs, targets = adversarial_records()

    with pytest.raises(UnsupportedModelError, match="Opacus refuses a layer"):
        train(nn.Sequential(spectral_norm(nn.Linear(6, 2))), inputs, targets, make_plan())


class UnusedBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(6, 2)
        self.unused = nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.used(inputs)
        return outputs


@pytest.mark.parametrize("is_known", [True, False])
def test_a_trainable_parameter_that_gets_no_gradient_is_refused_by_name(
    is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dp_sgd, "is_covered", lambda _: is_known)
    inputs, targets = adversarial_records()

    with pytest.raises(UnsupportedModelError, match=r"'unused.weight' got no gradient per record"):
        train(UnusedBranch(), inputs, targets, make_plan())


def test_an_optimizer_that_misses_a_trainable_parameter_is_refused() -> None:
    model = MODELS["mlp"]()
    optimizer = torch.optim.SGD(list(model.parameters())[:2], lr=1.0)

    with pytest.raises(PrivacySettingError, match=r"misses trainable parameters \['2.weight', '2.bias'\]"):
        train_privately(model, optimizer, make_plan(), Units.records(0), lambda ids: (ids, ids), cross_entropy)


def test_an_optimizer_of_another_model_is_refused() -> None:
    model = MODELS["mlp"]()
    optimizer = torch.optim.SGD([*model.parameters(), *nn.Linear(1, 1).parameters()], lr=1.0)

    with pytest.raises(PrivacySettingError, match="holds 2 of another model"):
        train_privately(model, optimizer, make_plan(), Units.records(0), lambda ids: (ids, ids), cross_entropy)


@pytest.mark.parametrize(("num_inputs", "num_targets", "which"), [(9, 1, "inputs"), (1, 11, "targets")])
def test_a_fetch_that_loses_or_adds_records_is_refused(num_inputs: int, num_targets: int, which: str) -> None:
    model = MODELS["mlp"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    batch = torch.zeros(num_inputs, 6), torch.zeros(num_targets, dtype=torch.int64)

    with pytest.raises(PrivacySettingError, match=rf"fetch gave \d+ {which} for 1 indices"):
        train_privately(model, optimizer, make_plan(), Units.records(10), lambda _: batch, cross_entropy)


def test_a_negative_number_of_records_is_refused() -> None:
    model = MODELS["mlp"]()

    with pytest.raises(PrivacySettingError, match="num_records=-1"):
        train_privately(
            model,
            torch.optim.SGD(model.parameters()),
            make_plan(),
            Units.records(-1),
            lambda ids: (ids, ids),
            cross_entropy,
        )


# --- records that are not numbers ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("name", ["mlp", "convolution", "bare-parameters", "recurrent"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_record_that_is_not_finite_counts_as_absent(name: str, value: float) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    inputs, targets = torch.randn(5, 6), torch.tensor([0, 1, 1, 0, 1])
    broken = inputs.clone()
    broken[0, 3] = value

    with_broken = clipped_sum(model, broken, targets, make_plan(), cross_entropy)
    without = clipped_sum(model, inputs[1:], targets[1:], make_plan(), cross_entropy)

    assert without.norm() > 0.1
    torch.testing.assert_close(with_broken, without, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("no_noise")
def test_a_target_that_is_not_finite_counts_as_absent() -> None:
    torch.manual_seed(0)
    model = MODELS["one-logit"]()
    inputs, targets = torch.randn(3, 6), torch.tensor([0.0, torch.nan, 1.0])

    with_broken = clipped_sum(model, inputs, targets, make_plan(), squared_error)
    without = clipped_sum(model, inputs[[0, 2]], targets[[0, 2]], make_plan(), squared_error)

    torch.testing.assert_close(with_broken, without, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("no_noise")
def test_records_that_are_all_broken_leave_the_weights_where_they_were() -> None:
    inputs = torch.full((4, 6), torch.nan)

    assert not clipped_sum(MODELS["mlp"](), inputs, torch.zeros(4, dtype=torch.int64), make_plan(), cross_entropy).any()


@pytest.mark.usefixtures("no_noise")
def test_a_finite_gradient_whose_norm_overflows_stays_inside_the_clip_norm() -> None:
    inputs = torch.full((1, 6), 1e30)

    influence = clipped_sum(nn.Linear(6, 2), inputs, torch.tensor([1]), make_plan(), cross_entropy).norm()

    assert influence <= 1 + 1e-3


# --- noise -----------------------------------------------------------------------------------------------------------

WIDE = 60_000
"""So many weights that five standard errors of their deviation, 5 / sqrt(2 * 60,000), are 1.4 %.

Three, which a right source exceeds once in 370 comparisons, would be a test that fails without a fault every few days.
"""


def no_gradient(outputs: Tensor, _targets: Tensor) -> Tensor:
    return 0.0 * outputs.sum(dim=1)


@pytest.mark.parametrize("num_records", [0, 3])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("clip_norm", [0.1, 3.0])
def test_every_step_adds_noise_of_the_planned_size_also_without_records(
    num_records: int, steps: int, clip_norm: float
) -> None:
    model = nn.Linear(WIDE, 1, bias=False)
    nn.init.zeros_(model.weight)
    plan = make_plan(clip_norm=clip_norm, steps=steps, nominal_units=50)

    train(model, torch.ones(num_records, WIDE), torch.zeros(num_records), plan, no_gradient)

    # Per step N(0, (noise multiplier * clip norm / expected batch)^2) = N(0, (5 * clip norm / 50)^2), independently.
    # The relative standard error over d values is 1/sqrt(2d); 5 of them are exceeded less than once in 10^6.
    noise = weights(model) / (5.0 * clip_norm / 50 * steps**0.5)
    assert abs(float(noise.std()) - 1) < 5 / (2 * WIDE) ** 0.5
    assert abs(float(noise.mean())) < 5 / WIDE**0.5


def test_noise_covers_every_parameter() -> None:
    for name, build in MODELS.items():
        model = build()
        before = [parameter.detach().clone() for parameter in model.parameters()]

        train(model, torch.zeros(0, 6), torch.zeros(0), make_plan())

        # A float32 sum can by chance equal the weight before; not often enough to leave a tenth unchanged.
        for old, new in zip(before, model.parameters(), strict=True):
            assert (old != new).double().mean() > 0.9, name


def test_the_same_seed_repeats_neither_noise_nor_batches() -> None:
    start = MODELS["mlp"]()
    inputs, targets = adversarial_records()
    ends, batches = [], []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  the global generator is the point
        torch.manual_seed(0)
        model = copy.deepcopy(start)
        train(model, inputs, targets, make_plan(steps=10, sampling_rate=0.5))
        ends.append(weights(model))

        seen: list[list[int]] = []
        torch.manual_seed(0)
        train_with_seen_batches(inputs, targets, seen)
        batches.append(seen)

    assert not (ends[0] == ends[1]).any()
    assert batches[0] != batches[1]


def train_with_seen_batches(inputs: Tensor, targets: Tensor, seen: list[list[int]]) -> None:
    model = MODELS["logistic"]()

    def fetch(ids: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(ids.tolist())
        return inputs[ids], targets[ids]

    plan = make_plan(steps=300, sampling_rate=0.5)
    train_privately(
        model, torch.optim.SGD(model.parameters(), lr=1e-6), plan, Units.records(len(inputs)), fetch, cross_entropy
    )


def test_batches_are_drawn_with_the_rate_of_the_plan_and_empty_ones_are_not_fetched() -> None:
    inputs, targets = adversarial_records()
    seen: list[list[int]] = []

    train_with_seen_batches(inputs[:3], targets[:3], seen)

    # Binomial(3, 0.5) sizes over 300 steps: 450 records in all, standard deviation sqrt(300*0.75) = 15; a batch is
    # empty with probability 1/8, 37.5 in all, standard deviation 5.7. Five of them are exceeded once in 10^6.
    assert all(seen)
    assert abs(sum(map(len, seen)) - 450) < 5 * 15
    assert abs(300 - len(seen) - 37.5) < 5 * 5.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_units", "rate", "steps", "variance", "its_error"),
    [
        # Binomial sizes have variance n q (1-q) and fourth central moment v (1 + 3 (n-2) q (1-q)); the variance of T
        # sizes has standard error sqrt((fourth - v^2) / T). Batches of a fixed size would have variance 0, batches
        # drawn with replacement n q = 10 in the first case. Five standard errors are exceeded about once in 10^6.
        pytest.param(20, 0.5, 1000, 5.0, 0.218, id="half of the units"),
        pytest.param(10, 0.05, 2000, 0.475, 0.0199, id="six of ten batches are empty"),
    ],
)
def test_training_takes_binomial_batches_and_as_many_steps_as_asked_also_of_mostly_empty_ones(
    num_units: int, rate: float, steps: int, variance: float, its_error: float
) -> None:
    model = MODELS["logistic"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    in_this_batch: list[int] = []
    sizes: list[int] = []

    def fetch(ids: Tensor) -> tuple[Tensor, Tensor]:
        in_this_batch.extend(ids.tolist())
        return torch.ones(len(ids), 6), torch.zeros(len(ids), dtype=torch.int64)

    def end_batch(*_: object) -> None:
        sizes.append(len(in_this_batch))
        in_this_batch.clear()

    optimizer.register_step_pre_hook(end_batch)
    plan = make_plan(sampling_rate=rate, steps=steps)
    result = train_privately(model, optimizer, plan, Units.records(num_units), fetch, cross_entropy)

    assert result.steps_run == len(sizes) == steps
    assert abs(np.mean(sizes) - num_units * rate) < 5 * (variance / steps) ** 0.5
    assert abs(np.var(sizes) - variance) < 5 * its_error
    assert sizes.count(0) == pytest.approx(steps * (1 - rate) ** num_units, abs=5 * 22)


# --- the call and what it leaves behind ------------------------------------------------------------------------------


def test_the_result_tells_the_number_of_steps_and_nothing_else() -> None:
    inputs, targets = adversarial_records()

    result = train(MODELS["mlp"](), inputs, targets, make_plan(steps=7, sampling_rate=0.1))

    assert result == PrivateTrainingResult(steps_run=7, method="book-keeping")
    assert [field.name for field in fields(result)] == ["steps_run", "method"]


@pytest.mark.parametrize(("granted", "run"), [(None, 9), (1, 1), (4, 4), (9, 9)])
@pytest.mark.parametrize("num_records", [0, 10])
def test_a_granted_part_of_a_round_runs_exactly_so_many_steps(granted: int | None, run: int, num_records: int) -> None:
    model = MODELS["mlp"]()
    optimizer = torch.optim.Adam(model.parameters())
    inputs, targets = adversarial_records()

    result = train_privately(
        model,
        optimizer,
        make_plan(steps=9, sampling_rate=0.05),
        Units.records(num_records),
        lambda ids: (inputs[ids], targets[ids]),
        cross_entropy,
        steps=granted,
    )

    assert result.steps_run == run
    assert {int(state["step"]) for state in optimizer.state.values()} == {run}


@pytest.mark.parametrize("steps", [0, -1, 10, True, 2.0])
def test_more_steps_than_planned_or_none_are_refused(steps: Any) -> None:
    model = MODELS["mlp"]()
    optimizer = torch.optim.SGD(model.parameters())

    with pytest.raises(PrivacySettingError, match="steps="):
        train_privately(
            model, optimizer, make_plan(steps=9), Units.records(0), lambda ids: (ids, ids), cross_entropy, steps=steps
        )


def test_units_of_another_kind_than_the_plans_are_refused() -> None:
    model = MODELS["mlp"]()
    optimizer = torch.optim.SGD(model.parameters())

    with pytest.raises(PrivacySettingError, match="units are of 'patient'; expected the plan's unit='record'"):
        train_privately(model, optimizer, make_plan(), Units.patients([]), lambda ids: (ids, ids), cross_entropy)


@pytest.mark.parametrize(
    ("name", "method"), [("mlp", "book-keeping"), ("convolution", "book-keeping"), ("recurrent", "hooks")]
)
def test_the_way_of_clipping_follows_from_the_model_also_without_records(name: str, method: str) -> None:
    for num_records in (0, 10):
        inputs, targets = adversarial_records()

        result = train(MODELS[name](), inputs[:num_records], targets[:num_records], make_plan())

        assert result.method == method


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("name", ["mlp", "convolution", "recurrent", "bare-parameters"])
@pytest.mark.parametrize("chunk_bytes", [1, 5_000, 20_000])
def test_parts_of_a_batch_add_up_to_the_whole(name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, (inputs, targets) = MODELS[name](), adversarial_records()
    whole = clipped_sum(model, inputs, targets, make_plan(), cross_entropy)

    monkeypatch.setattr(dp_sgd, "CHUNK_BYTES", chunk_bytes)
    in_parts = clipped_sum(model, inputs, targets, make_plan(), cross_entropy)

    torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-5)


def test_a_batch_that_does_not_fit_is_fetched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_sgd, "CHUNK_BYTES", 1)
    inputs, targets = adversarial_records()
    seen: list[list[int]] = []

    def fetch(ids: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(ids.tolist())
        return inputs[ids], targets[ids]

    model = MODELS["mlp"]()
    train_privately(
        model, torch.optim.SGD(model.parameters()), make_plan(steps=2), Units.records(10), fetch, cross_entropy
    )

    assert seen == [[record] for record in range(10)] * 2


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("name", ["mlp", "recurrent"])
def test_a_patients_gradient_is_the_mean_over_the_patients_records(name: str) -> None:
    # Ten copies of a record are one patient with that record's gradient, clipped or not.
    torch.manual_seed(0)
    model, inputs, targets = MODELS[name](), torch.randn(1, 6).repeat(10, 1), torch.ones(10, dtype=torch.int64)
    one = clipped_sum(model, inputs[:1], targets[:1], make_plan(clip_norm=100.0), cross_entropy)
    trained = copy.deepcopy(model)

    train_privately(
        trained,
        torch.optim.SGD(trained.parameters(), lr=1.0),
        replace(make_plan(clip_norm=100.0), unit="patient"),
        Units.patients([7] * 10),
        lambda ids: (inputs[ids], targets[ids]),
        cross_entropy,
    )

    torch.testing.assert_close(weights(model) - weights(trained), one, rtol=1e-4, atol=1e-6)


def test_exactly_the_planned_number_of_steps_reaches_the_optimizer() -> None:
    model = MODELS["mlp"]()
    optimizer = torch.optim.Adam(model.parameters())
    inputs, targets = adversarial_records()

    train_privately(
        model,
        optimizer,
        make_plan(steps=9, sampling_rate=0.05),
        Units.records(10),
        lambda ids: (inputs[ids], targets[ids]),
        cross_entropy,
    )

    assert {int(state["step"]) for state in optimizer.state.values()} == {9}


def test_a_step_hook_of_the_optimizer_sees_noised_gradients_and_can_add_a_term() -> None:
    model = nn.Linear(WIDE, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    seen = []

    def pull_towards_zero(*_: object) -> None:
        assert model.weight.grad is not None
        seen.append(model.weight.grad.std().item())
        model.weight.grad.add_(model.weight.detach(), alpha=0.5)

    optimizer.register_step_pre_hook(pull_towards_zero)

    train_privately(model, optimizer, make_plan(), Units.records(0), lambda ids: (ids, ids), cross_entropy)

    # Noise of standard deviation 5, and a mean of 1 - 0.5 with standard error 5/sqrt(60000) = 0.0204.
    assert seen == [pytest.approx(5.0, rel=0.0145)]
    assert model.weight.mean().item() == pytest.approx(0.5, abs=5 * 0.0205)


def traces(model: nn.Module) -> list[object]:
    """List everything that hangs on modules and parameters, apart from their values."""
    modules = [
        (sorted(vars(module)), len(module._forward_hooks), len(module._backward_hooks), module.training)
        for module in model.modules()
    ]
    parameters = [(sorted(vars(parameter)), parameter.grad) for parameter in model.parameters()]
    return [*modules, *parameters]


@pytest.mark.parametrize("name", MODELS)
def test_the_model_comes_back_as_it_was_apart_from_its_weights(name: str) -> None:
    inputs, targets = adversarial_records()
    model = MODELS[name]()
    loss = binary_cross_entropy if name == "one-logit" else cross_entropy
    before = traces(model)

    train(model, inputs, targets, make_plan(), loss)

    assert traces(model) == before


@pytest.mark.parametrize(
    "failing",
    [weighted_mean, weighted_mean_in_parts, lambda *_: torch.ones(10).requires_grad_()],
    ids=["mean", "mean in parts", "no mean"],
)
def test_the_model_comes_back_unwrapped_and_usable_after_an_error_in_the_middle(failing: LossPerRecord) -> None:
    inputs, targets = adversarial_records()
    model = MODELS["mlp"]()
    before = traces(model)

    with pytest.raises(PrivacyError):
        train(model, inputs, targets, make_plan(), failing)

    assert traces(model) == before
    assert train(model, inputs[:4], targets[:4], make_plan(steps=2)).steps_run == 2


def test_an_error_in_fetch_reaches_the_caller_and_leaves_the_model_unwrapped() -> None:
    model = MODELS["mlp"]()
    before = traces(model)

    def fetch(_: Tensor) -> tuple[Tensor, Tensor]:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        train_privately(model, torch.optim.SGD(model.parameters()), make_plan(), Units.records(5), fetch, cross_entropy)

    assert traces(model) == before


def test_each_module_gets_back_the_mode_it_had() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 2)).eval()
    model[1].train()
    modes = []
    inputs, targets = adversarial_records()

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        modes.append([module.training for module in model.modules()])
        return cross_entropy(outputs, labels)

    train(model, inputs, targets, make_plan(), loss)

    assert modes[0] == [True, True, True, True]
    assert [module.training for module in model.modules()] == [False, False, True, False]


@pytest.mark.usefixtures("no_noise")
def test_two_rounds_in_a_row_on_one_model_equal_two_rounds_on_fresh_copies() -> None:
    torch.manual_seed(0)
    inputs, targets = adversarial_records()
    again = MODELS["mlp"]()
    fresh = copy.deepcopy(again)

    for _ in range(2):
        train(again, inputs, targets, make_plan(nominal_units=10))
        fresh = copy.deepcopy(fresh)
        train(fresh, inputs, targets, make_plan(nominal_units=10))

    assert torch.equal(weights(again), weights(fresh))


def test_frozen_parameters_are_left_alone() -> None:
    model = MODELS["mlp"]()
    model.get_parameter("0.weight").requires_grad_(False)
    before = weights(model[0]), weights(model[2])  # type: ignore[index]
    inputs, targets = adversarial_records()

    train(model, inputs, targets, make_plan())

    frozen = model.get_parameter("0.weight").detach().double().flatten()
    assert torch.equal(frozen, before[0][:48])
    assert not torch.equal(weights(model[2]), before[1])  # type: ignore[index]


def test_a_model_that_is_wrapped_already_is_refused_and_left_wrapped() -> None:
    wrapped = GradSampleModule(MODELS["mlp"]())
    hooks = len(wrapped.autograd_grad_sample_hooks)
    inputs, targets = adversarial_records()

    with pytest.raises(PrivacySettingError, match="expected the bare model"):
        train(wrapped, inputs, targets, make_plan())

    assert len(wrapped.autograd_grad_sample_hooks) == hooks > 0


def test_training_learns_a_simple_task_privately() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(400, 4)
    targets = (inputs[:, 0] > 0).long()
    model = nn.Linear(4, 2)
    plan = make_plan(sampling_rate=0.5, steps=30, nominal_units=400)

    train(model, inputs, targets, plan, learning_rate=2.0)

    assert (model(inputs).argmax(dim=1) == targets).double().mean() > 0.85
