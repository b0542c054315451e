"""The only place for the losses of tasks and for reading classes and scores off a model's outputs.

Shape legend: B = patients in a batch, K = outputs of the model: 1 for two classes, else one per class.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_contract.survival import cox_loss


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


def batch_loss(outputs_BK: Tensor, labels: Tensor) -> Tensor:
    """What a step without privacy makes smaller: the mean over patients, or for survival over events.

    Args:
        outputs_BK: Of the model.
        labels: Classes, int64 [B], or times and events, float [B, 2].
    """
    if labels.dim() == 2:
        return cox_loss(outputs_BK.squeeze(1), labels)
    return loss_per_example(outputs_BK, labels).mean()


def predict_classes(outputs_BK: Tensor) -> Tensor:
    """The most probable class of each patient, int64 [B]; a tie between two classes is the first."""
    if outputs_BK.shape[1] == 1:
        return (outputs_BK.squeeze(1) > 0).long()
    return outputs_BK.argmax(dim=1)


def class_logits(outputs_BK: Tensor) -> Tensor:
    """Log-odds of each class against the rest, [B, K]."""
    if outputs_BK.shape[1] == 1:
        return outputs_BK
    log_p = F.log_softmax(outputs_BK, dim=1)
    return log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-7))
