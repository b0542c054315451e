"""Classification: one of several classes for each patient.

Shape legend: B = patients in a batch, K = outputs of the model: 1 for two classes, else one per class.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.measurement import Measurement
from fl_contract.tasks.task import Task


class Classification(Task):
    """Log-odds of each class, or of the second of two. Labels are the classes, int64 [B]."""

    MEASUREMENT = Evaluation
    HAS_NOISED = True

    def num_outputs(self) -> int:
        """One for two classes, else one a class."""
        return num_outputs(len(self._schema.classes))

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """See `loss_per_example`."""
        return loss_per_example(outputs, labels)

    def combine(self, outputs: Tensor) -> Tensor:
        """Log-odds, or logarithms, of the mean probability of each class."""
        if outputs.shape[2] == 1:
            return mean_log_odds(outputs)
        return torch.logsumexp(F.log_softmax(outputs, dim=2), dim=0) - math.log(len(outputs))

    def measure(self, outputs: Tensor, labels: Tensor) -> Evaluation:
        """Loss, squared errors, decisions and histograms of scores."""
        return Evaluation.of(
            class_logits(outputs.double()).numpy(),
            labels.numpy(),
            loss_sum=float(loss_per_example(outputs, labels).sum(dtype=torch.float64)),
            threshold=self._schema.threshold,
        )

    def check(self, measured: Measurement) -> None:
        """As many scored classes as the study has, decided by its threshold."""
        scored = len(measured.scores.counts) if isinstance(measured, Evaluation) else 0
        if scored != self.num_outputs():
            raise ValueError(f"score-counts are of {scored} classes; expected {self.num_outputs()}")
        if scored == 1 and isinstance(measured, Evaluation):
            threshold = measured.threshold if measured.decisions else None
            if threshold != self._schema.threshold:
                raise ValueError(f"threshold={threshold}; expected the study's, {self._schema.threshold}")


def num_outputs(num_classes: int) -> int:
    """Outputs a model needs to tell ``num_classes`` apart.

    >>> num_outputs(2), num_outputs(10)
    (1, 10)
    """
    return 1 if num_classes == 2 else num_classes


def loss_per_example(outputs_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy of each patient alone, in nats: shape [B], never reduced, each independent of the others."""
    if outputs_BK.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(
            outputs_BK.squeeze(1), labels_B.to(outputs_BK.dtype), reduction="none"
        )
    return F.cross_entropy(outputs_BK, labels_B, reduction="none")


def mean_log_odds(log_odds: Tensor) -> Tensor:
    """Log-odds of the mean probability over the first dimension.

    >>> mean_log_odds(torch.tensor([0.0, 0.0])).item()
    0.0
    """
    return torch.logsumexp(F.logsigmoid(log_odds), dim=0) - torch.logsumexp(F.logsigmoid(-log_odds), dim=0)


def class_logits(outputs_BK: Tensor) -> Tensor:
    """Log-odds of each class against the rest, [B, K]."""
    if outputs_BK.shape[1] == 1:
        return outputs_BK
    log_p = F.log_softmax(outputs_BK, dim=1)
    return log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-7))
