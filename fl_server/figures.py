"""The only place that makes the figures of a summary: each of all patients together and of each hospital."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fl_contract.metrics.intervals import Interval
from fl_contract.metrics.measurement import Measurement

Figures = dict[str, Any]


def compare_figures(together: Sequence[Measurement], own: Mapping[str, Measurement]) -> Figures:
    """Every figure of one way to train, by measure; None for one that is not defined, and for an unknown interval.

    Args:
        together: Each of its models on all hospitals' patients; at least one. Of several the mean is given. So are the
            means of their intervals' ends: models on the same patients err together, and the interval of their mean is
            no wider than theirs.
        own: By hospital, the model on its patients.
    """
    pooled = [(measurement.figures(), measurement.intervals()) for measurement in together]
    sites = {site: (measurement.figures(), measurement.intervals()) for site, measurement in own.items()}
    return {
        measure: {
            "pooled": mean_of_defined([values[measure] for values, _ in pooled]),
            "interval": _mean_interval([intervals[measure] for _, intervals in pooled]),
            "sites": {site: finite_or_none(values[measure]) for site, (values, _) in sites.items()},
            "site_intervals": {site: _mean_interval([intervals[measure]]) for site, (_, intervals) in sites.items()},
        }
        for measure in pooled[0][0]
    }


def mean_of_defined(values: Sequence[float]) -> float | None:
    """Mean of the values that are finite; None without one."""
    defined = [value for value in values if math.isfinite(value)]
    return float(np.mean(defined)) if defined else None


def finite_or_none(value: float | None) -> float | None:
    """The value as JSON can hold it."""
    return value if value is not None and math.isfinite(value) else None


def _mean_interval(intervals: Sequence[Interval]) -> list[float] | None:
    known = [interval for interval in intervals if all(map(math.isfinite, interval))]
    if not known:
        return None
    low, high = np.mean(known, axis=0)
    return [float(low), float(high)]
