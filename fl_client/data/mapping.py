"""The only place where a hospital's own columns, units and codes become a study's, cell by cell.

Nothing is filled in or dropped: a missing value becomes NaN, and codes without a meaning are counted for a refusal.
Every source of tables uses it, for a whole table or for one chunk after another.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fl_client.column_settings import ColumnSettings, code_key, code_meanings

AS_IT_IS = ColumnSettings.parse({}, origin="a column that site.toml does not name")
"""How a column is read that ``site.toml`` does not name."""


def site_columns(features: Iterable[str], columns: Mapping[str, ColumnSettings]) -> dict[str, str]:
    """The hospital's own column of each feature; two features may come from one column."""
    return {feature: columns.get(feature, AS_IT_IS).column or feature for feature in features}


def map_features(
    table: pd.DataFrame, features: Sequence[str], columns: Mapping[str, ColumnSettings]
) -> tuple[NDArray[np.float64], Counter[str]]:
    """The study's features of each row.

    Args:
        table: Holds every column of `site_columns`.
        features: The study's names, in its order.
        columns: ``source.columns`` of ``site.toml``.

    Returns:
        [N, F], NaN where a value is missing or has no meaning; and by feature how many have none.
    """
    mapped, num_unknown = np.empty((len(table), len(features))), Counter[str]()
    for position, (feature, column) in enumerate(site_columns(features, columns).items()):
        mapped[:, position], num_unknown[feature] = map_column(table[column], columns.get(feature, AS_IT_IS))
    return mapped, num_unknown


def say_unknown_values(num_unknown: Counter[str], columns: Mapping[str, ColumnSettings]) -> list[str]:
    """A line for each feature that holds values of no meaning, without the values."""
    lines = []
    for feature, column in site_columns(num_unknown, columns).items():
        if count := num_unknown[feature]:
            expected = "the codes that it lists" if columns.get(feature, AS_IT_IS).codes else "numbers"
            lines.append(
                f"column {column!r} of feature {feature!r}: {count} rows hold a text or code without a meaning; "
                f"expected {expected}, or a code for a missing value in source.columns.{feature!r}.missing"
            )
    return lines


def map_column(values: pd.Series, settings: ColumnSettings) -> tuple[NDArray[np.float64], int]:
    """One feature's numbers, and how many values have no meaning.

    Truth values are 1 and 0; dates are no numbers.

    Returns:
        [N], NaN where a value is missing or has no meaning; and the count of the latter.
    """
    if pd.api.types.is_numeric_dtype(values) and not settings.codes:
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        if marks := [key for key in settings.missing_keys if isinstance(key, float)]:
            numbers = np.where(np.isin(numbers, marks), np.nan, numbers)
        return numbers * settings.factor + settings.offset, 0
    codes, missing_keys = code_meanings(settings.codes), settings.missing_keys
    positions, distinct = pd.factorize(values)  # an empty cell is -1, which finds the NaN at the end
    meanings, unknown = np.full(len(distinct) + 1, np.nan), np.zeros(len(distinct) + 1, dtype=bool)
    for position, key in enumerate(map(code_key, distinct)):
        if key in missing_keys:
            continue
        if key in codes:
            meanings[position] = codes[key]
        elif isinstance(key, float) and not codes:
            meanings[position] = key * settings.factor + settings.offset
        else:
            unknown[position] = True
    return meanings[positions], int(unknown[positions].sum())


def map_labels(values: pd.Series, labels: Mapping[str, str]) -> tuple[NDArray[np.str_], int]:
    """The study's class of each row; the hospital's own text where ``source.labels`` is empty.

    Returns:
        [N], and how many rows hold a code that is not in ``source.labels``; an empty cell is none of them.
    """
    if not labels:
        return values.to_numpy(dtype=str), 0
    positions, distinct = pd.factorize(values)
    classes = code_meanings(labels)
    found = [classes.get(code_key(code)) for code in distinct]
    unknown = np.array([name is None for name in found] + [False], dtype=bool)  # an empty cell is -1, at the end
    return np.array([*(name or "" for name in found), ""], dtype=np.str_)[positions], int(unknown[positions].sum())
