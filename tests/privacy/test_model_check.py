"""Every layer that breaks per-record clipping or stores exact data is refused, with its place, type and alternative."""

import copy

import pytest
import torch
from opacus.layers import DPGRU, DPLSTM, DPMultiheadAttention
from torch import Tensor, nn

from privacy.errors import UnsupportedModelError
from privacy.model_check import check_dp_compatible


class RenamedBatchNorm(nn.BatchNorm1d):
    pass


class RenamedLSTM(nn.LSTM):
    pass


class ScaleByRunningMean(nn.Module):
    """A hand-written layer that is trainable and keeps a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("mean", torch.zeros(4))


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


REFUSED = [
    (nn.BatchNorm1d(4), "GroupNorm"),
    (nn.BatchNorm2d(4), "GroupNorm"),
    (nn.BatchNorm3d(4), "GroupNorm"),
    (nn.SyncBatchNorm(4), "GroupNorm"),
    (nn.LazyBatchNorm1d(), "GroupNorm"),
    (RenamedBatchNorm(4), "GroupNorm"),
    (nn.BatchNorm1d(4, affine=False), "GroupNorm"),
    (nn.BatchNorm1d(4, track_running_stats=False), "GroupNorm"),
    (frozen(nn.BatchNorm1d(4)), "GroupNorm"),
    (nn.BatchNorm1d(4).eval(), "GroupNorm"),
    (frozen(nn.BatchNorm2d(4, affine=False)).eval(), "GroupNorm"),
    (nn.InstanceNorm1d(4, track_running_stats=True), "track_running_stats=False"),
    (nn.InstanceNorm2d(4, track_running_stats=True, affine=True), "track_running_stats=False"),
    (nn.InstanceNorm3d(4, track_running_stats=True).eval(), "track_running_stats=False"),
    (nn.Embedding(4, 4, max_norm=1.0), "max_norm=None"),
    (nn.EmbeddingBag(4, 4, max_norm=1.0), "max_norm=None"),
    (frozen(nn.Embedding(4, 4, max_norm=1.0)), "max_norm=None"),
    (ScaleByRunningMean(), "keep buffers in a layer of their own"),
    (nn.LSTM(4, 4), "opacus.layers.DPLSTM"),
    (RenamedLSTM(4, 4), "opacus.layers.DPLSTM"),
    (nn.GRU(4, 4), "opacus.layers.DPGRU"),
    (nn.MultiheadAttention(4, 2), "opacus.layers.DPMultiheadAttention"),
]


@pytest.mark.parametrize(("layer", "alternative"), REFUSED, ids=lambda value: str(value)[:60])
def test_an_unsafe_layer_is_refused_with_its_place_type_and_alternative(layer: nn.Module, alternative: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"inner": layer}))

    with pytest.raises(UnsupportedModelError) as raised:
        check_dp_compatible(model)

    assert "'1.inner'" in str(raised.value)
    assert type(layer).__name__ in str(raised.value)
    assert alternative in str(raised.value)


def test_an_unsafe_layer_deep_inside_a_ready_made_block_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2))

    with pytest.raises(UnsupportedModelError, match=r"'1\.self_attn' is MultiheadAttention"):
        check_dp_compatible(model)


def test_a_model_that_is_itself_an_unsafe_layer_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="the model itself"):
        check_dp_compatible(nn.LSTM(4, 4))


def test_a_model_without_trainable_parameters_is_refused() -> None:
    for model in (nn.Tanh(), frozen(nn.Linear(2, 2))):
        with pytest.raises(UnsupportedModelError, match="no trainable parameter"):
            check_dp_compatible(model)


class BareParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * inputs


class ConstantBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(4))


ACCEPTED = [
    nn.Conv2d(1, 4, 3),
    nn.GroupNorm(2, 4),
    nn.LayerNorm(4),
    nn.InstanceNorm2d(4, affine=True),
    nn.InstanceNorm2d(4),
    nn.Embedding(4, 4),
    nn.Dropout(0.5),
    DPLSTM(4, 4),
    DPGRU(4, 4),
    DPMultiheadAttention(4, 2),
    frozen(nn.LSTM(4, 4)),
    BareParameter(),
    ConstantBuffer(),
]


@pytest.mark.parametrize("layer", ACCEPTED, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("is_training", [True, False])
def test_a_safe_layer_is_accepted_in_either_mode_and_left_unchanged(layer: nn.Module, is_training: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer).train(is_training)
    before = copy.deepcopy(model.state_dict())

    check_dp_compatible(model)

    assert all(module.training is is_training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
