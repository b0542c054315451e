"""The only place where records become tensors: checked against the study's schema, scaled by its public ranges."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_client.data.records import Records
from fl_client.data_rules import feature_values, schema_refusals, with_channels
from fl_client.outcomes import outcome_rules
from fl_client.refusals import refuse_if_any
from fl_contract.schema import Feature, ImageSchema, Schema, SeriesSchema, TableSchema, TripleSchema


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Model inputs and labels.

    Attributes:
        inputs: float32 [N, ...], each value in [-1, 1]; NaN where one is missing that the model fills in.
        labels: [N, ...] as the study's task takes them, see `fl_contract.tasks`.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of examples N."""
        return len(self.labels)


def prepare(records: Records, schema: Schema) -> Examples:
    """Check records against the schema and scale them; no statistic of the patients is used.

    Guarantees:
        - Values outside a feature's range, or the target's, are taken as its nearest bound.
        - Nothing is dropped: a NaN that the study does not fill in, an infinity, a missing column or an unknown class
          refuses the whole data set.

    Raises:
        RefusalError: INVALID_DATA, with a line for each broken rule for the hospital's own log.
    """
    refuse_if_any(schema_refusals(schema, records))
    inputs = _prepare_inputs(records, schema)
    return Examples(inputs=torch.from_numpy(inputs.astype(np.float32)), labels=outcome_rules(schema).labels(records))


def _prepare_inputs(records: Records, schema: Schema) -> NDArray[np.float64]:
    match schema:
        case TableSchema():
            return _prepare_table(records, schema)
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


def _prepare_table(records: Records, schema: TableSchema) -> NDArray[np.float64]:
    scaled = [_scale(feature_values(records, feature.name), feature) for feature in schema.features]
    return np.stack(scaled, axis=1)


def _prepare_images(records: Records, schema: ImageSchema) -> NDArray[np.float64]:
    pixel = Feature.model_construct(
        name="pixel", minimum=schema.minimum, maximum=schema.maximum, scale="linear", missing="refuse"
    )
    return _scale(with_channels(records), pixel).transpose(0, 3, 1, 2)


def _scale(values: NDArray[np.float64], feature: Feature) -> NDArray[np.float64]:
    low, high = feature.minimum, feature.maximum
    clipped = np.clip(values, low, high)
    if feature.scale == "log":
        clipped, low, high = np.log(clipped), float(np.log(low)), float(np.log(high))
    scaled: NDArray[np.float64] = 2 * (clipped - low) / (high - low) - 1
    return scaled
