"""The only place that knows the layers of `privacy.book_keeping`: each one's gradient for each unit, and its norm.

Shapes: R records, U units, T positions where a layer is applied (pixels, tokens, calls), I numbers in, O numbers out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from privacy.units import UnitBatch

Calls = list[tuple[Tensor, Tensor]]
"""Input of each call of a layer, and the gradient of what came out; records in the first dimension of both."""

SMALLEST_SHARE = 1e-4
"""A norm below this share of |a| |g| is taken as this share: sums that cancel so far have lost their precision."""

SHORT_ROW = 1024
"""Numbers whose norm float32 gives to its rounding: the error is some 1e-6 of it."""

LARGEST_LOSS = SHORT_ROW**0.5 * 2.0**-63
"""Norm of ``SHORT_ROW`` numbers of which each vanishes in float32 when squared, or is rounded there: below 2^-126."""

_LARGEST_LOSS = torch.tensor(LARGEST_LOSS)  # torch would make a tensor of the number each time


class Part(Protocol):
    """The gradient of one or two parameters of a layer for every unit, stored or implied."""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Those it is about."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory that it holds and needs."""
        ...

    def norms(self) -> list[Tensor]:
        """L2 norm of each unit's gradient, of each parameter, shape [U]; too small by float32 rounding at most."""
        ...

    def drop(self, units: Tensor) -> None:
        """Make the gradients of these units zero, also where they are not finite; a mask of shape [U]."""
        ...

    def weighted_sums(self, factors: Tensor) -> list[Tensor]:
        """Sum over units of factor times gradient, for each parameter in its shape."""
        ...


class Stored:
    """Every unit's gradient is at hand, shape [U, ...] or, of a weight transposed, [U, I, O]."""

    def __init__(self, parameter: Tensor, by_unit: Tensor, *, is_transposed: bool = False) -> None:
        self.parameters = (parameter,)
        self._by_unit, self._is_transposed = by_unit.flatten(1), is_transposed

    @property
    def num_bytes(self) -> int:
        """See the protocol."""
        return self._by_unit.nbytes

    def norms(self) -> list[Tensor]:
        """See the protocol."""
        return [_norm(self._by_unit)]

    def drop(self, units: Tensor) -> None:
        """See the protocol."""
        self._by_unit = self._by_unit.masked_fill(units[:, None], 0.0)

    def weighted_sums(self, factors: Tensor) -> list[Tensor]:
        """See the protocol."""
        (parameter,) = self.parameters
        total = factors @ self._by_unit
        if self._is_transposed:
            total = total.view(-1, len(parameter)).T
        return [total.reshape_as(parameter)]


class Implied:
    """Only a and g of each call are at hand; ``contract`` makes the sum of all records' gradients from them."""

    def __init__(
        self,
        parameter: Tensor,
        calls: Calls,
        batch: UnitBatch,
        contract: Callable[[Tensor, Tensor], Tensor],
        norms: Tensor,
    ) -> None:
        self.parameters = (parameter,)
        self._calls, self._batch, self._contract, self._norms = calls, batch, contract, norms

    @property
    def num_bytes(self) -> int:
        """See the protocol."""
        return sum(inputs.nbytes + 2 * gradients.nbytes for inputs, gradients in self._calls)

    def norms(self) -> list[Tensor]:
        """See the protocol."""
        return [self._norms]

    def drop(self, units: Tensor) -> None:
        """See the protocol."""
        records = self._of_records(units)
        self._calls = [
            (_zero_records(inputs, records), _zero_records(gradients, records)) for inputs, gradients in self._calls
        ]

    def weighted_sums(self, factors: Tensor) -> list[Tensor]:
        """See the protocol."""
        weights = self._of_records(factors)
        parts = [self._contract(inputs, gradients * _like(weights, gradients)) for inputs, gradients in self._calls]
        return [sum(parts[1:], start=parts[0])]

    def _of_records(self, by_unit: Tensor) -> Tensor:
        return by_unit if self._batch.has_one_record_each else by_unit[self._batch.unit_of_record.to(by_unit.device)]


