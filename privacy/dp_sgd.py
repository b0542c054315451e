"""The only place that trains on records with noise.

One step, on one Poisson batch of units, which are records or patients:

    1. every unit's own gradient, over all trainable parameters: the mean over its records
    2. units whose gradient is not finite are dropped (one such unit would otherwise make the whole update NaN)
    3. each remaining gradient is scaled down to L2 norm ``clip_norm``, and all are added up
    4. noise of standard deviation ``noise_multiplier * clip_norm`` is added, also to an empty sum
    5. the result is divided by the *expected* batch size, a public number, and given to the inner optimizer

Sampling, clip norm, noise and divisor all come from one `PrivacyPlan`. Source: Abadi et al., arXiv 1607.00133.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from privacy.book_keeping import book_keeping, is_covered
from privacy.bounds import require_count
from privacy.clipping import ClippedSums, Method, trainable_parameters
from privacy.errors import PrivacySettingError, UnsupportedModelError
from privacy.model_check import check_dp_compatible
from privacy.noise import FOUR_DRAW_COUNT, NormalSource
from privacy.per_record import per_record_gradients, refuse_wrapped
from privacy.plan import PrivacyPlan
from privacy.units import UnitBatch, Units

CHUNK_BYTES = 16 * 2**20
"""A batch whose activations and gradients would take more, about, is worked off in parts; the noise is added once."""

_CHECKED_BATCHES = 10
"""Batches of two or more records in which a round's loss is held against the loss of a record alone."""

_NOISE_BLOCK = 2**20

Fetch = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Gives inputs and targets, on the model's device, of the records with these int64 indices (a CPU tensor)."""

LossPerRecord = Callable[[Tensor, Tensor], Tensor]
"""Gives one loss per record, shape [B], from outputs and targets; record i's loss depends on record i only."""


@dataclass(frozen=True, kw_only=True)
class PrivateTrainingResult:
    """All that private training tells besides the weights: nothing that depends on the records.

    Attributes:
        steps_run: Optimizer steps, empty batches included; what the ledger settles.
        method: How gradients were clipped; follows from the model alone.
    """

    steps_run: int
    method: Method


def train_privately(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: PrivacyPlan,
    units: Units,
    fetch: Fetch,
    loss_per_record: LossPerRecord,
    steps: int | None = None,
) -> PrivateTrainingResult:
    """Train in place for one round, or the granted part of one: exactly ``steps`` noisy steps.

    Guarantees:
        - Changes the weights only through noised sums of clipped per-unit gradients, whatever the records hold:
          outliers, NaN, infinity, one class, or no record at all.
        - Batches and noise come from the operating system; seeds have no influence on them.
        - The model comes back without hooks and gradients, each module in the mode it had; also after an error.
        - Refuses layers that `check_dp_compatible` refuses, losses that are not one per record, losses that change with
          the other records in a round's first batches, and models whose buffers change, whose change has no noise.
        - Memory does not grow with the batch: see ``CHUNK_BYTES``. The noise does not depend on it.

    An error can depend on records, so its text stays at the site. After one, discard the weights.
    Terms that do not depend on records (FedProx, weight decay) belong in ``optimizer``, for example as a step
    pre-hook, not in the loss, where they would be clipped with the record or lost.
    Charge the plan's ``round_spend``, or the granted part of it, to the ledger before the call.

    Args:
        model: The bare model; never called on an empty batch.
        optimizer: Over ``model.parameters()``: all trainable ones. Sees noised mean gradients only.
        plan: Unit, clip norm, noise, sampling rate, steps and the public divisor.
        units: The site's true units, private; as many as there are, also none.
        fetch: See `Fetch`.
        loss_per_record: See `LossPerRecord`.
        steps: From 1 to ``plan.steps_per_round``, which it is if not given.
    """
    check_dp_compatible(model)
    refuse_wrapped(model)
    _require_unit(units, plan)
    steps_to_run = _require_steps(steps, plan)
    _require_all_parameters(model, optimizer)
    with _in_train_mode(model), _constant_buffers(model), _clipping(model) as clipping:
        step = _Step(model, clipping, plan, fetch, loss_per_record)
        for _ in range(steps_to_run):
            step.set_gradients(units.sample(plan.sampling_rate))
            optimizer.step()
    return PrivateTrainingResult(steps_run=steps_to_run, method=clipping.method)


