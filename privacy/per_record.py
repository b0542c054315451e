"""The only place that asks Opacus for each record's own gradient: for models that `privacy.book_keeping` cannot do.

Holds one gradient of the whole model for every record of a batch.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from privacy.clipping import Method, clip_factors, trainable_parameters
from privacy.errors import PrivacySettingError, UnsupportedModelError
from privacy.units import UnitBatch


class PerRecordGradients:
    """See `privacy.clipping.ClippedSums`; for a model that carries Opacus's hooks."""

    method: Method = "hooks"

    def __init__(self, model: nn.Module) -> None:
        self.bytes_per_record = 0
        self._model = model

    def add_clipped(self, sums: Sequence[Tensor], losses: Tensor, batch: UnitBatch, clip_norm: float) -> None:
        """See the protocol."""
        held = self._count_captured_bytes() + self._count_gradient_bytes(batch)
        self.bytes_per_record = max(self.bytes_per_record, held // len(losses))
        torch.autograd.backward(losses.sum())
        gradients = [self._take(name, parameter, batch) for name, parameter in trainable_parameters(self._model)]
        norms = torch.stack([_norm(gradient) for gradient in gradients]).norm(dim=0)
        if not norms.isfinite().all():
            for gradient in gradients:
                gradient[~norms.isfinite()] = 0
        factors = clip_factors(norms, clip_norm)
        for total, gradient in zip(sums, gradients, strict=True):
            total.add_((factors.to(gradient.dtype) @ gradient).view_as(total))

    def _take(self, name: str, parameter: nn.Parameter, batch: UnitBatch) -> Tensor:
        """Take the gradients off the parameter and add them up by unit; shape [U, numbers of the parameter]."""
        gradients = getattr(parameter, "grad_sample", None)
        parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]  # Opacus's own attribute
        num_records = len(batch.records)
        if not isinstance(gradients, Tensor):
            raise UnsupportedModelError(
                f"parameter {name!r} got no gradient per record; expected every trainable parameter to be used "
                "through its own layer's forward, once per step; freeze it or remove it"
            )
        if len(gradients) != num_records:
            raise UnsupportedModelError(
                f"parameter {name!r} got {len(gradients)} gradients for {num_records} records; expected one each; "
                "keep records in the first dimension of every layer's input"
            )
        gradients = gradients.reshape(num_records, -1)
        if batch.has_one_record_each:
            return gradients
        by_unit = gradients.new_zeros(batch.num_units, gradients.shape[1])
        return by_unit.index_add_(0, batch.unit_of_record.to(gradients.device), gradients)

    def _count_captured_bytes(self) -> int:
        captured = [inputs for module in self._model.modules() for inputs in getattr(module, "activations", [])]
        return sum(tensor.nbytes for inputs in captured for tensor in inputs)

    def _count_gradient_bytes(self, batch: UnitBatch) -> int:
        size = sum(parameter.nbytes for _, parameter in trainable_parameters(self._model))
        return size * (len(batch.records) + (0 if batch.has_one_record_each else batch.num_units))


def _norm(by_unit: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(by_unit, dim=1, dtype=torch.float64)
    return norms


@contextmanager
def per_record_gradients(model: nn.Module) -> Iterator[PerRecordGradients]:
    """Put Opacus's hooks on the model in train mode; take every trace of them off again, also after an error."""
    try:
        with warnings.catch_warnings():
            # True for every first layer, whose inputs are data; parameters get their gradients all the same.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            _put_hooks(model)
            yield PerRecordGradients(model)
    finally:
        _remove_traces(model)


def refuse_wrapped(model: nn.Module) -> None:
    """Raise if Opacus's hooks are on the model already: their gradients are somebody else's."""
    if hasattr(model, "autograd_grad_sample_hooks"):
        raise PrivacySettingError(f"model={type(model).__name__} has Opacus's hooks already; expected the bare model")


def _put_hooks(model: nn.Module) -> None:
    """Opacus takes seconds to import, so it is imported here: most models never need its hooks."""
    from opacus import GradSampleModule

    try:
        GradSampleModule(model, loss_reduction="sum")
    except NotImplementedError as error:
        raise UnsupportedModelError(f"model={type(model).__name__}; Opacus refuses a layer: {error}") from error


def _remove_traces(model: nn.Module) -> None:
    """Remove Opacus's hooks and every tensor it hung on modules and parameters.

    Opacus's own clean-up leaves the captured inputs of an interrupted step on the layers: records in memory, and the
    next step would take them for its own.
    """
    for handle in getattr(model, "autograd_grad_sample_hooks", ()):
        handle.remove()
    for module in model.modules():
        for name in ("autograd_grad_sample_hooks", "activations", "max_batch_len", "ft_compute_sample_grad"):
            module.__dict__.pop(name, None)
    for parameter in model.parameters():
        parameter.grad = None
        for name in ("grad_sample", "_forward_counter", "_current_grad_sample", "_norm_sample"):
            parameter.__dict__.pop(name, None)
