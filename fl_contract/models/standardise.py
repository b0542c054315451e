"""A layer that fills in missing values and scales features by statistics of all hospitals together.

The statistics are buffers of the model: they travel and are kept with it, the same at every hospital.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_contract.features import Column
from fl_contract.statistics import FeatureStatistics

FILL, SHIFT, SPREAD = "fill", "shift", "spread"


class Standardise(nn.Module):
    """Takes NaN as the fill, then subtracts the shift and divides by the spread of each feature or channel.

    Args:
        columns: The features or channels, as the study treats them.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.columns = tuple(columns)
        for name, value in ((FILL, 0.0), (SHIFT, 0.0), (SPREAD, 1.0)):
            self.register_buffer(name, torch.full((len(self.columns),), value))

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs without a gap, of the same shape: [B, features], or [B, channels, ...]."""
        each = (-1, *[1] * (inputs.dim() - 2))
        fill, shift, spread = (self.get_buffer(name).view(each) for name in (FILL, SHIFT, SPREAD))
        return (torch.where(inputs.isnan(), fill, inputs) - shift) / spread

    def buffers_from(self, statistics: FeatureStatistics) -> dict[str, NDArray[np.float32]]:
        """The layer's buffers for these statistics, by name."""
        each = [_numbers(column, statistics, number) for number, column in enumerate(self.columns)]
        fill, shift, spread = np.array(each, dtype=np.float32).T
        return {FILL: fill, SHIFT: shift, SPREAD: spread}


def _numbers(column: Column, statistics: FeatureStatistics, number: int) -> tuple[float, float, float]:
    """Fill, shift and spread."""
    mean, fill, shift, spread = float(statistics.means[number]), 0.0, 0.0, 1.0
    if column.fill == "mean":
        fill = mean
    elif column.fill == "median":
        fill = statistics.median(number)
    elif column.fill == "most-frequent":
        fill = float(statistics.most_frequent(number))
    if column.scale == "standard":
        shift, spread = mean, float(statistics.deviations[number])
    elif column.scale == "robust":
        shift, spread = statistics.median(number), statistics.quartile_distance(number)
    return fill, shift, spread
