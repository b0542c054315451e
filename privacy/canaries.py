"""The only place that trains on canaries: made-up records whose traces an auditor can tell apart.

Each canary has one weight of its own and a gradient far longer than the clip norm, so that it moves that weight by
exactly the clip norm whenever it is in a batch: the worst case that the accountant assumes. No patient is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privacy.bounds import require_count
from privacy.dp_sgd import train_privately
from privacy.noise import secure_uniform
from privacy.plan import PrivacyPlan
from privacy.units import Units

FEWEST_CANARIES = 100
"""With fewer, sums over canaries are too far from the distributions that the audit compares them with."""


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What private training on canaries released, and what only an auditor knows beside it.

    Shape legend: M = canaries, T = steps, I = canaries that are in.

    Attributes:
        is_in: [M] whether the canary was in the training data, by a fair coin of its own.
        sums: [T, M] the noised gradient sum of each step as the optimizer got it, in clip norms.
        moved: [M] how far training moved each canary's weight over all steps, in clip norms.
        batches: [T, I] whether the canary was in the step's batch, as ``fetch`` saw it.
    """

    is_in: NDArray[np.bool_]
    sums: NDArray[np.float64]
    moved: NDArray[np.float64]
    batches: NDArray[np.bool_]


def train_on_canaries(plan: PrivacyPlan, num_canaries: int, on_round: Callable[[], None] = lambda: None) -> Transcript:
    """Train privately, as a hospital would with this plan, on canaries in place of patients.

    Guarantees:
        - Every step is `train_privately`'s own: its sampling, clipping, noise and divisor.
        - The coins come from the operating system, fresh in every call.

    Args:
        plan: All its rounds are run, from one model, one after the other.
        num_canaries: At least `FEWEST_CANARIES`.
        on_round: Called after each round, to show progress.

    >>> plan = PrivacyPlan.calibrate(
    ...     epsilon=1, delta=1e-3, clip_norm=1, sampling_rate=0.5, steps_per_round=2, num_rounds=3, nominal_units=1
    ... )
    >>> train_on_canaries(plan, 100).sums.shape
    (6, 100)
    """
    require_count("num_canaries", num_canaries, at_least=FEWEST_CANARIES)
    is_in = secure_uniform(num_canaries) < 0.5
    model = nn.Linear(num_canaries, 1, bias=False)
    nn.init.zeros_(model.weight)
    witness = _Witness(model, features=torch.eye(num_canaries)[torch.from_numpy(is_in)])
    for _ in range(plan.num_rounds):
        _train_one_round(model, witness, plan)
        on_round()
    in_clip_norms = plan.expected_batch_size / plan.clip_norm
    return Transcript(
        is_in=is_in,
        sums=np.stack(witness.gradients) * in_clip_norms,
        moved=-model.weight.detach().double().numpy().ravel() * in_clip_norms,
        batches=np.stack(witness.batches),
    )


def _train_one_round(model: nn.Module, witness: "_Witness", plan: PrivacyPlan) -> None:
    """Make the product's own call; the loss has the same slope for everybody, above any clip norm."""
    slope = 1000 * max(1.0, plan.clip_norm)

    def loss(outputs: Tensor, _: Tensor) -> Tensor:
        return slope * outputs.squeeze(-1)

    train_privately(model, witness, plan, Units.alone(plan.unit, len(witness.features)), witness.fetch, loss)


class _Witness(torch.optim.SGD):
    """Plain gradient descent with rate 1 that writes down each step's gradient, and who was in its batch."""

    def __init__(self, model: nn.Module, *, features: Tensor) -> None:
        super().__init__(model.parameters(), lr=1.0)
        self.features = features
        self.gradients: list[NDArray[np.float64]] = []
        self.batches: list[NDArray[np.bool_]] = []
        self._batch = np.zeros(len(features), dtype=np.bool_)

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Give a batch's records, and remember them."""
        self._batch[indices.numpy()] = True
        return self.features[indices], torch.zeros(len(indices))

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Note the step, then take it."""
        (weight,) = self.param_groups[0]["params"]
        self.gradients.append(weight.grad.detach().double().numpy().ravel().copy())
        self.batches.append(self._batch)
        self._batch = np.zeros_like(self._batch)
        super().step(closure)
