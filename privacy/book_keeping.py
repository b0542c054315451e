"""The only place that clips without per-record gradients: "book-keeping", for models made of a few known layers.

A layer's gradient for one unit is a sum of outer products of what went in (a) and the gradient of what came out (g).
Forward hooks keep both, one backward pass gives every g and no parameter's gradient, and each unit's norm follows from
its a and g. The clipped sum is then one matrix product a layer, of a and the weighted g. The result is the one of
clipping per-record gradients. Sources: Goodfellow, arXiv 1510.01799; Bu et al., arXiv 2205.10683 and 2210.00038.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from privacy.clipping import Method, clip_factors, trainable_parameters
from privacy.errors import UnsupportedModelError
from privacy.layers import LAYER_GRADIENTS, Calls, LayerGradient
from privacy.units import UnitBatch


def is_covered(model: nn.Module) -> bool:
    """Whether each trainable parameter belongs to one known layer, and to no second one.

    >>> is_covered(nn.Sequential(nn.Linear(2, 2), nn.Tanh())), is_covered(nn.Bilinear(2, 2, 2))
    (True, False)
    """
    owned = [
        (parameter, layer)
        for layer in model.modules()
        for parameter in layer.parameters(recurse=False)
        if parameter.requires_grad
    ]
    is_known = all(type(layer) in LAYER_GRADIENTS and _is_plain(layer) for _, layer in owned)
    return is_known and len({id(parameter) for parameter, _ in owned}) == len(owned)


def _is_plain(layer: nn.Module) -> bool:
    """Whether `LAYER_GRADIENTS` can compute the layer: an ordinary convolution or embedding, and nothing added."""
    has_hooks = bool(layer._forward_hooks or layer._forward_pre_hooks)
    if has_hooks or {name for name, _ in layer.named_parameters()} - {"weight", "bias"}:
        return False
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return True


class _Call(NamedTuple):
    """One call of a layer: its input, and where autograd will have the gradient of its output."""

    layer: nn.Module
    inputs: Tensor
    version: int
    output: GradientEdge


class BookKeeping:
    """See `privacy.clipping.ClippedSums`; for a model that carries the hooks of `book_keeping`."""

    method: Method = "book-keeping"

    def __init__(self, model: nn.Module) -> None:
        self.bytes_per_record = 0
        self._calls: list[_Call] = []
        self._layers = {
            name: layer
            for name, layer in model.named_modules()
            if any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        }
        parameters = [parameter for _, parameter in trainable_parameters(model)]
        self._position: dict[Tensor, int] = {parameter: index for index, parameter in enumerate(parameters)}

    @property
    def layers(self) -> Iterable[nn.Module]:
        """Those with trainable parameters."""
        return self._layers.values()

    def keep_call(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Remember a call; the forward hook of every layer."""
        (given,) = inputs
        if output.requires_grad:
            self._calls.append(
                _Call(layer=layer, inputs=given.detach(), version=given._version, output=get_gradient_edge(output))
            )

    def add_clipped(self, sums: Sequence[Tensor], losses: Tensor, batch: UnitBatch, clip_norm: float) -> None:
        """See the protocol."""
        layers = self._layer_gradients(losses, batch)
        parts = [part for layer in layers for part in layer.parts]
        held = sum(part.num_bytes for part in parts) + max(layer.scratch_bytes for layer in layers)
        self.bytes_per_record = max(self.bytes_per_record, held // len(losses))
        norms = torch.stack([norms for part in parts for norms in part.norms()]).double().square_().sum(dim=0).sqrt_()
        if not math.isfinite(norms.sum()):
            for part in parts:
                part.drop(~norms.isfinite())
        factors = clip_factors(norms, clip_norm).to(losses.dtype)
        for part in parts:
            for parameter, weighted in zip(part.parameters, part.weighted_sums(factors), strict=True):
                sums[self._position[parameter]].add_(weighted)

    def _layer_gradients(self, losses: Tensor, batch: UnitBatch) -> list[LayerGradient]:
        calls, self._calls = self._calls, []
        backward = torch.autograd.grad(losses.sum(), [call.output for call in calls], allow_unused=True)
        by_layer: dict[nn.Module, Calls] = {layer: [] for layer in self._layers.values()}
        for call, gradient in zip(calls, backward, strict=True):
            if gradient is not None:
                _refuse_changed_input(call)
                by_layer[call.layer].append((call.inputs, gradient))
        for name, layer in self._layers.items():
            _check_rows(name, by_layer[layer], len(losses))
        return [LAYER_GRADIENTS[type(layer)](layer, kept, batch) for layer, kept in by_layer.items()]

    def forget(self) -> None:
        """Let go of the records of an interrupted step."""
        self._calls = []


def _refuse_changed_input(call: _Call) -> None:
    if call.inputs._version != call.version:
        raise UnsupportedModelError(
            f"the input of a {type(call.layer).__name__} was changed in place after its use; expected the model to "
            "leave it alone; replace operations such as x += y by x = x + y"
        )


def _check_rows(name: str, calls: Calls, num_records: int) -> None:
    """Check that the layer was used, with one row of input and output for each record."""
    if not calls:
        raise UnsupportedModelError(
            f"parameter '{name}.weight' got no gradient per record; expected every trainable parameter to be used "
            "through its own layer's forward; freeze it or remove it"
        )
    for inputs, gradients in calls:
        if not inputs.shape[0] == gradients.shape[0] == num_records:
            raise UnsupportedModelError(
                f"parameter '{name}.weight' got {len(inputs)} gradients for {num_records} records; expected one each; "
                "keep records in the first dimension of every layer's input"
            )


@contextmanager
def book_keeping(model: nn.Module) -> Iterator[BookKeeping]:
    """Put our hooks on the model's layers; take them off again, also after an error."""
    keeper = BookKeeping(model)
    handles = [layer.register_forward_hook(keeper.keep_call) for layer in keeper.layers]
    try:
        yield keeper
    finally:
        keeper.forget()
        for handle in handles:
            handle.remove()
