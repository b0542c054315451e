"""The only place for the rules that records must keep before a round, each broken one with its count and its code.

The refusals before round 1 and ``fl-client check`` both come from here. Details hold counts, names and rules, never a
patient's value.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fl_client.data.records import Records
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.schema import ImageSchema, TableSchema

Schema = TableSchema | ImageSchema


def schema_refusals(schema: Schema, *folds: Records) -> list[RefusalError]:
    """Every rule of the schema that the records break, counted over all folds together; INVALID_DATA each."""
    details = _table_details(schema, folds) if isinstance(schema, TableSchema) else _image_details(schema, folds)
    if unknown := sum(int((~np.isin(fold.labels, schema.classes)).sum()) for fold in folds):
        details.append(
            f"label {schema.label!r}: {unknown} records carry a class that the study does not name; "
            f"expected one of {list(schema.classes)}"
        )
    return [RefusalError(RefusalCode.INVALID_DATA, detail) for detail in details]


def training_refusals(
    schema: Schema, class_counts: Sequence[int], *, min_examples: int, allow_one_class: bool
) -> list[RefusalError]:
    """Why a hospital cannot train with so many records of each class: TOO_FEW_PATIENTS, ONE_CLASS."""
    refusals = []
    if (total := sum(class_counts)) < min_examples:
        detail = f"{total} training records; policy.min-examples expects at least {min_examples}"
        refusals.append(RefusalError(RefusalCode.TOO_FEW_PATIENTS, detail))
    present = [name for name, count in zip(schema.classes, class_counts, strict=True) if count]
    if len(present) == 1 and not allow_one_class:
        detail = f"every training record has {schema.label}={present[0]!r}; expected two classes"
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
    return [int((records.labels == name).sum()) for name in schema.classes]


def feature_values(records: Records, name: str) -> NDArray[np.float64]:
    """One feature of a table, [N]."""
    return records.features[:, records.feature_names.index(name)]


def with_channels(records: Records) -> NDArray[np.float64]:
    """Images with their channels, [N, height, width, channels]; grey ones may lack the last axis."""
    return records.features if records.features.ndim == 4 else records.features[..., np.newaxis]


def _table_details(schema: TableSchema, folds: Sequence[Records]) -> list[str]:
    names = [feature.name for feature in schema.features]
    absent = [name for name in names if any(name not in fold.feature_names for fold in folds)]
    details = [f"columns {absent} are missing; the study needs them"] if absent else []
    for name in names:
        if name not in absent:
            details += _not_finite(name, [feature_values(fold, name) for fold in folds])
    return details


def _image_details(schema: ImageSchema, folds: Sequence[Records]) -> list[str]:
    expected = (schema.height, schema.width, schema.channels)
    shapes = dict.fromkeys(with_channels(fold).shape[1:] for fold in folds)
    if wrong := [list(shape) for shape in shapes if shape != expected]:
        found = " and ".join(map(str, wrong))
        return [f"images are {found}; expected height, width, channels {list(expected)}"]
    return _not_finite("pixel", [fold.features for fold in folds])


def _not_finite(name: str, values: Sequence[NDArray[np.float64]]) -> list[str]:
    if bad := sum(int((~np.isfinite(part)).sum()) for part in values):
        return [f"feature {name!r}: {bad} values are NaN or infinite; expected finite numbers"]
    return []
