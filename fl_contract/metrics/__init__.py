"""The registry of measurements: one kind a file, each made of sums that merge."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.link_prediction import LinkEvaluation
from fl_contract.metrics.measurement import Measurement, read_float, read_ints
from fl_contract.metrics.multi_label import MultiLabelEvaluation
from fl_contract.metrics.noised import NOISED, NoisedCounts
from fl_contract.metrics.regression import RegressionEvaluation
from fl_contract.metrics.segmentation import SegmentationEvaluation
from fl_contract.metrics.survival import SurvivalEvaluation

KINDS: dict[str, type[Measurement]] = {
    kind.KIND: kind
    for kind in (
        Evaluation,
        MultiLabelEvaluation,
        RegressionEvaluation,
        SurvivalEvaluation,
        SegmentationEvaluation,
        LinkEvaluation,
    )
}

MEASURES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "c_index": "C-index",
    "r2": "R²",
    "mae": "MAE",
    "rmse": "RMSE",
    "dice": "Dice",
    "pixel_accuracy": "pixel accuracy",
    "mrr": "MRR",
    "hits_at_1": "hits@1",
    "hits_at_10": "hits@10",
}
"""What is reported of a measurement, and what it is called."""


def measurement_from_json(fields: Mapping[str, Any]) -> Measurement:
    """Take back what a measurement's ``to_json`` gave.

    Raises:
        ValueError: It is of no known kind, or a number breaks a rule.
    """
    if (kind := fields.get("kind")) == NOISED:
        cells = np.array(read_ints(fields, "noised-cells"), dtype=np.int64)
        scale, threshold = read_float(fields, "noise-scale"), read_float(fields, "threshold")
        return Evaluation.from_noised(NoisedCounts(cells=cells, noise_scale=scale, threshold=threshold))
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; expected one of {sorted({*KINDS, NOISED})}")
    return KINDS[kind].from_numbers(fields)


def merge_measurements(measurements: Iterable[Measurement]) -> Measurement:
    """The measurement of all hospitals' patients together; does not depend on the order.

    Raises:
        ValueError: There is none, or they measure different outcomes.
    """
    parts = list(measurements)
    if len(kinds := {type(part) for part in parts}) != 1:
        raise ValueError(f"measurements are of {len(kinds)} kinds; expected at least one, all of one kind")
    return kinds.pop().merge(parts)
