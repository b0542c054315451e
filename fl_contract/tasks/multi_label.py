"""Multi-label: which of several findings a patient has, any number of them.

Shape legend: B = patients in a batch, L = findings.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl_contract.metrics.measurement import Measurement
from fl_contract.metrics.multi_label import MultiLabelEvaluation
from fl_contract.tasks.classification import mean_log_odds
from fl_contract.tasks.task import Task


class MultiLabel(Task):
    """Log-odds of each finding. Labels are 1 where it is there and 0 where not, float32 [B, L]."""

    MEASUREMENT = MultiLabelEvaluation

    def num_outputs(self) -> int:
        """One a finding."""
        return len(self._schema.classes)

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean over the findings of each one's binary cross-entropy, in nats."""
        by_finding = F.binary_cross_entropy_with_logits(outputs, labels.to(outputs.dtype), reduction="none")
        return by_finding.mean(dim=1)

    def combine(self, outputs: Tensor) -> Tensor:
        """Log-odds of the mean probability of each finding."""
        return mean_log_odds(outputs)

    def measure(self, outputs: Tensor, labels: Tensor) -> MultiLabelEvaluation:
        """Loss, pairs of patient and finding predicted rightly, and histograms of scores."""
        has_finding = labels > 0
        return MultiLabelEvaluation.of_findings(
            outputs.numpy().astype(np.float64),
            has_finding.numpy(),
            loss_sum=float(self.losses(outputs, labels).sum(dtype=torch.float64)),
            num_correct=int(((outputs > 0) == has_finding).sum()),
        )

    def check(self, measured: Measurement) -> None:
        """As many scored findings as the study has."""
        super().check(measured)
        scored = len(measured.scores.counts) if isinstance(measured, MultiLabelEvaluation) else 0
        if scored != self.num_outputs():
            raise ValueError(f"score-counts are of {scored} findings; expected {self.num_outputs()}")
