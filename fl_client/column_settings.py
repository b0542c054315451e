"""How a hospital writes what a study calls a feature or a class: the columns and codes of ``site.toml``."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from fl_contract.settings import Settings

Code = float | str
"""A number, or a text without spaces around it."""

_Meaning = TypeVar("_Meaning")


def code_key(code: object) -> Code:
    """What a code is compared by: texts that spell the same number are one code, and so are number and text.

    >>> code_key("01") == code_key(1.0), code_key(" male "), code_key("nan")
    (True, 'male', 'nan')
    """
    text = str(code).strip()
    try:
        number = float(code if isinstance(code, bool) else text)
    except ValueError:
        return text
    return number if math.isfinite(number) and "_" not in text else text


def code_meanings(codes: Mapping[str, _Meaning]) -> dict[Code, _Meaning]:
    """The meaning of each code by its key."""
    return {code_key(code): meaning for code, meaning in codes.items()}


def _check_codes_differ(codes: dict[str, _Meaning]) -> dict[str, _Meaning]:
    if same := _repeated(codes):
        raise ValueError(f"{' and '.join(same)}; expected codes that differ as numbers, or as texts without spaces")
    return codes


def _repeated(codes: Iterable[str]) -> list[str]:
    by_key: dict[Code, list[str]] = {}
    for code in codes:
        by_key.setdefault(code_key(code), []).append(code)
    return next((same for same in by_key.values() if len(same) > 1), [])


FeatureCodes = Annotated[dict[str, float | str], AfterValidator(_check_codes_differ)]
LabelCodes = Annotated[dict[str, str], AfterValidator(_check_codes_differ)]


class ChannelSettings(Settings):
    """How a hospital's time series hold one channel of a study.

    Attributes:
        name: The hospital's own name of the channel; the study's if it is not set.
        factor: Into the study's unit: value * factor + offset; not 0.
        offset: In the study's unit.
        missing: The hospital's codes for a value that was not measured. An empty cell never needs one.
    """

    name: str | None = Field(default=None, min_length=1)
    factor: float = 1.0
    offset: float = 0.0
    missing: Annotated[tuple[str | float, ...], Field(strict=False)] = ()

    def as_column(self) -> "ColumnSettings":
        """The same for the values of this channel in a column of their own."""
        raw = {"factor": self.factor, "offset": self.offset, "missing": self.missing}
        return ColumnSettings.parse(raw, origin="a channel")

    @model_validator(mode="after")
    def _check_factor(self) -> Self:
        if self.factor == 0:
            raise ValueError("factor=0; expected another number, or every value would be the same")
        return self


class ColumnSettings(Settings):
    """How a hospital's table holds one feature of a study.

    Attributes:
        column: The hospital's own name of the column; the feature's name if it is not set.
        factor: Into the study's unit: value * factor + offset; not 0.
        offset: In the study's unit.
        codes: The study's number, or its category, for each of the hospital's codes; a code that is not listed is an
            error, unless it is the name of a category itself.
        missing: The hospital's codes for a value that was not measured. An empty cell never needs one.
    """

    column: str | None = Field(default=None, min_length=1)
    factor: float = 1.0
    offset: float = 0.0
    codes: FeatureCodes = Field(default_factory=dict)
    missing: Annotated[tuple[str | float, ...], Field(strict=False)] = ()

    @property
    def missing_keys(self) -> frozenset[Code]:
        """Codes for a missing value, by what they are compared by."""
        return frozenset(map(code_key, self.missing))

    @model_validator(mode="after")
    def _check_meanings(self) -> Self:
        if self.factor == 0:
            raise ValueError("factor=0; expected another number, or every value would be the same")
        if self.codes and (self.factor, self.offset) != (1.0, 0.0):
            raise ValueError("codes and factor or offset; expected one of them: codes are the study's values already")
        if both := self.missing_keys & code_meanings(self.codes).keys():
            raise ValueError(f"codes and missing both hold {sorted(map(str, both))}; expected each code in one of them")
        return self


AS_IT_IS = ColumnSettings.parse({}, origin="a column that site.toml does not name")
"""How a column is read that ``site.toml`` does not name."""


class TableColumnSettings(Settings):
    """What the columns of a table are, wherever it is read from.

    Attributes:
        fold: Column that says ``train`` or ``test``.
        label: Column of the class, the event, the target or the tail; none for a study of findings, each of which has
            a column of its own.
        time: Column of the times of follow-up, for a study of survival.
        patient: Column that says whose record a row is, if there can be several of one patient.
        columns: How the table holds a feature, a finding or the target, by the study's name of it; as the study names
            and counts it if not set.
        labels: The study's class for each of the hospital's codes in ``label``; as they are written if not set.
    """

    fold: str | None = Field(default=None, min_length=1)
    label: str | None = Field(default=None, min_length=1)
    time: str | None = Field(default=None, min_length=1)
    patient: str | None = Field(default=None, min_length=1)
    columns: dict[str, ColumnSettings] = Field(default_factory=dict)
    labels: LabelCodes = Field(default_factory=dict)

    @property
    def has_one_record_a_patient(self) -> bool:
        """Whether protecting a record protects a patient: nobody can say before the table is read."""
        return False