class _Step:
    """Puts the noised mean gradient of one batch on the parameters."""

    def __init__(
        self,
        model: nn.Module,
        clipping: ClippedSums,
        plan: PrivacyPlan,
        fetch: Fetch,
        loss_per_record: LossPerRecord,
    ) -> None:
        self._model, self._clipping, self._plan = model, clipping, plan
        self._fetch, self._loss_per_record = fetch, loss_per_record
        self._batches_to_check = _CHECKED_BATCHES
        self._parameters = [parameter for _, parameter in trainable_parameters(model)]
        sizes = [parameter.numel() for parameter in self._parameters]
        self._total = torch.zeros(sum(sizes), dtype=torch.float32, device=self._parameters[0].device)
        num_draws: Literal[1, 4] = 4 if len(self._total) <= FOUR_DRAW_COUNT else 1
        self._noise = [(part, NormalSource(len(part), num_draws=num_draws)) for part in self._total.split(_NOISE_BLOCK)]
        self._parts = [
            part.view_as(parameter) for part, parameter in zip(self._total.split(sizes), self._parameters, strict=True)
        ]

    def set_gradients(self, batch: UnitBatch) -> None:
        """Clip, add up, add noise, divide; also for an empty batch."""
        for parameter in self._parameters:
            parameter.grad = None
        self._total.zero_()
        for chunk in self._chunks(batch):
            self._add_clipped(chunk)
        self._add_noise()
        self._total.div_(self._plan.expected_batch_size)
        for parameter, part in zip(self._parameters, self._parts, strict=True):
            parameter.grad = part.to(parameter.device, parameter.dtype)

    def _chunks(self, batch: UnitBatch) -> Iterator[UnitBatch]:
        """Parts that fit into the memory; the first unit of the round alone, to learn what a record takes."""
        if batch.num_units and not self._clipping.bytes_per_record:
            first, batch = batch.split_off_first()
            yield first
        if batch.num_units:
            yield from batch.split(CHUNK_BYTES // max(self._clipping.bytes_per_record, 1))

    def _add_clipped(self, batch: UnitBatch) -> None:
        inputs, targets = self._fetch(batch.records)
        for name, tensor in (("inputs", inputs), ("targets", targets)):
            if len(tensor) != len(batch.records):
                raise PrivacySettingError(
                    f"fetch gave {len(tensor)} {name} for {len(batch.records)} indices; "
                    "expected one per index, in their order"
                )
        outputs = self._model(inputs)
        losses = self._loss_per_record(outputs, targets)
        _require_one_each(losses, len(outputs))
        if self._batches_to_check and len(outputs) > 1:
            self._batches_to_check -= 1
            _require_separate_losses(losses, outputs.detach(), targets, self._loss_per_record)
        if not batch.has_one_record_each:
            losses = losses / batch.records_per_unit[batch.unit_of_record].to(losses.device)
        self._clipping.add_clipped(self._parts, losses, batch, self._plan.clip_norm)

    def _add_noise(self) -> None:
        """Add noise to the clipped sum, in double precision."""
        scale = self._plan.noise_multiplier * self._plan.clip_norm
        for part, source in self._noise:
            noise = torch.from_numpy(source.draw()).mul_(scale)
            part.copy_(noise.to(part.device).add_(part))


def _require_one_each(losses: Tensor, num_records: int) -> None:
    if losses.shape != (num_records,):
        raise PrivacySettingError(
            f"loss_per_record gave shape {tuple(losses.shape)}; expected ({num_records},), one loss per record; "
            "use reduction='none', and for one logit per record outputs.squeeze(-1)"
        )


def _require_separate_losses(losses: Tensor, outputs: Tensor, targets: Tensor, loss_per_record: LossPerRecord) -> None:
    """Refuse a loss whose value for a record changes when the record stands alone.

    A weighted mean, for example, divides by the weights of the whole batch: one record then moves the gradients of all
    others, by twenty times the clip norm in a measured case, and clipping cannot see it.
    """
    with torch.no_grad():
        alone = float(loss_per_record(outputs[:1], targets[:1]))
    together = float(losses[0].detach())
    if not (math.isclose(alone, together, rel_tol=1e-3, abs_tol=1e-5) or (math.isnan(alone) and math.isnan(together))):
        raise PrivacySettingError(
            "loss_per_record gives a record another loss when it stands alone; expected losses that do not depend on "
            "the other records of the batch; divide by nothing, and multiply class weights as weights[targets]"
        )


@contextmanager
def _constant_buffers(model: nn.Module) -> Iterator[None]:
    """Raise if training changed or added a buffer, which would leave the site without noise; put back what was."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    after = dict(model.named_buffers())
    changed = [name for name in after if name not in before or not torch.equal(after[name], before[name])]
    if changed:
        for name in changed:
            after[name].copy_(before.get(name, torch.zeros_like(after[name])))
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


def _require_unit(units: Units, plan: PrivacyPlan) -> None:
    if units.unit != plan.unit:
        raise PrivacySettingError(f"units are of {units.unit!r}; expected the plan's unit={plan.unit!r}")


def _require_steps(steps: int | None, plan: PrivacyPlan) -> int:
    if steps is None:
        return plan.steps_per_round
    require_count("steps", steps, at_least=1)
    if steps > plan.steps_per_round:
        raise PrivacySettingError(f"steps={steps}; expected at most the plan's steps_per_round={plan.steps_per_round}")
    return steps


def _clipping(model: nn.Module) -> AbstractContextManager[ClippedSums]:
    return book_keeping(model) if is_covered(model) else per_record_gradients(model)


@contextmanager
def _in_train_mode(model: nn.Module) -> Iterator[None]:
    """Give each module its own mode back, and leave no gradient, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in model.parameters():
            parameter.grad = None