class OuterProduct:
    """The common case on a short way: a linear layer used once a unit, so g a' for the weight and g for the bias."""

    def __init__(self, layer: nn.Linear, a_UI: Tensor, g_UO: Tensor) -> None:
        self.parameters = (layer.weight, layer.bias)
        self._a_UI, self._g_UO = a_UI, g_UO

    @property
    def num_bytes(self) -> int:
        """See the protocol."""
        return self._a_UI.nbytes + 2 * self._g_UO.nbytes

    def norms(self) -> list[Tensor]:
        """See the protocol."""
        g = _norm(self._g_UO)
        return [_norm(self._a_UI) * g, g]

    def drop(self, units: Tensor) -> None:
        """See the protocol."""
        self._a_UI, self._g_UO = _zero_records(self._a_UI, units), _zero_records(self._g_UO, units)

    def weighted_sums(self, factors: Tensor) -> list[Tensor]:
        """See the protocol."""
        weighted = self._g_UO * factors.unsqueeze(1)
        return [weighted.T @ self._a_UI, weighted.sum(dim=0)]


def _zero_records(values: Tensor, records: Tensor) -> Tensor:
    return values.masked_fill(_like(records, values), 0.0)


def _like(by_record: Tensor, values: Tensor) -> Tensor:
    return by_record.view(-1, *[1] * (values.dim() - 1))


@dataclass(frozen=True, kw_only=True)
class LayerGradient:
    """A layer's gradient for each unit.

    Attributes:
        parts: For the trainable parameters of the layer.
        scratch_bytes: Memory that finding the norms took.
    """

    parts: list[Part]
    scratch_bytes: int


def _linear(layer: nn.Linear, calls: Calls, batch: UnitBatch) -> LayerGradient:
    is_trainable = layer.weight.requires_grad and layer.bias is not None and layer.bias.requires_grad
    if is_trainable and len(calls) == 1 and calls[0][0].dim() == 2 and batch.has_one_record_each:
        return LayerGradient(parts=[OuterProduct(layer, *calls[0])], scratch_bytes=0)
    a_RTI = _join([inputs.reshape(inputs.shape[0], -1, layer.in_features) for inputs, _ in calls])
    g_RTO = _join([gradients.reshape(gradients.shape[0], -1, layer.out_features) for _, gradients in calls])
    implied = partial(Implied, layer.weight, [(a_RTI, g_RTO)], batch, _contract_linear)
    return _outer_products(layer, a_RTI, g_RTO, batch, implied)


def _contract_linear(a_RTI: Tensor, g_RTO: Tensor) -> Tensor:
    return g_RTO.flatten(0, 1).T @ a_RTI.flatten(0, 1)


def _conv(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, calls: Calls, batch: UnitBatch) -> LayerGradient:
    geometry: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    a_RTI = _join([_patches(layer, inputs) for inputs, _ in calls])
    g_RTO = _join([gradients.flatten(2).transpose(1, 2) for _, gradients in calls])
    if layer.groups > 1:
        return _by_group(layer, a_RTI, g_RTO, batch)
    shape, conv_weight = layer.weight.shape, _CONV_WEIGHTS[type(layer)]

    def contract(inputs: Tensor, gradients: Tensor) -> Tensor:
        total: Tensor = conv_weight(inputs, shape, gradients, **geometry)
        return total

    implied = partial(Implied, layer.weight, calls, batch, contract)
    return _outer_products(layer, a_RTI, g_RTO, batch, implied)


def _by_group(
    layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, a_RTI: Tensor, g_RTO: Tensor, batch: UnitBatch
) -> LayerGradient:
    """Each group of channels has outer products of its own; stored, for they are few."""
    a_UTGI, g_UTGO = (_by_unit(each, batch).unflatten(2, (layer.groups, -1)) for each in (a_RTI, g_RTO))
    parts: list[Part] = []
    if layer.weight.requires_grad:
        parts.append(Stored(layer.weight, torch.einsum("utgi,utgo->ugoi", a_UTGI, g_UTGO)))
    if layer.bias is not None and layer.bias.requires_grad:
        parts.append(Stored(layer.bias, g_UTGO.sum(dim=1)))
    return LayerGradient(parts=parts, scratch_bytes=3 * (a_UTGI.nbytes + g_UTGO.nbytes))


