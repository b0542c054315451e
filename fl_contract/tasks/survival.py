"""Survival: which patients the event comes to earlier.

An outcome is a time of follow-up and whether the event came then (1) or the patient was only known to be free of it
until then (0, censored). Shape legend: B = patients.
"""

import torch
from torch import Tensor

from fl_contract.metrics.survival import PairCounts, SurvivalEvaluation
from fl_contract.tasks.task import Task


class Survival(Task):
    """One log hazard ratio for each patient (Cox 1972). Labels are times and events, float32 [B, 2]."""

    MEASUREMENT = SurvivalEvaluation
    NOT_PRIVATE = "the loss of a patient depends on the others' times, so no patient's gradient can be clipped alone"
    IS_OF_PAIRS = True

    def num_outputs(self) -> int:
        """One."""
        return 1

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """See `cox_losses`."""
        return cox_losses(outputs.squeeze(1), labels)

    def batch_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean over the events; 0 for a batch without one, which teaches nothing."""
        return self.losses(outputs, labels).sum() / labels[:, 1].sum().clamp(min=1.0)

    def measure(self, outputs: Tensor, labels: Tensor) -> SurvivalEvaluation:
        """Loss and ordered pairs."""
        risks = outputs.squeeze(1)
        pairs, pairs_of_patients = PairCounts.of(risks.numpy(), labels.numpy())
        return SurvivalEvaluation(
            num_examples=len(risks),
            loss_sum=float(cox_losses(risks.double(), labels.double()).sum()),
            pairs=pairs,
            pairs_of_patients=pairs_of_patients,
        )


def cox_losses(risks_B: Tensor, outcomes_B2: Tensor) -> Tensor:
    """Negative log partial likelihood of each event, Breslow's way with ties (Breslow 1974, Biometrics 30).

    Args:
        risks_B: Log hazard ratios.
        outcomes_B2: Times and events.

    Returns:
        [B], in nats, at least 0; 0 for a censored patient. A patient's value depends on all patients of the batch who
        are still followed at that time, so it is no loss of one record alone, and DP-SGD cannot clip it.
    """
    times, events = outcomes_B2[:, 0], outcomes_B2[:, 1]
    order = torch.argsort(times, descending=True, stable=True)
    at_risk = torch.logcumsumexp(risks_B[order], dim=0)
    # All patients with the same time are at risk together: each takes the sum up to the last of them.
    _, counts = torch.unique_consecutive(times[order], return_counts=True)
    at_risk = at_risk[(counts.cumsum(0) - 1).repeat_interleave(counts)]
    losses = torch.zeros_like(risks_B)
    losses[order] = at_risk - risks_B[order]
    return losses * events
