"""The only place where records become tensors: checked against the study's schema, scaled by its public ranges."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_client.data.records import Records
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.schema import Feature, ImageSchema, TableSchema


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


def prepare(records: Records, schema: TableSchema | ImageSchema) -> Examples:
    """Check records against the schema and scale them; no statistic of the patients is used.

    Guarantees:
        - Values outside a feature's range are taken as its nearest bound.
        - Nothing is dropped: a NaN that the study does not fill in, an infinity, a missing column or an unknown class
          refuses the whole data set.

    Raises:
        RefusalError: INVALID_DATA, with the feature, the count and the rule for the hospital's own log.
    """
    inputs = _prepare_table(records, schema) if isinstance(schema, TableSchema) else _prepare_images(records, schema)
    labels = _prepare_outcomes(records, schema) if schema.task == "survival" else _prepare_labels(records, schema)
    return Examples(inputs=torch.from_numpy(inputs.astype(np.float32)), labels=labels)


def check_trainable(
    examples: Examples, schema: TableSchema | ImageSchema, *, min_examples: int, allow_one_class: bool = False
) -> None:
    """Refuse training records with which a hospital cannot train.

    Under differential privacy one class is allowed: that a hospital's patients are all alike may hang on a single one,
    and a refusal would say it.

    Raises:
        RefusalError: TOO_FEW_PATIENTS, or ONE_CLASS, which for survival is that no event came.
    """
    if len(examples) < min_examples:
        raise RefusalError(
            RefusalCode.TOO_FEW_PATIENTS,
            f"{len(examples)} training records; policy.min-examples expects at least {min_examples}",
        )
    if schema.task == "survival":
        if not bool((examples.labels[:, 1] == 1).any()):
            raise RefusalError(RefusalCode.ONE_CLASS, f"{schema.label!r} came for no training record; expected one")
        return
    if len(present := examples.labels.unique()) < 2 and not allow_one_class:
        raise RefusalError(
            RefusalCode.ONE_CLASS,
            f"every training record has {schema.label}={schema.classes[int(present[0])]!r}; expected two classes, "
            "or policy.allow-one-class = true",
        )


def _prepare_table(records: Records, schema: TableSchema) -> NDArray[np.float64]:
    columns = {name: column for column, name in enumerate(records.feature_names)}
    if missing := [feature.name for feature in schema.features if feature.name not in columns]:
        raise RefusalError(RefusalCode.INVALID_DATA, f"columns {missing} are missing; the study needs them")
    scaled = [_scale(records.features[:, columns[feature.name]], feature) for feature in schema.features]
    return np.stack(scaled, axis=1)


def _prepare_images(records: Records, schema: ImageSchema) -> NDArray[np.float64]:
    images = records.features if records.features.ndim == 4 else records.features[..., np.newaxis]
    expected = (schema.height, schema.width, schema.channels)
    if images.shape[1:] != expected:
        raise RefusalError(
            RefusalCode.INVALID_DATA,
            f"images are {list(images.shape[1:])}; expected height, width, channels {list(expected)}",
        )
    pixel = Feature.model_construct(
        name="pixel", minimum=schema.minimum, maximum=schema.maximum, scale="linear", missing="refuse"
    )
    return _scale(images, pixel).transpose(0, 3, 1, 2)


def _scale(values: NDArray[np.float64], feature: Feature) -> NDArray[np.float64]:
    may_miss = feature.missing == "mean"
    if bad := int((np.isinf(values) if may_miss else ~np.isfinite(values)).sum()):
        raise RefusalError(
            RefusalCode.INVALID_DATA,
            f"feature {feature.name!r}: {bad} values are NaN or infinite; expected finite numbers"
            + (" or nothing" if may_miss else ""),
        )
    low, high = feature.minimum, feature.maximum
    clipped = np.clip(values, low, high)
    if feature.scale == "log":
        clipped, low, high = np.log(clipped), float(np.log(low)), float(np.log(high))
    scaled: NDArray[np.float64] = 2 * (clipped - low) / (high - low) - 1
    return scaled


def _prepare_outcomes(records: Records, schema: TableSchema | ImageSchema) -> Tensor:
    if records.times is None:
        raise RefusalError(
            RefusalCode.INVALID_DATA,
            "the source has no times of follow-up, which the study needs; name their column as source.time",
        )
    if bad := int((~(np.isfinite(records.times) & (records.times >= 0))).sum()):
        raise RefusalError(
            RefusalCode.INVALID_DATA,
            f"times of follow-up: {bad} are missing, negative or infinite; expected numbers >= 0",
        )
    events = {"0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
    if unknown := int(sum(label not in events for label in records.labels)):
        raise RefusalError(
            RefusalCode.INVALID_DATA,
            f"event {schema.label!r}: {unknown} records hold neither 0 nor 1; expected 1 where the event came",
        )
    outcomes = np.stack([records.times, [events[label] for label in records.labels]], axis=1)
    return torch.from_numpy(outcomes.astype(np.float32))


def _prepare_labels(records: Records, schema: TableSchema | ImageSchema) -> Tensor:
    index = {name: position for position, name in enumerate(schema.classes)}
    if unknown := int(sum(label not in index for label in records.labels)):
        raise RefusalError(
            RefusalCode.INVALID_DATA,
            f"label {schema.label!r}: {unknown} records carry a class that the study does not name; "
            f"expected one of {list(schema.classes)}",
        )
    return torch.tensor([index[label] for label in records.labels], dtype=torch.int64)