_CONV_WEIGHTS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: conv1d_weight,
    nn.Conv2d: conv2d_weight,
    nn.Conv3d: conv3d_weight,
}


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    """What the kernel sees at each position, shape [R, T, I]; as `nn.Unfold`, which takes three times as long."""
    num_axes = inputs.dim() - 2
    paddings = [int(padding) for padding in layer.padding]  # `is_covered` takes no words
    windows = functional.pad(inputs, [side for padding in reversed(paddings) for side in (padding, padding)])
    geometry = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for axis, (kernel, stride, dilation) in enumerate(geometry, start=2):
        windows = windows.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    positions, kernels = range(2, 2 + num_axes), range(2 + num_axes, 2 + 2 * num_axes)
    in_one_row = windows.permute(0, 1, *kernels, *positions).flatten(2 + num_axes).flatten(1, 1 + num_axes)
    return in_one_row.transpose(1, 2)


def _outer_products(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d,
    a_RTI: Tensor,
    g_RTO: Tensor,
    batch: UnitBatch,
    implied: Callable[[Tensor], Part],
) -> LayerGradient:
    """Per unit, the weight's gradient is the sum over positions of g times a, the bias's the sum of g."""
    a_UTI, g_UTO = _by_unit(a_RTI, batch), _by_unit(g_RTO, batch)
    (_, T, I), O = a_UTI.shape, g_UTO.shape[2]  # noqa: E741  numbers in and out
    parts: list[Part] = []
    if layer.weight.requires_grad:
        if T == 1:
            parts.append(implied(_norm(a_UTI) * _norm(g_UTO)))
        elif 2 * T * (I + O) < I * O:
            parts.append(implied(_norm_of_sum(a_UTI, g_UTO)))
        else:
            # This order takes a third of the time of the other where a is made of patches.
            parts.append(Stored(layer.weight, a_UTI.transpose(1, 2) @ g_UTO, is_transposed=True))
    if layer.bias is not None and layer.bias.requires_grad:
        parts.append(Stored(layer.bias, g_UTO.sum(dim=1)))
    return LayerGradient(parts=parts, scratch_bytes=3 * (a_UTI.nbytes + g_UTO.nbytes))


def _norm_of_sum(a_UTI: Tensor, g_UTO: Tensor) -> Tensor:
    """Norm of sum_t g_t a_t' from the products of positions: its square is sum_{s,t} (a_s . a_t) (g_s . g_t).

    The terms can cancel. In float32 a record made for it would seem to have norm 0 and leave unclipped, so the sum is
    in float64, and a norm below ``SMALLEST_SHARE`` of |a| |g| is taken as that share, which clips more.
    """
    a, g = a_UTI.double(), g_UTO.double()
    squared = ((a @ a.transpose(1, 2)) * (g @ g.transpose(1, 2))).sum(dim=(1, 2))
    return squared.clamp(min=0.0).sqrt().maximum(SMALLEST_SHARE * _norm(a_UTI) * _norm(g_UTO))


def _embedding(layer: nn.Embedding, calls: Calls, batch: UnitBatch) -> LayerGradient:
    """Per unit, the gradient of a row is the sum of g over the positions that looked this row up."""
    if not layer.weight.requires_grad:
        return LayerGradient(parts=[], scratch_bytes=0)
    rows_RT1 = _join([rows.reshape(len(rows), -1, 1) for rows, _ in calls])
    g_RTO = _join([gradients.reshape(len(gradients), -1, layer.embedding_dim) for _, gradients in calls])
    if layer.padding_idx is not None:
        g_RTO = g_RTO.masked_fill(rows_RT1 == layer.padding_idx, 0.0)
    rows_UT1, g_UTO = _by_unit(rows_RT1, batch), _by_unit(g_RTO, batch)
    norms = _norm(g_UTO) if g_UTO.shape[1] == 1 else _norm_of_row_sums(rows_UT1, g_UTO)

    def contract(rows: Tensor, gradients: Tensor) -> Tensor:
        return torch.zeros_like(layer.weight).index_add_(0, rows.flatten(), gradients.flatten(0, 1))

    part = Implied(layer.weight, [(rows_RT1, g_RTO)], batch, contract, norms)
    return LayerGradient(parts=[part], scratch_bytes=3 * g_UTO.nbytes + 8 * g_UTO.shape[1] * rows_UT1.numel())


