"""The only place where a hospital's own columns, units and codes become a study's, cell by cell.

Nothing is filled in or dropped: a missing value becomes NaN, and codes without a meaning are counted for a refusal.
Every source of tables uses it, for a whole table or for one chunk after another.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fl_client.column_settings import AS_IT_IS, Code, ColumnSettings, code_key, code_meanings
from fl_contract.features import CategoryFeature, TableFeature


def site_columns(features: Iterable[str], columns: Mapping[str, ColumnSettings]) -> dict[str, str]:
    """The hospital's own column of each feature; two features may come from one column."""
    return {feature: columns.get(feature, AS_IT_IS).column or feature for feature in features}


def code_refusals(features: Iterable[TableFeature], columns: Mapping[str, ColumnSettings]) -> list[str]:
    """A line for each feature whose ``source.columns`` gives codes that its kind cannot take."""
    lines = []
    for feature in features:
        settings, key = columns.get(feature.name, AS_IT_IS), f"source.columns.{feature.name!r}"
        if not isinstance(feature, CategoryFeature):
            if texts := [meaning for meaning in settings.codes.values() if isinstance(meaning, str)]:
                lines.append(f"{key}.codes gives {texts}; expected numbers, which the study has for this feature")
            continue
        if (settings.factor, settings.offset) != (1.0, 0.0):
            lines.append(f"{key} has a factor or offset; expected codes, as the study has categories for this feature")
        if len(set(map(code_key, feature.categories))) < len(feature.categories):
            lines.append(f"feature {feature.name!r}: the study has two categories that are the same number as codes")
        if odd := [meaning for meaning in settings.codes.values() if meaning not in feature.categories]:
            lines.append(f"{key}.codes gives {odd}; expected categories of the study: {list(feature.categories)}")
    return lines


def map_features(
    table: pd.DataFrame, features: Sequence[TableFeature], columns: Mapping[str, ColumnSettings]
) -> tuple[NDArray[np.float64], Counter[str]]:
    """The study's features of each row.

    Args:
        table: Holds every column of `site_columns`.
        features: The study's, in its order.
        columns: ``source.columns`` of ``site.toml``, without `code_refusals`.

    Returns:
        [N, F], NaN where a value is missing or has no meaning; and by feature how many have none.
    """
    mapped, num_unknown = np.empty((len(table), len(features))), Counter[str]()
    for position, feature in enumerate(features):
        settings = columns.get(feature.name, AS_IT_IS)
        values = table[settings.column or feature.name]
        if isinstance(feature, CategoryFeature):
            mapped[:, position], num_unknown[feature.name] = map_categories(values, settings, feature.categories)
        else:
            mapped[:, position], num_unknown[feature.name] = map_column(values, settings)
    return mapped, num_unknown


def say_unknown_values(
    num_unknown: Counter[str], features: Iterable[TableFeature], columns: Mapping[str, ColumnSettings]
) -> list[str]:
    """A line for each feature that holds values of no meaning, without the values."""
    of_categories = {feature.name for feature in features if isinstance(feature, CategoryFeature)}
    lines = []
    for feature, column in site_columns(num_unknown, columns).items():
        if count := num_unknown[feature]:
            expected = "the codes that it lists" if columns.get(feature, AS_IT_IS).codes else "numbers"
            if feature in of_categories:
                expected = f"the study's categories, a code that source.columns.{feature!r}.codes lists"
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
    codes = code_meanings(settings.codes)

    def number_of(key: Code) -> float | None:
        if key in codes:
            return float(codes[key])
        return key * settings.factor + settings.offset if isinstance(key, float) and not codes else None

    return _map_distinct(values, settings.missing_keys, number_of)


def map_categories(
    values: pd.Series, settings: ColumnSettings, categories: Sequence[str]
) -> tuple[NDArray[np.float64], int]:
    """One feature's categories by their positions, and how many values are none.

    A value is looked for among the hospital's codes, then among the names of the categories.

    Returns:
        [N], NaN where a value is missing or no category; and the count of the latter.
    """
    positions: dict[Code, float] = {code_key(name): float(number) for number, name in enumerate(categories)}
    positions |= {key: float(categories.index(str(name))) for key, name in code_meanings(settings.codes).items()}
    return _map_distinct(values, settings.missing_keys, positions.get)


def _map_distinct(
    values: pd.Series, missing_keys: frozenset[Code], meaning_of: Callable[[Code], float | None]
) -> tuple[NDArray[np.float64], int]:
    positions, distinct = pd.factorize(values)  # an empty cell is -1, which finds the NaN at the end
    meanings, unknown = np.full(len(distinct) + 1, np.nan), np.zeros(len(distinct) + 1, dtype=bool)
    for position, key in enumerate(map(code_key, distinct)):
        if key in missing_keys:
            continue
        meaning = meaning_of(key)
        if meaning is None:
            unknown[position] = True
        else:
            meanings[position] = meaning
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
