"""The only place where records become tensors: checked against the study's schema, scaled by its public ranges.

Where a study says so, features are then standardised by the hospital's own training records.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_client.data.records import Records
from fl_client.data_rules import feature_values, schema_refusals, with_channels
from fl_client.outcomes import outcome_rules
from fl_client.refusals import refuse_if_any
from fl_contract.features import CategoryFeature, NumberFeature
from fl_contract.schema import ImageSchema, Schema, SeriesSchema, TableSchema, TripleSchema

SMALLEST_DEVIATION = 1e-6
"""Of values in [-1, 1]; a feature that varies less is taken as constant, as in statistics of all hospitals."""

BLOCK = 64
"""Images that are scaled at a time."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Model inputs and labels.

    Attributes:
        inputs: float32 [N, ...], each number in [-1, 1] unless the hospital standardised it itself; of a category its
            position. NaN where a value is missing that the model fills in.
        labels: [N, ...] as the study's task takes them, see `fl_contract.tasks`.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of examples N."""
        return len(self.labels)


def prepare(records: Records, schema: Schema, *, train: Records | None = None) -> Examples:
    """Check records against the schema and scale them.

    Guarantees:
        - No statistic of the patients is used, unless the schema has a feature of scale ``site-standard``.
        - Values outside a feature's range, or the target's, are taken as its nearest bound.
        - Nothing is dropped: a NaN that the study does not fill in, an infinity, a missing column or an unknown class
          refuses the whole data set.

    Args:
        records: To train or to measure on.
        schema: The study's.
        train: The hospital's training records, by which it standardises; needed for ``site-standard`` only.

    Raises:
        RefusalError: INVALID_DATA, with a line for each broken rule for the hospital's own log.
    """
    refuse_if_any(schema_refusals(schema, records))
    inputs = _prepare_inputs(records, schema, train)
    labels = outcome_rules(schema).labels(records)
    return Examples(inputs=torch.from_numpy(inputs.astype(np.float32, copy=False)), labels=labels)


def _prepare_inputs(records: Records, schema: Schema, train: Records | None) -> NDArray[Any]:
    match schema:
        case TableSchema():
            return _prepare_table(records, schema, train)
        case ImageSchema():
            return _prepare_images(records, schema)
        case SeriesSchema():
            return _prepare_series(records, schema)
        case TripleSchema():
            return records.features


def _prepare_series(records: Records, schema: SeriesSchema) -> NDArray[np.float64]:
    low, high = (np.array([getattr(each, bound) for each in schema.channels]) for bound in ("minimum", "maximum"))
    scaled = 2 * (np.clip(records.features, low[:, None], high[:, None]) - low[:, None]) / (high - low)[:, None] - 1
    steps = np.arange(schema.length)
    last_known = np.maximum.accumulate(np.where(np.isnan(scaled), -1, steps), axis=-1)
    filled = np.take_along_axis(scaled, np.maximum(last_known, 0), axis=-1)
    return np.where(last_known < 0, 0.0, filled)


def _prepare_table(records: Records, schema: TableSchema, train: Records | None) -> NDArray[np.float64]:
    return np.stack([_prepare_feature(records, feature, train) for feature in schema.features], axis=1)


def _prepare_feature(
    records: Records, feature: NumberFeature | CategoryFeature, train: Records | None
) -> NDArray[np.float64]:
    values = feature_values(records, feature.name)
    if isinstance(feature, CategoryFeature):
        return values
    scaled = _scale(values, feature.minimum, feature.maximum, is_log=feature.scale == "log")
    if not feature.needs_own_statistics:
        return scaled
    if train is None:
        raise ValueError(f"feature {feature.name!r} is standardised by training records; none were given")
    own = _scale(feature_values(train, feature.name), feature.minimum, feature.maximum)
    return _standardise(scaled, own[~np.isnan(own)])


def _standardise(values: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minus the mean of ``own``, over its deviation; a gap, which the schema allowed, is taken as the mean."""
    mean, deviation = (own.mean(), own.std()) if len(own) else (0.0, 1.0)
    return np.nan_to_num((values - mean) / (deviation if deviation > SMALLEST_DEVIATION else 1.0))


def _prepare_images(records: Records, schema: ImageSchema) -> NDArray[np.float32]:
    images = with_channels(records, schema)
    inputs = np.empty((len(records), *schema.input_shape), np.float32)
    for start in range(0, len(records), BLOCK):  # scaled in float64, held in float32
        block = _scale(images[start : start + BLOCK].astype(np.float64), schema.minimum, schema.maximum)
        inputs[start : start + BLOCK] = np.moveaxis(block, -1, 1)
    return inputs


def _scale(values: NDArray[np.float64], low: float, high: float, *, is_log: bool = False) -> NDArray[np.float64]:
    clipped = np.clip(values, low, high)
    if is_log:
        clipped, low, high = np.log(clipped), float(np.log(low)), float(np.log(high))
    scaled: NDArray[np.float64] = 2 * (clipped - low) / (high - low) - 1
    return scaled