def _norm_of_row_sums(rows_UT1: Tensor, g_UTO: Tensor) -> Tensor:
    """Norm of all rows' sums of g: its square is the sum of g_s . g_t over positions s, t of the same row.

    The terms can cancel; see `_norm_of_sum`.
    """
    g = g_UTO.double()
    squared = ((rows_UT1 == rows_UT1.transpose(1, 2)) * (g @ g.transpose(1, 2))).sum(dim=(1, 2))
    return squared.clamp(min=0.0).sqrt().maximum(SMALLEST_SHARE * _norm(g_UTO))


def _group_norm(layer: nn.GroupNorm, calls: Calls, batch: UnitBatch) -> LayerGradient:
    products, gradients = [], []
    for inputs, gradient in calls:
        normalised = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
        products.append((gradient * normalised).flatten(2).sum(dim=2))
        gradients.append(gradient.flatten(2).sum(dim=2))
    return _scale_and_shift(layer, products, gradients, batch)


def _layer_norm(layer: nn.LayerNorm, calls: Calls, batch: UnitBatch) -> LayerGradient:
    shape = tuple(layer.normalized_shape)
    products, gradients = [], []
    for inputs, gradient in calls:
        normalised = functional.layer_norm(inputs, shape, eps=layer.eps)
        products.append((gradient * normalised).reshape(inputs.shape[0], -1, *shape).sum(dim=1))
        gradients.append(gradient.reshape(inputs.shape[0], -1, *shape).sum(dim=1))
    return _scale_and_shift(layer, products, gradients, batch)


def _scale_and_shift(
    layer: nn.GroupNorm | nn.LayerNorm, products: list[Tensor], gradients: list[Tensor], batch: UnitBatch
) -> LayerGradient:
    """Per unit, the scale's gradient is the sum over positions of g times the normalised input, the shift's of g."""
    parts: list[Part] = [
        Stored(parameter, _by_unit(sum(by_record[1:], start=by_record[0]).unsqueeze(1), batch).sum(dim=1))
        for parameter, by_record in ((layer.weight, products), (layer.bias, gradients))
        if parameter is not None and parameter.requires_grad
    ]
    return LayerGradient(parts=parts, scratch_bytes=0)


def _by_unit(x_RTN: Tensor, batch: UnitBatch) -> Tensor:
    """Put a unit's records behind one another, as further positions; zeros fill up the units with fewer records."""
    if batch.has_one_record_each:
        return x_RTN
    unit = batch.unit_of_record.to(x_RTN.device)
    counts = batch.records_per_unit.to(x_RTN.device)
    rank = torch.arange(len(unit), device=x_RTN.device) - (counts.cumsum(0) - counts)[unit]
    x_UKTN = x_RTN.new_zeros(batch.num_units, int(counts.max()), *x_RTN.shape[1:])
    x_UKTN[unit, rank] = x_RTN
    return x_UKTN.flatten(1, 2)


def _norm(by_unit: Tensor) -> Tensor:
    """L2 norm over all but the first dimension; never too small by more than float32 rounding.

    Short rows of float32 are added up as they are, which takes a third of the time: few terms round little, what
    vanished when squared is put back as ``LARGEST_LOSS``, and what overflowed is infinite, so its unit is dropped.
    Others give float64.
    """
    rows = by_unit if by_unit.dim() == 2 else by_unit.flatten(1)
    if rows.dtype == torch.float32 and rows.shape[1] <= SHORT_ROW:
        short: Tensor = torch.linalg.vector_norm(rows, dim=1).add_(_LARGEST_LOSS)
        return short
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms


def _join(calls: list[Tensor]) -> Tensor:
    return calls[0] if len(calls) == 1 else torch.cat(calls, dim=1)


LAYER_GRADIENTS: dict[type[nn.Module], Callable[[Any, Calls, UnitBatch], LayerGradient]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.Embedding: _embedding,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
}
"""What is known about each layer, by its exact type: a subclass may compute something else."""
