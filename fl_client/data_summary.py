"""What a hospital's records look like, in counts only: no minimum, no mean and no value of a patient is in here."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_client.data.records import Records
from fl_client.data_rules import feature_values, image_axes, with_channels
from fl_client.inputs import record_contents
from fl_client.outcomes import outcome_rules
from fl_contract.features import CategoryFeature, Feature, NumberFeature
from fl_contract.schema import Channel, ImageSchema, Schema, SeriesSchema, TableSchema


@dataclass(frozen=True, kw_only=True)
class FoldSummary:
    """The training or the held-out records.

    Attributes:
        records: Number of them.
        patients: Different patients; None if the source does not say whose a record is.
        patients_with_several: Those with more than one record; None likewise.
        repeated_records: Records with the same features and outcome as an earlier one of this fold.
        classes: Records of each class of the study, or what else its task counts them by.
        unknown_labels: Records without an outcome that the study knows.
        alike: In which way all outcomes are alike; empty if they differ.
    """

    records: int
    patients: int | None
    patients_with_several: int | None
    repeated_records: int
    classes: dict[str, int]
    unknown_labels: int
    alike: str


@dataclass(frozen=True, kw_only=True)
class FeatureSummary:
    """One feature of numbers over all records.

    Attributes:
        name: As the study calls it.
        unit: The study's.
        minimum: Of the study's range, not of the values.
        maximum: Of the study's range.
        missing: Records without a value.
        infinite: Records with an infinite one.
        below: Records with a value below the range.
        above: Records with a value above it.
        distinct: Different finite values.
        most_alike_outside: Records that share the commonest finite value outside the range.
        most_alike_inside: Records that share the commonest value inside it.
    """

    name: str
    unit: str
    minimum: float
    maximum: float
    missing: int
    infinite: int
    below: int
    above: int
    distinct: int
    most_alike_outside: int
    most_alike_inside: int


@dataclass(frozen=True, kw_only=True)
class CategorySummary:
    """One feature of categories over all records.

    Attributes:
        name: As the study calls it.
        counts: Records of each category of the study.
        missing: Records without a value.
        unknown: Records with what is no category.
    """

    name: str
    counts: dict[str, int]
    missing: int
    unknown: int


@dataclass(frozen=True, kw_only=True)
class ChannelSummary:
    """One channel of time series over all windows.

    Attributes:
        name: As the study calls it.
        unit: The study's.
        minimum: Of the study's range, not of the values.
        maximum: Of the study's range.
        steps: Steps of all windows.
        missing: Of them without a measurement.
        infinite: Of them with an infinite value.
        below: Of them with a value below the range.
        above: Of them with a value above it.
        unmeasured_windows: Windows without one measurement.
    """

    name: str
    unit: str
    minimum: float
    maximum: float
    steps: int
    missing: int
    infinite: int
    below: int
    above: int
    unmeasured_windows: int


@dataclass(frozen=True, kw_only=True)
class ImageSummary:
    """All images together.

    Attributes:
        axes: What the numbers of a shape are.
        shapes: Shapes that occur.
        expected: Shape of the study.
        minimum: Black, as the study says.
        maximum: White, as the study says.
        pixels: Number of values, channels counted apart.
        not_finite: Of them NaN or infinite.
        below: Of them darker than black.
        above: Of them brighter than white.
        blank: Images in which every value is the same.
        is_dark: Whether no value is above a twentieth of the range.
    """

    axes: str
    shapes: tuple[tuple[int, ...], ...]
    expected: tuple[int, ...]
    minimum: float
    maximum: float
    pixels: int
    not_finite: int
    below: int
    above: int
    blank: int
    is_dark: bool


def summarise_fold(records: Records, schema: Schema, fold: str, *, num_different: int) -> FoldSummary:
    """Count the ``fold`` records, patients and outcomes; ``num_different`` records are, by `content_digests`."""
    rules = outcome_rules(schema)
    per_patient = None if records.patients is None else np.unique(records.patients, return_counts=True)[1]
    return FoldSummary(
        records=len(records),
        patients=None if per_patient is None else len(per_patient),
        patients_with_several=None if per_patient is None else int((per_patient > 1).sum()),
        repeated_records=len(records) - num_different,
        classes=dict(zip(rules.groups, rules.counts(records), strict=True)),
        unknown_labels=rules.num_unknown(records),
        alike=rules.say_alike(records, fold),
    )


def content_digests(records: Records) -> set[bytes]:
    """A digest of each different record, features and outcome."""
    return {hashlib.blake2b(content, digest_size=16).digest() for content in record_contents(records)}


def summarise_features(schema: TableSchema, folds: Sequence[Records]) -> tuple[FeatureSummary, ...]:
    """Count over all folds each of the study's features of numbers that the records have."""
    return tuple(
        _summarise_feature(feature, _all_values(feature, folds))
        for feature in schema.features
        if isinstance(feature, NumberFeature) and _is_there(feature, folds)
    )


