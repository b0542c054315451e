"""The only place that trains on records with noise, and the only one that imports Opacus's training parts.

One step, on one Poisson batch:

    1. every record's own gradient, over all trainable parameters
    2. records whose gradient is not finite are dropped (one such record would otherwise make the whole update NaN)
    3. each remaining gradient is scaled down to L2 norm ``clip_norm``, and all are added up
    4. noise of standard deviation ``noise_multiplier * clip_norm`` is added, also to an empty sum
    5. the result is divided by the *expected* batch size, a public number, and given to the inner optimizer

Sampling, clip norm, noise and divisor all come from one `PrivacyPlan`. Source: Abadi et al., arXiv 1607.00133.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from privacy.bounds import require_count
from privacy.errors import PrivacySettingError, UnsupportedModelError
from privacy.model_check import check_dp_compatible
from privacy.noise import secure_normal
from privacy.plan import PrivacyPlan
from privacy.sampling import sample_poisson

Fetch = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Gives inputs and targets, on the model's device, of the records with these int64 indices (a CPU tensor)."""

LossPerRecord = Callable[[Tensor, Tensor], Tensor]
"""Gives one loss per record, shape [B], from outputs and targets; record i's loss depends on record i only."""


@dataclass(frozen=True, kw_only=True)
class PrivateTrainingResult:
    """All that private training tells besides the weights: nothing that depends on the records.

    Attributes:
        steps_run: Optimizer steps, empty batches included; what the ledger settles.
    """

    steps_run: int


def train_privately(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: PrivacyPlan,
    num_records: int,
    fetch: Fetch,
    loss_per_record: LossPerRecord,
) -> PrivateTrainingResult:
    """Train in place for one round: exactly ``plan.steps_per_round`` noisy steps.

    Guarantees:
        - Changes the weights only through noised sums of clipped per-record gradients, whatever the records hold:
          outliers, NaN, infinity, one class, or no record at all.
        - Batches and noise come from the operating system; seeds have no influence on them.
        - The model comes back unwrapped, without gradients, each module in the mode it had; also after an error.
        - Refuses layers that `check_dp_compatible` refuses, losses that are not one per record or change with the other
          records of the batch, and models whose buffers change (they would leave the site without noise).

    An error can depend on records, so its text stays at the site. After one, discard the weights.
    Terms that do not depend on records (FedProx, weight decay) belong in ``optimizer``, for example as a step
    pre-hook, not in the loss, where they would be clipped with the record or lost.
    Charge the plan's ``round_spend`` to the ledger before the call.

    Args:
        model: The bare model; never called on an empty batch.
        optimizer: Over ``model.parameters()``: all trainable ones. Sees noised mean gradients only.
        plan: Clip norm, noise, sampling rate, steps and the public divisor.
        num_records: The site's true, private number of records; used for sampling only. 0 is allowed.
        fetch: See `Fetch`.
        loss_per_record: See `LossPerRecord`.
    """
    check_dp_compatible(model)
    require_count("num_records", num_records, at_least=0)
    _require_all_parameters(model, optimizer)
    with _wrapped(model) as wrapped:
        noisy = _SecureNoiseOptimizer(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.clip_norm,
            expected_batch_size=plan.expected_batch_size,
            loss_reduction="mean",
        )
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        for _ in range(plan.steps_per_round):
            noisy.zero_grad(set_to_none=True)
            indices = torch.from_numpy(sample_poisson(num_records, plan.sampling_rate))
            if len(indices):
                _backward(wrapped, *fetch(indices), loss_per_record, num_sampled=len(indices))
                _refuse_changed_buffers(model, buffers)
                _drop_unusable_records(model, num_sampled=len(indices))
            else:
                for parameter in noisy.params:
                    parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
            noisy.step()
    return PrivateTrainingResult(steps_run=plan.steps_per_round)


class _SecureNoiseOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types
    """Opacus's clipping and scaling, with noise from the operating system's generator."""

    def add_noise(self) -> None:
        """Set ``grad`` to the clipped sum plus noise; one draw for the whole model, added in double precision."""
        noise = torch.from_numpy(secure_normal(sum(parameter.numel() for parameter in self.params)))
        noise = noise * (self.noise_multiplier * self.max_grad_norm)
        for parameter, part in zip(
            self.params, noise.split([parameter.numel() for parameter in self.params]), strict=True
        ):
            noised = parameter.summed_grad.double() + part.to(parameter.device).view_as(parameter)
            parameter.grad = noised.to(parameter.dtype)


