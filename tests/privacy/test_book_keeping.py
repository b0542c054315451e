"""Book-keeping gives the sums that clipping each unit's own gradient gives, or refuses."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from privacy.book_keeping import BookKeeping, book_keeping, is_covered
from privacy.errors import UnsupportedModelError
from privacy.layers import SMALLEST_SHARE
from privacy.units import UnitBatch, Units


class Twice(nn.Module):
    """One layer called twice, the second time on its own output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(torch.tanh(self.layer(inputs)))
        return outputs


class Mean(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(dim=1)


class Codes(nn.Module):
    """Inputs as rows of an embedding, from 0 to 6; a record has the same row several times."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.nan_to_num(0.0, 0.0, 0.0).abs().long() % 7


class CodesTwice(nn.Module):
    """One embedding called twice, and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.embedding = Codes(), nn.Embedding(7, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        codes = self.codes(inputs)
        outputs: Tensor = self.embedding(codes).mean(dim=1) + self.embedding(codes[:, 3:5]).sum(dim=1)
        return outputs


class OneCode(Codes):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs)[:, 0]


def frozen_weight(layer: nn.Linear) -> nn.Linear:
    layer.weight.requires_grad_(False)
    return layer


def series(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (3, 24)), *layers, nn.Flatten(), nn.LazyLinear(3))


def volumes(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (2, 3, 4, 3)), *layers, nn.Flatten(), nn.LazyLinear(3))


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (2, 6, 6)), *layers, nn.Flatten(), nn.LazyLinear(3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(72, 3),
    "no bias": lambda: nn.Linear(72, 3, bias=False),
    "frozen weight": lambda: nn.Sequential(frozen_weight(nn.Linear(72, 5)), nn.Tanh(), nn.Linear(5, 3)),
    "mlp": lambda: nn.Sequential(nn.Linear(72, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
    "tokens": lambda: nn.Sequential(nn.Unflatten(1, (9, 8)), nn.Linear(8, 5), nn.LayerNorm(5), Mean(), nn.Linear(5, 3)),
    "few tokens": lambda: nn.Sequential(nn.Unflatten(1, (3, 24)), nn.Linear(24, 40), Mean(), nn.Linear(40, 3)),
    "layer norm": lambda: nn.Sequential(nn.Linear(72, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)),
    "convolution": lambda: images(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2)),
    "strided": lambda: images(nn.Conv2d(2, 16, 3, stride=(3, 2), padding=(0, 1), dilation=2), nn.GroupNorm(4, 16)),
    "few pixels": lambda: images(nn.AvgPool2d(3), nn.Conv2d(2, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 40, 2)),
    "series": lambda: series(nn.Conv1d(3, 4, 5, padding=2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv1d(4, 40, 3)),
    "short series": lambda: series(nn.AvgPool1d(8), nn.Conv1d(3, 40, 2, stride=2, dilation=2), nn.Tanh()),
    "volumes": lambda: volumes(nn.Conv3d(2, 4, (2, 3, 2), padding=(1, 1, 0), bias=False), nn.GroupNorm(2, 4)),
    "few voxels": lambda: volumes(nn.Conv3d(2, 40, 3, stride=(1, 2, 1), padding=(0, 1, 0)), nn.ReLU()),
    "codes": lambda: nn.Sequential(Codes(), nn.Embedding(7, 4, padding_idx=2), nn.Flatten(), nn.Linear(288, 3)),
    "one code": lambda: nn.Sequential(OneCode(), nn.Embedding(7, 4), nn.Linear(4, 3)),
    "frozen codes": lambda: nn.Sequential(
        Codes(), nn.Embedding(7, 4).requires_grad_(False), nn.Flatten(), nn.Linear(288, 3)
    ),
    "codes twice": lambda: nn.Sequential(CodesTwice(), nn.Linear(4, 3)),
    "groups": lambda: images(
        nn.Conv2d(2, 6, 3, padding=1, groups=2), nn.Tanh(), nn.Conv2d(6, 6, 2, groups=6, bias=False)
    ),
    "series in groups": lambda: series(nn.Conv1d(3, 9, 3, stride=2, dilation=2, groups=3), nn.Tanh()),
    "called twice": lambda: nn.Sequential(Twice(nn.Linear(72, 72)), nn.Linear(72, 3)),
    "convolved twice": lambda: images(Twice(nn.Conv2d(2, 2, 3, padding=1)), Twice(nn.GroupNorm(1, 2))),
}
PATIENTS = [0, 0, 0, 1, 2, 2, 3, 4, 5, 5]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]()
    model(torch.zeros(2, 72))  # gives lazy layers their size
    return model


def records() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    scales = torch.tensor([1e-3, 30.0, 1.0, 1.0, -30.0, 0.1, 1e3, 1.0, -1.0, 1.0])
    return scales[:, None] * torch.randn(10, 72, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2])


