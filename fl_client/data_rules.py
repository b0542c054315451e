"""The only place for the rules that records must keep before a round, each broken one with its count and its code.

The refusals before round 1 and ``fl-client check`` both come from here. Details hold counts, names and rules, never a
patient's value.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_client.data.records import Records
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.schema import ImageSchema, Schema, SeriesSchema, TableSchema, TripleSchema

EVENTS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
"""What the column of the event may hold, and whether the event came."""

NO_EVENT, EVENT = "no event", "event"

NO_TIMES = "the source has no times of follow-up, which the study needs; name their column as source.time in site.toml"


def schema_refusals(schema: Schema, *folds: Records) -> list[RefusalError]:
    """Every rule of the schema that the records break, counted over all folds together; INVALID_DATA each."""
    details = _input_details(schema, folds)
    details += _outcome_details(schema, folds) if schema.task == "survival" else _label_details(schema, folds)
    return [RefusalError(RefusalCode.INVALID_DATA, detail) for detail in details]


def training_refusals(
    schema: Schema, class_counts: Sequence[int], *, min_examples: int, allow_one_class: bool
) -> list[RefusalError]:
    """Why a hospital cannot train with so many records of each class: TOO_FEW_PATIENTS, ONE_CLASS."""
    refusals = []
    if (total := sum(class_counts)) < min_examples:
        detail = f"{total} training records; policy.min-examples expects at least {min_examples}"
        refusals.append(RefusalError(RefusalCode.TOO_FEW_PATIENTS, detail))
    present = [name for name, count in zip(classes_of(schema), class_counts, strict=True) if count]
    if schema.task == "survival":
        if total and NO_EVENT in present and EVENT not in present:
            detail = f"{schema.label!r} came for no training record; expected one"
            refusals.append(RefusalError(RefusalCode.ONE_CLASS, detail))
    elif len(present) == 1 and not allow_one_class:
        detail = (
            f"every training record has {schema.label}={present[0]!r}; expected two classes, "
            "or policy.allow-one-class = true"
        )
        refusals.append(RefusalError(RefusalCode.ONE_CLASS, detail))
    return refusals


def held_out_refusals(num_records: int, *, min_examples: int) -> list[RefusalError]:
    """Why a hospital does not measure on so many held-out records: TOO_FEW_PATIENTS."""
    if num_records >= min_examples:
        return []
    detail = f"{num_records} held-out records; policy.min-examples expects at least {min_examples}"
    return [RefusalError(RefusalCode.TOO_FEW_PATIENTS, detail)]


def class_counts(records: Records, schema: Schema) -> list[int]:
    """Records of each class, in the schema's order; those of an unknown class are in none."""
    if schema.task == "survival":
        events = [EVENTS.get(label) for label in records.labels]
        return [events.count(0), events.count(1)]
    return [int((records.labels == name).sum()) for name in schema.classes]


def classes_of(schema: Schema) -> tuple[str, ...]:
    """What records are counted by: the classes, or for survival whether the event came."""
    return (NO_EVENT, EVENT) if schema.task == "survival" else schema.classes


def follow_up_times(records: Records) -> NDArray[np.float64]:
    """Times of follow-up, [N]; those of a source that was checked to have them."""
    if records.outcomes is None:
        raise RefusalError(RefusalCode.INVALID_DATA, NO_TIMES)
    return records.outcomes[:, 0]


def feature_values(records: Records, name: str) -> NDArray[np.float64]:
    """One feature of a table, [N]."""
    return records.features[:, records.feature_names.index(name)]


def with_channels(records: Records, schema: ImageSchema) -> NDArray[Any]:
    """Images with their channels as the last axis, which grey ones and volumes may lack."""
    has_channels = records.features.ndim == 2 + len(schema.pixel_shape)
    return records.features if has_channels else records.features[..., np.newaxis]


def image_axes(schema: ImageSchema) -> str:
    """What the axes of `with_channels` are after the first."""
    return "height, width, channels" if schema.depth is None else "depth, height, width, channels"


