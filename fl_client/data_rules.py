"""The only place for the rules that records must keep before a round, each broken one with its count and its code.

The refusals before round 1 and ``fl-client check`` both come from here. Details hold counts, names and rules, never a
patient's value.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_client.data.records import Records
from fl_client.outcomes import outcome_rules
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.features import CategoryFeature
from fl_contract.schema import ImageSchema, Schema, SeriesSchema, TableSchema, TripleSchema


def schema_refusals(schema: Schema, *folds: Records) -> list[RefusalError]:
    """Every rule of the schema that the records break, counted over all folds together; INVALID_DATA each."""
    details = _input_details(schema, folds) + outcome_rules(schema).details(folds)
    return [RefusalError(RefusalCode.INVALID_DATA, detail) for detail in details]


def training_refusals(
    schema: Schema, records: Records, *, min_examples: int, allow_one_class: bool
) -> list[RefusalError]:
    """Why a hospital cannot train with these records, which break no rule of the schema: TOO_FEW_PATIENTS, ONE_CLASS.

    Args:
        schema: Of the study.
        records: To train on.
        min_examples: Fewest of them.
        allow_one_class: Train also where their outcomes are all alike. Under differential privacy that is always so:
            whether they are may hang on a single patient, and a refusal would say it.
    """
    refusals, rules = [], outcome_rules(schema)
    if len(records) < min_examples:
        detail = f"{len(records)} training records; policy.min-examples expects at least {min_examples}"
        refusals.append(RefusalError(RefusalCode.TOO_FEW_PATIENTS, detail))
    if (alike := rules.say_alike(records, "training")) and (rules.NEEDS_VARIETY or not allow_one_class):
        way_out = "" if rules.NEEDS_VARIETY else ", or policy.allow-one-class = true"
        refusals.append(RefusalError(RefusalCode.ONE_CLASS, f"{alike}; expected {rules.VARIETY}{way_out}"))
    return refusals


def held_out_refusals(num_records: int, *, min_examples: int) -> list[RefusalError]:
    """Why a hospital does not measure on so many held-out records: TOO_FEW_PATIENTS."""
    if num_records >= min_examples:
        return []
    detail = f"{num_records} held-out records; policy.min-examples expects at least {min_examples}"
    return [RefusalError(RefusalCode.TOO_FEW_PATIENTS, detail)]


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
    for feature in schema.features:
        if feature.name not in absent:
            values = [feature_values(fold, feature.name) for fold in folds]
            if isinstance(feature, CategoryFeature):
                details += _not_categories(feature, values)
            else:
                details += _not_finite(feature.name, values, may_miss=feature.missing != "refuse")
    return details


def _not_categories(feature: CategoryFeature, values: Sequence[NDArray[np.float64]]) -> list[str]:
    known, expected = np.arange(len(feature.categories)), f"expected one of {list(feature.categories)}"
    missing = sum(int(np.isnan(part).sum()) for part in values)
    unknown = sum(int((~np.isin(part, known)).sum()) for part in values) - missing
    details = []
    if missing and feature.missing == "refuse":
        details.append(f"feature {feature.name!r}: {missing} records have no category; {expected}")
    if unknown:
        details.append(f"feature {feature.name!r}: {unknown} values are no category of the study; {expected}")
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