def losses_of(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def flatten(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.detach().double().flatten() for part in parts])


def by_hand(model: nn.Module, inputs: Tensor, targets: Tensor, batch: UnitBatch, clip_norm: float) -> Tensor:
    """Take each unit's gradient by itself, in float64, clip it, and add it up."""
    model = copy.deepcopy(model).double()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = torch.zeros(sum(parameter.numel() for parameter in trained), dtype=torch.float64)
    for unit in range(batch.num_units):
        rows = batch.records[batch.unit_of_record == unit]
        loss = losses_of(model(inputs[rows].double()), targets[rows]).mean()
        gradient = flatten(list(torch.autograd.grad(loss, trained)))
        total += gradient * min(1.0, clip_norm / float(gradient.norm()))
    return total


def add_clipped(
    keeper: BookKeeping, model: nn.Module, losses: Tensor, batch: UnitBatch, clip_norm: float
) -> list[Tensor]:
    sums = [torch.zeros_like(parameter) for parameter in model.parameters() if parameter.requires_grad]
    keeper.add_clipped(sums, losses, batch, clip_norm)
    return sums


def by_book(model: nn.Module, inputs: Tensor, targets: Tensor, batch: UnitBatch, clip_norm: float) -> Tensor:
    with book_keeping(model) as keeper:
        losses = losses_of(model(inputs[batch.records]), targets[batch.records])
        shares = losses / batch.records_per_unit[batch.unit_of_record]
        return flatten(add_clipped(keeper, model, shares, batch, clip_norm))