def _input_details(schema: Schema, folds: Sequence[Records]) -> list[str]:
    match schema:
        case TableSchema():
            return _table_details(schema, folds)
        case ImageSchema():
            return _image_details(schema, folds)
        case SeriesSchema():
            return _series_details(schema, folds)
        case TripleSchema():
            return _triple_details(schema, folds)


def _table_details(schema: TableSchema, folds: Sequence[Records]) -> list[str]:
    names = [feature.name for feature in schema.features]
    absent = [name for name in names if any(name not in fold.feature_names for fold in folds)]
    details = [f"columns {absent} are missing; the study needs them"] if absent else []
    for name in names:
        if name not in absent:
            may_miss = schema.features[names.index(name)].missing == "mean"
            details += _not_finite(name, [feature_values(fold, name) for fold in folds], may_miss=may_miss)
    return details


def _label_details(schema: Schema, folds: Sequence[Records]) -> list[str]:
    if unknown := sum(int((~np.isin(fold.labels, schema.classes)).sum()) for fold in folds):
        return [
            f"label {schema.label!r}: {unknown} records carry a class that the study does not name; "
            f"expected one of {list(schema.classes)}"
        ]
    return []


def _outcome_details(schema: Schema, folds: Sequence[Records]) -> list[str]:
    times = [fold.outcomes for fold in folds if fold.outcomes is not None]
    details = [] if len(times) == len(folds) else [NO_TIMES]
    if bad := sum(int((~(np.isfinite(part) & (part >= 0))).sum()) for part in times):
        details.append(f"times of follow-up: {bad} are missing, negative or infinite; expected numbers of at least 0")
    if unknown := sum(label not in EVENTS for fold in folds for label in fold.labels):
        details.append(
            f"event {schema.label!r}: {unknown} records hold neither 0 nor 1; expected 1 where the event came"
        )
    return details


def _image_details(schema: ImageSchema, folds: Sequence[Records]) -> list[str]:
    expected = (*schema.pixel_shape, schema.channels)
    shapes = dict.fromkeys(with_channels(fold, schema).shape[1:] for fold in folds)
    if wrong := [list(shape) for shape in shapes if shape != expected]:
        found = " and ".join(map(str, wrong))
        return [f"images are {found}; expected {image_axes(schema)} {list(expected)}"]
    return _not_finite("pixel", [fold.features for fold in folds])


def _series_details(schema: SeriesSchema, folds: Sequence[Records]) -> list[str]:
    expected = schema.input_shape
    if wrong := {fold.features.shape[1:] for fold in folds} - {expected}:
        return [f"series are {sorted(map(list, wrong))}; expected channels, steps {list(expected)}"]
    details = []
    for position, channel in enumerate(schema.channels):
        values = [fold.features[:, position] for fold in folds]
        details += _not_finite(channel.name, values, may_miss=schema.missing == "last")
    return details


def _triple_details(schema: TripleSchema, folds: Sequence[Records]) -> list[str]:
    details = []
    for position, (column, names) in enumerate(((schema.head, schema.classes), (schema.relation, schema.relations))):
        values = [fold.features[:, position] for fold in folds]
        if unknown := sum(int((~np.isin(part, np.arange(len(names)))).sum()) for part in values):
            details.append(f"column {column!r}: {unknown} records name nothing that the study lists; list it there")
    return details


def _not_finite(name: str, values: Sequence[NDArray[np.float64]], *, may_miss: bool = False) -> list[str]:
    if may_miss:
        infinite = sum(int(np.isinf(part).sum()) for part in values)
        return [f"feature {name!r}: {infinite} values are infinite; expected numbers or nothing"] if infinite else []
    if bad := sum(int((~np.isfinite(part)).sum()) for part in values):
        return [f"feature {name!r}: {bad} values are NaN or infinite; expected finite numbers"]
    return []