def summarise_categories(schema: TableSchema, folds: Sequence[Records]) -> tuple[CategorySummary, ...]:
    """Count over all folds each of the study's features of categories that the records have."""
    return tuple(
        _summarise_category(feature, _all_values(feature, folds))
        for feature in schema.features
        if isinstance(feature, CategoryFeature) and _is_there(feature, folds)
    )


def _is_there(feature: Feature, folds: Sequence[Records]) -> bool:
    return all(feature.name in fold.feature_names for fold in folds)


def _all_values(feature: Feature, folds: Sequence[Records]) -> NDArray[np.float64]:
    return np.concatenate([feature_values(fold, feature.name) for fold in folds])


def _summarise_category(feature: CategoryFeature, values: NDArray[np.float64]) -> CategorySummary:
    counts = {category: int((values == number).sum()) for number, category in enumerate(feature.categories)}
    missing = int(np.isnan(values).sum())
    unknown = len(values) - missing - sum(counts.values())
    return CategorySummary(name=feature.name, counts=counts, missing=missing, unknown=unknown)


def _summarise_feature(feature: NumberFeature, values: NDArray[np.float64]) -> FeatureSummary:
    distinct, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    is_inside = (distinct >= feature.minimum) & (distinct <= feature.maximum)
    return FeatureSummary(
        name=feature.name,
        unit=feature.unit,
        minimum=feature.minimum,
        maximum=feature.maximum,
        missing=int(np.isnan(values).sum()),
        infinite=int(np.isinf(values).sum()),
        below=int((values < feature.minimum).sum()),
        above=int((values > feature.maximum).sum()),
        distinct=len(distinct),
        most_alike_outside=int(counts[~is_inside].max(initial=0)),
        most_alike_inside=int(counts[is_inside].max(initial=0)),
    )


def summarise_channels(schema: SeriesSchema, folds: Sequence[Records]) -> tuple[ChannelSummary, ...]:
    """Count over all folds; nothing where windows are not of the study's shape."""
    if any(fold.features.shape[1:] != schema.input_shape for fold in folds):
        return ()
    windows = np.concatenate([fold.features for fold in folds])
    return tuple(_summarise_channel(channel, windows[:, row]) for row, channel in enumerate(schema.channels))


def _summarise_channel(channel: Channel, windows: NDArray[np.float64]) -> ChannelSummary:
    return ChannelSummary(
        name=channel.name,
        unit=channel.unit,
        minimum=channel.minimum,
        maximum=channel.maximum,
        steps=windows.size,
        missing=int(np.isnan(windows).sum()),
        infinite=int(np.isinf(windows).sum()),
        below=int((windows < channel.minimum).sum()),
        above=int((windows > channel.maximum).sum()),
        unmeasured_windows=int(np.isnan(windows).all(axis=1).sum()),
    )


def summarise_images(schema: ImageSchema, folds: Sequence[Records]) -> ImageSummary:
    """Count over all folds."""
    images = [with_channels(fold, schema) for fold in folds]
    dark = schema.minimum + (schema.maximum - schema.minimum) / 20
    return ImageSummary(
        axes=image_axes(schema),
        shapes=tuple(dict.fromkeys(part.shape[1:] for part in images if len(part))),
        expected=(*schema.pixel_shape, schema.channels),
        minimum=schema.minimum,
        maximum=schema.maximum,
        pixels=sum(part.size for part in images),
        not_finite=sum(int((~np.isfinite(part)).sum()) for part in images),
        below=sum(int((part < schema.minimum).sum()) for part in images),
        above=sum(int((part > schema.maximum).sum()) for part in images),
        blank=sum(_count_blank(part) for part in images),
        is_dark=all(not (part > dark).any() for part in images),
    )


def _count_blank(images: NDArray[Any]) -> int:
    if not len(images):
        return 0
    flat = images.reshape(len(images), -1)
    return int((flat == flat[:, :1]).all(axis=1).sum())
