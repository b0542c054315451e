"""A layer that fills in missing values and standardises features by statistics of all hospitals together.

The statistics are buffers of the model: they travel and are kept with it, the same at every hospital.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_contract.statistics import FeatureSums

FILL, SHIFT, SPREAD = "fill", "shift", "spread"


class Standardise(nn.Module):
    """Takes NaN as the mean, then subtracts the mean and divides by the deviation where the study says so.

    Args:
        is_standard: For each feature, whether it is standardised; others are only filled in.
    """

    def __init__(self, is_standard: Sequence[bool]) -> None:
        super().__init__()
        self.is_standard = tuple(is_standard)
        for name, value in ((FILL, 0.0), (SHIFT, 0.0), (SPREAD, 1.0)):
            self.register_buffer(name, torch.full((len(self.is_standard),), value))

    def forward(self, inputs_BF: Tensor) -> Tensor:
        """Inputs without a gap, of the same shape."""
        fill, shift, spread = (self.get_buffer(name) for name in (FILL, SHIFT, SPREAD))
        return (torch.where(inputs_BF.isnan(), fill, inputs_BF) - shift) / spread

    def buffers_from(self, sums: FeatureSums) -> dict[str, NDArray[np.float32]]:
        """The layer's buffers for these statistics, by name."""
        is_standard = np.array(self.is_standard)
        return {
            FILL: sums.means.astype(np.float32),
            SHIFT: np.where(is_standard, sums.means, 0.0).astype(np.float32),
            SPREAD: np.where(is_standard, sums.deviations, 1.0).astype(np.float32),
        }