def _backward(
    wrapped: nn.Module, inputs: Tensor, targets: Tensor, loss_per_record: LossPerRecord, *, num_sampled: int
) -> None:
    """Fill ``grad_sample`` of every trainable parameter with each record's gradient."""
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        if len(tensor) != num_sampled:
            raise PrivacySettingError(
                f"fetch gave {len(tensor)} {name} for {num_sampled} indices; expected one per index, in their order"
            )
    outputs = wrapped(inputs)
    losses = loss_per_record(outputs, targets)
    _require_separate_losses(losses, outputs.detach(), targets, loss_per_record)
    torch.autograd.backward(losses.sum())


def _require_separate_losses(losses: Tensor, outputs: Tensor, targets: Tensor, loss_per_record: LossPerRecord) -> None:
    """Refuse a loss of the wrong shape, or whose value for a record changes when the record stands alone.

    A weighted mean, for example, divides by the weights of the whole batch: one record then moves the gradients of all
    others, by twenty times the clip norm in a measured case, and clipping cannot see it.
    """
    if losses.shape != (len(outputs),):
        raise PrivacySettingError(
            f"loss_per_record gave shape {tuple(losses.shape)}; expected ({len(outputs)},), one loss per record; "
            "use reduction='none', and for one logit per record outputs.squeeze(-1)"
        )
    with torch.no_grad():
        alone = loss_per_record(outputs[:1], targets[:1])
    if not torch.allclose(alone, losses.detach()[:1], rtol=1e-3, atol=1e-5, equal_nan=True):
        raise PrivacySettingError(
            "loss_per_record gives a record another loss when it stands alone; expected losses that do not depend on "
            "the other records of the batch; divide by nothing, and multiply class weights as weights[targets]"
        )


def _drop_unusable_records(model: nn.Module, *, num_sampled: int) -> None:
    """Check that every parameter has one gradient per record, and zero those of records with NaN or infinity."""
    per_record = {
        name: _gradients(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    for name, gradients in per_record.items():
        if len(gradients) != num_sampled:
            raise UnsupportedModelError(
                f"parameter {name!r} got {len(gradients)} gradients for {num_sampled} records; expected one each; "
                "keep records in the first dimension of every layer's input"
            )
    is_usable = [torch.isfinite(gradients.reshape(num_sampled, -1)).all(dim=1) for gradients in per_record.values()]
    unusable = ~torch.stack(is_usable).all(dim=0)
    for gradients in per_record.values():
        gradients[unusable] = 0


def _gradients(name: str, parameter: nn.Parameter) -> Tensor:
    gradients = getattr(parameter, "grad_sample", None)
    if not isinstance(gradients, Tensor):
        raise UnsupportedModelError(
            f"parameter {name!r} got no gradient per record; expected every trainable parameter to be used through "
            "its own layer's forward, once per step; freeze it or remove it"
        )
    return gradients


def _refuse_changed_buffers(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Put every buffer back and raise if a forward pass changed one: buffers leave the site without noise."""
    changed = [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]
    if changed:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
        raise UnsupportedModelError(
            f"buffers {changed} changed during a step; expected constant buffers; "
            "use layers that keep no statistics, such as GroupNorm"
        )


def _require_all_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that misses a trainable parameter, whose exact gradient would stay, or has a foreign one."""
    in_optimizer = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in in_optimizer
    ]
    num_foreign = len(in_optimizer - {id(parameter) for parameter in model.parameters()})
    if missing or num_foreign:
        raise PrivacySettingError(
            f"optimizer misses trainable parameters {missing} and holds {num_foreign} of another model; "
            "expected an optimizer over model.parameters()"
        )


@contextmanager
def _wrapped(model: nn.Module) -> Iterator[nn.Module]:
    """Put Opacus's hooks on the model in train mode; take every trace of them off again, also after an error."""
    if hasattr(model, "autograd_grad_sample_hooks"):
        raise PrivacySettingError(f"model={type(model).__name__} has Opacus's hooks already; expected the bare model")
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        with warnings.catch_warnings():
            # True for every first layer, whose inputs are data; parameters get their gradients all the same.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            yield _wrap(model)
    finally:
        _remove_traces(model)
        for module, mode in modes:
            module.training = mode


def _wrap(model: nn.Module) -> nn.Module:
    try:
        wrapped: nn.Module = GradSampleModule(model, loss_reduction="sum")
    except NotImplementedError as error:
        raise UnsupportedModelError(f"model={type(model).__name__}; Opacus refuses a layer: {error}") from error
    return wrapped


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
        for name in ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample", "_norm_sample"):
            parameter.__dict__.pop(name, None)