@pytest.mark.parametrize("units", [Units.records(10), Units.patients(PATIENTS)], ids=["records", "patients"])
@pytest.mark.parametrize("clip_norm", [0.01, 1.0, 1e6])
@pytest.mark.parametrize("name", MODELS)
def test_the_sum_is_that_of_the_units_own_clipped_gradients(name: str, clip_norm: float, units: Units) -> None:
    model, (inputs, targets), batch = build(name).double(), records(), units.sample(1.0)

    summed = by_book(model, inputs.double(), targets, batch, clip_norm)

    expected = by_hand(model, inputs, targets, batch, clip_norm)
    assert is_covered(model)
    assert float((summed - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("name", ["mlp", "tokens", "convolution", "few pixels", "series", "volumes", "codes"])
def test_float32_loses_no_more_than_its_rounding(name: str) -> None:
    model, (inputs, targets), batch = build(name), records(), Units.patients(PATIENTS).sample(1.0)
    inputs = inputs.clamp(-3, 3)

    summed = by_book(model, inputs, targets, batch, 0.1)

    expected = by_hand(model, inputs, targets, batch, 0.1)
    assert float((summed - expected).norm() / expected.norm()) < 3e-6


@pytest.mark.parametrize("name", ["mlp", "few tokens", "convolution", "few pixels", "few voxels", "called twice"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_patient_with_a_record_that_is_not_finite_counts_as_absent(name: str, value: float) -> None:
    model, (inputs, targets) = build(name), records()
    broken = inputs.clone()
    broken[1, 5] = value
    everyone = Units.patients(PATIENTS).sample(1.0)
    _, others = everyone.split_off_first()

    torch.testing.assert_close(
        by_book(model, broken, targets, everyone, 1.0), by_book(model, inputs, targets, others, 1.0)
    )
    assert broken[1, 5].isnan() or broken[1, 5] == value  # the caller's records are not touched


def test_positions_that_cancel_do_not_hide_a_record_from_clipping() -> None:
    # Two tokens t and t + e with output gradients g and -g: the sum -g e' is 1e-5 of each of its two terms, whose
    # products float32 cannot tell apart: the record would seem to have norm 0 and stay as it is, at norm 1e3.
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    token, shift, gradient = 1e4 * torch.randn(64), 0.1 * torch.randn(64), torch.randn(64)
    inputs = torch.stack([token, token + shift])[None]

    with book_keeping(layer) as keeper:
        outputs = layer(inputs)
        losses = ((outputs[:, 0] - outputs[:, 1]) @ gradient).reshape(1)
        (clipped,) = add_clipped(keeper, layer, losses, Units.records(1).sample(1.0), 1.0)

    assert torch.outer(gradient, shift).norm() > 5
    assert clipped.norm() <= 1 + 1e-3
    assert SMALLEST_SHARE == 1e-4


def test_positions_of_a_row_that_cancel_do_not_hide_a_record_from_clipping() -> None:
    # The row is looked up twice, with gradients g and -(1 - 1e-9) g: float64 products still tell the norm, 1e-9 |g|,
    # from 0, but it may not be taken as smaller than 1e-4 of the two terms.
    layer, gradient = nn.Embedding(2, 64).double(), 1e4 * torch.ones(64, dtype=torch.float64)

    with book_keeping(layer) as keeper:
        outputs = layer(torch.tensor([[1, 1]]))
        losses = ((outputs[:, 0] - (1 - 1e-9) * outputs[:, 1]) @ gradient).reshape(1)
        (clipped,) = add_clipped(keeper, layer, losses, Units.records(1).sample(1.0), 1e-6)

    # Left alone the gradient would be 1e-9 * 1e4 * 8 = 8e-5 long; as 1e-4 * 8e4 * sqrt(2) = 11.3 it shrinks by 1e-7.
    assert clipped.norm() == pytest.approx(8e-5 * 1e-6 / (8 * 2**0.5), rel=1e-3)


@pytest.mark.parametrize("shrink", [1e-23, 1e-22, 1e-20])
def test_inputs_whose_squares_vanish_do_not_hide_a_record_from_clipping(shrink: float) -> None:
    # The gradient is 1e18 times the input, so its norm is 8.5e-5 or more; in float32, 1e-23 squared is zero.
    torch.manual_seed(0)
    layer, inputs = nn.Linear(72, 1, bias=False), torch.full((1, 72), shrink)

    with book_keeping(layer) as keeper:
        losses = 1e18 * layer(inputs)[:, 0]
        (clipped,) = add_clipped(keeper, layer, losses, Units.records(1).sample(1.0), 1e-6)

    assert clipped.norm() <= 1e-6 * (1 + 1e-5)


class IdleCalls(nn.Module):
    """Calls its layer twice more: once without a gradient, once for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(72, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            offset = self.layer(inputs)
        self.layer(2 * inputs)
        outputs: Tensor = self.layer(inputs) + offset
        return outputs


def test_calls_that_the_loss_does_not_depend_on_count_nothing() -> None:
    torch.manual_seed(0)
    model, (inputs, targets), batch = IdleCalls().double(), records(), Units.records(10).sample(1.0)

    summed = by_book(model, inputs.double(), targets, batch, 1.0)

    torch.testing.assert_close(summed, by_hand(model, inputs, targets, batch, 1.0))


# --- which models ----------------------------------------------------------------------------------------------------


class OwnLinear(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.weight * 2, self.bias)


def tied() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, second)


def hooked() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda _layer, _inputs, outputs: 2 * outputs)
    return layer


def with_parameter() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.scale = nn.Parameter(torch.ones(()))
    return layer


@pytest.mark.parametrize(
    "model",
    [
        OwnLinear(4, 4),
        tied(),
        hooked(),
        with_parameter(),
        weight_norm(nn.Linear(4, 4)),
        nn.Embedding(4, 4, max_norm=1.0),
        nn.Embedding(4, 4, scale_grad_by_freq=True),
        nn.Embedding(4, 4, sparse=True),
        nn.EmbeddingBag(4, 4),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding_mode="reflect"),
        nn.ConvTranspose1d(4, 4, 3),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_layer_whose_gradient_is_not_known_is_left_to_the_other_way(model: nn.Module) -> None:
    assert not is_covered(nn.Sequential(nn.Linear(4, 4), model))


def test_frozen_parameters_need_not_be_known() -> None:
    assert is_covered(nn.Sequential(nn.Bilinear(4, 4, 4).requires_grad_(False), nn.Linear(4, 4)))


class ChangesInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(72, 72), nn.Linear(72, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs) * 1.0
        outputs: Tensor = self.second(hidden.detach())
        hidden += 1.0
        sizes: Tensor = self.first(hidden).mean(dim=1, keepdim=True)
        return outputs + sizes


def test_an_input_that_is_changed_after_its_use_is_refused() -> None:
    inputs, targets = records()

    with pytest.raises(UnsupportedModelError, match="Linear was changed in place"):
        by_book(ChangesInput(), inputs, targets, Units.records(10).sample(1.0), 1.0)


def test_hooks_are_taken_off_and_records_forgotten_also_after_an_error() -> None:
    model = build("mlp")
    keepers = []

    def fail() -> None:
        with book_keeping(model) as keeper:
            keepers.append(keeper)
            model(torch.zeros(2, 72))
            assert len(keeper._calls) == 2
            raise OSError("in the middle")

    with pytest.raises(OSError, match="in the middle"):
        fail()

    assert keepers[0]._calls == []
    assert all(not layer._forward_hooks for layer in model.modules())
