"""Measurements as tests make them and look at them."""

import numpy as np

from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.measurement import Measurement


def of_classes(measurement: Measurement | None) -> Evaluation:
    """The measurement, which must be one of classes."""
    assert isinstance(measurement, Evaluation)
    return measurement


def of_bins(cases: list[int], controls: list[int], *, loss_sum: float = 1.0) -> Evaluation:
    """A measurement of patients in the middle of bins a quarter of a logit wide: 0 begins at -8, 32 at 0."""
    logits = -8 + (np.array([*cases, *controls], dtype=np.float64) + 0.5) / 4
    labels = np.repeat([1, 0], [len(cases), len(controls)])
    return Evaluation.of(logits[:, np.newaxis], labels, loss_sum=loss_sum)
