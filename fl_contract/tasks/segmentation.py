"""Segmentation: a class for each pixel of an image, or voxel of a volume.

Shape legend: B = images in a batch, K = outputs of the model for a pixel: 1 for two classes, else one per class, C =
classes, the first being the background. Pixels are [height, width], with the depth before for volumes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_contract.metrics.measurement import Measurement
from fl_contract.metrics.segmentation import SegmentationEvaluation
from fl_contract.tasks.classification import num_outputs
from fl_contract.tasks.task import Task

SMOOTHING = 1.0
"""Pixels; makes the Dice of a class that an image does not have go to 1 as it is predicted nowhere."""


class Segmentation(Task):
    """Log-odds of each pixel's classes, [B, K, pixels]. Labels are the classes, uint8 [B, pixels]."""

    MEASUREMENT = SegmentationEvaluation

    def num_outputs(self) -> int:
        """For a pixel: one for two classes, else one a class."""
        return num_outputs(len(self._schema.classes))

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, the mean over an image's pixels in nats, plus its `dice_losses`.

        The sum does well on small lesions and on large ones (Isensee et al., Nat. Methods 18, 2021). Both parts are of
        each image alone, which differential privacy needs.
        """
        classes = labels.long()
        if outputs.shape[1] == 1:
            by_pixel = F.binary_cross_entropy_with_logits(
                outputs.squeeze(1), classes.to(outputs.dtype), reduction="none"
            )
        else:
            by_pixel = F.cross_entropy(outputs, classes, reduction="none")
        return by_pixel.flatten(start_dim=1).mean(dim=1) + dice_losses(outputs, classes)

    def measure(self, outputs: Tensor, labels: Tensor) -> SegmentationEvaluation:
        """Loss, and pixels of each class: true, predicted, and both."""
        return SegmentationEvaluation.of(
            _predict(outputs).numpy(),
            labels.long().numpy(),
            len(self._schema.classes),
            loss_sum=float(self.losses(outputs, labels).sum(dtype=torch.float64)),
        )

    def check(self, measured: Measurement) -> None:
        """As many classes and pixels as the study has."""
        super().check(measured)
        if not isinstance(measured, SegmentationEvaluation):
            return
        if len(measured.true) != len(self._schema.classes):
            raise ValueError(f"pixels of {len(measured.true)} classes; expected {len(self._schema.classes)}")
        expected = measured.num_examples * torch.Size(self._schema.input_shape[1:]).numel()
        if measured.true.sum() != expected:
            raise ValueError(f"{measured.true.sum()} pixels of {measured.num_examples} images; expected {expected}")


def _predict(outputs: Tensor) -> Tensor:
    """The most probable class of each pixel, [B, pixels]; a tie is the first."""
    return (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(dim=1)


def dice_losses(outputs: Tensor, classes: Tensor) -> Tensor:
    """1 minus the soft Dice of each image, the mean over its classes but the background, [B].

    For a class with probabilities p and truths t of 0 or 1, the sums being over the image's pixels, it is
    (2 sum(p t) + 1) / (sum(p) + sum(t) + 1). Source: Milletari et al., 3DV (2016), section 3.

    Args:
        outputs: [B, K, pixels].
        classes: int64 [B, pixels].
    """
    if outputs.shape[1] == 1:
        probabilities, truths = outputs.sigmoid(), classes.unsqueeze(1).to(outputs.dtype)
    else:
        probabilities = outputs.softmax(dim=1)[:, 1:]
        truths = F.one_hot(classes, outputs.shape[1]).movedim(-1, 1)[:, 1:].to(outputs.dtype)
    probabilities, truths = probabilities.flatten(start_dim=2), truths.flatten(start_dim=2)
    overlap = (probabilities * truths).sum(dim=2)
    total = probabilities.sum(dim=2) + truths.sum(dim=2)
    return (1 - (2 * overlap + SMOOTHING) / (total + SMOOTHING)).mean(dim=1)
