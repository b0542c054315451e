"""The only place where records become tensors: checked against the study's schema, scaled by its public ranges."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_client.data.records import Records
from fl_client.data_rules import (
    EVENTS,
    classes_of,
    feature_values,
    follow_up_times,
    schema_refusals,
    training_refusals,
    with_channels,
)
from fl_client.refusals import refuse_if_any
from fl_contract.schema import Feature, ImageSchema, Schema, SeriesSchema, TableSchema, TripleSchema

BLOCK = 64
"""Images that are scaled at a time."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Model inputs and labels.

    Attributes:
        inputs: float32 [N, ...], each value in [-1, 1]; NaN where one is missing that the model fills in.
        labels: int64 [N], index of the class in the schema; for survival float32 [N, 2], times and events.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of examples N."""
        return len(self.labels)


def prepare(records: Records, schema: Schema) -> Examples:
    """Check records against the schema and scale them; no statistic of the patients is used.

    Guarantees:
        - Values outside a feature's range are taken as its nearest bound.
        - Nothing is dropped: a NaN that the study does not fill in, an infinity, a missing column or an unknown class
          refuses the whole data set.

    Raises:
        RefusalError: INVALID_DATA, with a line for each broken rule for the hospital's own log.
    """
    refuse_if_any(schema_refusals(schema, records))
    inputs = _prepare_inputs(records, schema)
    labels = _prepare_outcomes(records) if schema.task == "survival" else _prepare_labels(records, schema)
    return Examples(inputs=torch.from_numpy(inputs.astype(np.float32, copy=False)), labels=labels)


def check_trainable(examples: Examples, schema: Schema, *, min_examples: int, allow_one_class: bool = False) -> None:
    """Refuse training records with which a hospital cannot train.

    Under differential privacy one class is allowed: that a hospital's patients are all alike may hang on a single one,
    and a refusal would say it.

    Raises:
        RefusalError: TOO_FEW_PATIENTS, or ONE_CLASS, which for survival is that no event came.
    """
    labels = examples.labels[:, 1].long() if schema.task == "survival" else examples.labels
    counts = torch.bincount(labels, minlength=len(classes_of(schema))).tolist()
    refuse_if_any(training_refusals(schema, counts, min_examples=min_examples, allow_one_class=allow_one_class))


def _prepare_inputs(records: Records, schema: Schema) -> NDArray[Any]:
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


def _prepare_images(records: Records, schema: ImageSchema) -> NDArray[np.float32]:
    pixel = Feature.model_construct(
        name="pixel", minimum=schema.minimum, maximum=schema.maximum, scale="linear", missing="refuse"
    )
    images = with_channels(records, schema)
    inputs = np.empty((len(records), *schema.input_shape), np.float32)
    for start in range(0, len(records), BLOCK):  # scaled in float64, held in float32
        block = _scale(images[start : start + BLOCK].astype(np.float64), pixel)
        inputs[start : start + BLOCK] = np.moveaxis(block, -1, 1)
    return inputs


def _scale(values: NDArray[np.float64], feature: Feature) -> NDArray[np.float64]:
    low, high = feature.minimum, feature.maximum
    clipped = np.clip(values, low, high)
    if feature.scale == "log":
        clipped, low, high = np.log(clipped), float(np.log(low)), float(np.log(high))
    scaled: NDArray[np.float64] = 2 * (clipped - low) / (high - low) - 1
    return scaled


def _prepare_outcomes(records: Records) -> Tensor:
    outcomes = np.stack([follow_up_times(records), [EVENTS[label] for label in records.labels]], axis=1)
    return torch.from_numpy(outcomes.astype(np.float32))


def _prepare_labels(records: Records, schema: Schema) -> Tensor:
    index = {name: position for position, name in enumerate(schema.classes)}
    return torch.tensor([index[label] for label in records.labels], dtype=torch.int64)
