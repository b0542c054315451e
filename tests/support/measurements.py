"""Measurements as tests look at them."""

from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.measurement import Measurement


def of_classes(measurement: Measurement | None) -> Evaluation:
    """The measurement, which must be one of classes."""
    assert isinstance(measurement, Evaluation)
    return measurement
