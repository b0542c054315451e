"""A hospital's time series in a long file, a row for each measurement: the only place that reads one."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fl_client.column_settings import ChannelSettings
from fl_client.data.mapping import map_column
from fl_client.data.outcome_columns import outcome_numbers, place_outcome
from fl_client.data.records import Records, SiteRecords
from fl_client.data.table import check_columns
from fl_client.data.table_file import TableFileSource, read_rows
from fl_client.data.windows import WindowGrid
from fl_client.refusals import invalid_data, refuse_if_any
from fl_client.source_settings import SeriesSourceSettings
from fl_contract.schema import SeriesSchema

MICROSECONDS = {"seconds": 10**6, "minutes": 60 * 10**6, "hours": 3600 * 10**6, "days": 86_400 * 10**6}
"""Units of a study's steps that timestamps can be counted in."""

MOST_STEPS = 10**9
"""Furthest that a measurement may be from a patient's start."""

BOUNDARY = 6
"""Decimals of a step that count: a time is in the next step from a millionth before it on, as 0.3 / 0.1 must be."""


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Some rows of the file that are of the study and of a patient with an outcome.

    Attributes:
        patients: [N] position among the patients with an outcome.
        channels: [N] position among the study's channels.
        times: [N] in ``step-unit``, or for timestamps in microseconds.
        values: [N] in the study's unit, none missing.
    """

    patients: NDArray[np.int64]
    channels: NDArray[np.int64]
    times: NDArray[np.float64] | NDArray[np.int64]
    values: NDArray[np.float64]


class SeriesSource:
    """Windows of the series of patients with an outcome.

    Guarantees:
        - Memory is that of the windows and of one chunk of the file, which is read twice.
        - What is left out is said in the records' notes: measurements outside the windows, of patients without an
          outcome and, where the settings allow it, of channels that the study does not name; patients with an outcome
          and no measurement.

    Args:
        settings: Files, columns and windows, from ``site.toml``.
        folder: That relative paths begin at; the one of ``site.toml``.
        schema: Channels, steps and length of a window.
    """

    def __init__(self, settings: SeriesSourceSettings, *, folder: Path, schema: SeriesSchema) -> None:
        self._settings = settings
        self._schema = schema
        self._path = folder / settings.file
        self._outcomes = TableFileSource(
            place_outcome(settings.outcomes, schema), folder=folder, features=(), numbers=outcome_numbers(schema)
        )

    def files(self) -> list[Path]:
        """The measurements, and the table of outcomes."""
        return [self._path, *self._outcomes.files()]

    def load(self) -> SiteRecords:
        """Windows with their patient's outcome: [N, channels, steps], NaN where nothing was measured in a step.

        Raises:
            RefusalError: INVALID_DATA: a file or column is missing, a patient has several outcomes, a row does not say
                whose, when or what, a value is no number, or a channel is none of the study's.
        """
        step = self._step()
        outcomes = self._outcomes.load()
        patients = _patients(outcomes)
        long = LongTable(self._settings, self._schema, patients, origin=str(self._path))
        starts, num_steps = self._extents(long, len(patients), step)
        refuse_if_any([invalid_data(line) for line in long.faults()])
        grid = WindowGrid(
            num_steps,
            num_channels=len(self._schema.channels),
            length=self._schema.length,
            windows=self._settings.windows,
            stride=self._stride(),
        )
        outside = 0
        for rows in LongTable(self._settings, self._schema, patients, origin=str(self._path)).read(self._path):
            steps = _steps(rows.times - starts[rows.patients], step)
            outside += grid.add(rows.patients, steps, rows.channels, rows.values)
        first = len(outcomes.train)
        notes = [*long.notes(), *_window_notes(outside, int((num_steps == 0).sum()))]
        return SiteRecords(
            train=_windows_of(outcomes.train, grid, 0, first),
            test=_windows_of(outcomes.test, grid, first, len(patients)),
            notes=tuple(f"{self._path.name}: {note}" for note in notes),
        )

    def _step(self) -> float:
        """Length of a step as times are counted: in ``step-unit``, or for timestamps in microseconds."""
        if self._settings.times == "numbers":
            return self._schema.step
        unit = self._schema.step_unit
        if unit not in MICROSECONDS:
            raise invalid_data(
                f"schema.step-unit={unit!r} and source.times='timestamps'; expected steps in one of "
                f"{list(MICROSECONDS)}, or times in numbers of {unit}"
            )
        return self._schema.step * MICROSECONDS[unit]

    def _stride(self) -> int:
        stride, length = self._settings.stride or self._schema.length, self._schema.length
        if stride > length:
            raise invalid_data(f"source.stride={stride}; expected at most the study's schema.length={length}")
        return stride

    def _extents(
        self, long: "LongTable", num_patients: int, step: float
    ) -> tuple[NDArray[np.float64] | NDArray[np.int64], NDArray[np.int64]]:
        """Start of each patient's time, and the number of steps up to the last measurement."""
        is_absolute = self._settings.times == "timestamps"
        dtype, (low, high) = (np.int64, _LIMITS) if is_absolute else (np.float64, (-np.inf, np.inf))
        first, last = np.full(num_patients, high, dtype), np.full(num_patients, low, dtype)
        for rows in long.read(self._path):
            np.minimum.at(first, rows.patients, rows.times)
            np.maximum.at(last, rows.patients, rows.times)
        starts = np.where(last > low, first, 0) if is_absolute else np.zeros(num_patients)
        return starts, np.maximum(_steps(np.where(last > low, last - starts, -step), step) + 1, 0)


_LIMITS = (-(2**62), 2**62)


class LongTable:
    """Reads the rows of the file once, and counts what is wrong with them.

    Args:
        settings: Columns and channels.
        schema: The study's channels.
        patients: [P] those with an outcome.
        origin: The file, for messages.

    Raises:
        RefusalError: INVALID_DATA: two channels of the study have one name in the file.
    """

    def __init__(
        self, settings: SeriesSourceSettings, schema: SeriesSchema, patients: Sequence[str], *, origin: str
    ) -> None:
        self._settings, self._schema, self._origin = settings, schema, origin
        self._patients = pd.Index(patients)
        mapped = [settings.channels.get(channel.name, ChannelSettings()) for channel in schema.channels]
        self._values = [each.as_column() for each in mapped]
        names = [each.name or channel.name for each, channel in zip(mapped, schema.channels, strict=True)]
        if len(set(names)) < len(names):
            raise invalid_data("source.channels gives two channels of the study one name; expected each its own")
        self._names = pd.Index(names)
        self._counts = Counter[str]()
        self._unknown_values = Counter[str]()
        self._unknown_patients: set[str] = set()

    @property
    def texts(self) -> list[str]:
        """Columns that are read as they are written."""
        settings = self._settings
        return [settings.patient, settings.channel, *([settings.time] if settings.times == "timestamps" else [])]

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        settings = self._settings
        return list(dict.fromkeys((settings.patient, settings.time, settings.channel, settings.value)))

    def check(self, found: Sequence[str], *, origin: str) -> None:
        """Refuse a file without these columns."""
        check_columns(self.columns, found, origin=origin)

    def read(self, path: Path) -> Iterator[Measurements]:
        """The rows that are of the study and of a patient with an outcome, some at a time."""
        for rows in read_rows(path, self):
            yield self._map(rows)

    def _map(self, rows: pd.DataFrame) -> Measurements:
        settings = self._settings
        for column in (settings.patient, settings.time, settings.channel):
            self._counts[column] += int(rows[column].isna().sum())
        channels = self._names.get_indexer(_as_texts(rows[settings.channel]))
        self._counts["others"] += int(((channels < 0) & rows[settings.channel].notna()).sum())
        ids = _as_texts(rows[settings.patient])
        patients = self._patients.get_indexer(ids)
        self._unknown_patients.update(ids[(patients < 0) & rows[settings.patient].notna().to_numpy()])
        values = self._map_values(rows[settings.value], channels)
        times, is_time = self._map_times(rows[settings.time])
        self._counts["no time"] += int((~is_time & rows[settings.time].notna()).sum())
        is_used = (channels >= 0) & (patients >= 0) & is_time & ~np.isnan(values)
        return Measurements(
            patients=patients[is_used], channels=channels[is_used], times=times[is_used], values=values[is_used]
        )

    def _map_values(self, column: pd.Series, channels: NDArray[np.int64]) -> NDArray[np.float64]:
        values = np.full(len(column), np.nan)
        for number in np.unique(channels[channels >= 0]):
            is_its = channels == number
            values[is_its], unknown = map_column(column[is_its], self._values[number])
            self._unknown_values[self._schema.channels[number].name] += unknown
        infinite = np.isinf(values)
        self._counts["infinite"] += int(infinite.sum())
        self._counts["empty"] += int((np.isnan(values) & (channels >= 0)).sum())
        return values

    def _map_times(self, column: pd.Series) -> tuple[NDArray[np.float64] | NDArray[np.int64], NDArray[np.bool_]]:
        """Each row's time, and whether it is one."""
        settings = self._settings
        if settings.times == "timestamps":
            if pd.api.types.is_numeric_dtype(column):
                return np.zeros(len(column), np.int64), np.zeros(len(column), bool)
            stamps = pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce").dt.as_unit("us")
            return stamps.to_numpy(dtype="datetime64[us]").astype(np.int64), stamps.notna().to_numpy()
        if pd.api.types.is_datetime64_any_dtype(column):
            return np.zeros(len(column)), np.zeros(len(column), bool)
        times = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        times = times * settings.time_factor
        return times, np.isfinite(times) & (np.abs(times) < MOST_STEPS * self._schema.step)

    def faults(self) -> list[str]:
        """A line for each broken rule, without a value."""
        settings, counts = self._settings, self._counts
        kind = "timestamp of ISO 8601" if settings.times == "timestamps" else "number that can be a time"
        lines = [
            f"column {column!r} is empty in {counts[column]} rows; expected a value"
            for column in (settings.patient, settings.time, settings.channel)
            if counts[column]
        ]
        if count := counts["no time"]:
            lines.append(f"column {settings.time!r}: {count} rows hold no {kind}; see source.times")
        lines += [
            f"column {settings.value!r}, channel {name!r}: {count} rows hold a text without a meaning; expected "
            f"numbers, or a code for a missing value in source.channels.{name!r}.missing"
            for name, count in self._unknown_values.items()
            if count
        ]
        if count := counts["infinite"]:
            lines.append(f"column {settings.value!r}: {count} rows are infinite; expected numbers")
        if counts["others"] and not settings.ignore_others:
            lines.append(
                f"column {settings.channel!r}: {counts['others']} rows are of channels that the study does not name; "
                "name them in source.channels, or set source.ignore-others = true"
            )
        return [f"{self._origin}: {line}" for line in lines]

    def notes(self) -> list[str]:
        """What is left out, in counts."""
        lines = []
        if count := self._counts["others"]:
            lines.append(f"{count} measurements of channels that the study does not name are left out")
        if count := self._counts["empty"]:
            lines.append(f"{count} rows have no value; they count as not measured")
        if count := len(self._unknown_patients):
            lines.append(f"{count} patients with measurements have no outcome and are left out")
        return lines


def _as_texts(column: pd.Series) -> pd.Index:
    return pd.Index(column.astype(str))


def _steps(times: NDArray[np.float64] | NDArray[np.int64], step: float) -> NDArray[np.int64]:
    return np.floor(np.round(times / step, BOUNDARY)).clip(-MOST_STEPS, MOST_STEPS).astype(np.int64)


def _patients(outcomes: SiteRecords) -> list[str]:
    """Training patients, then held-out ones."""
    named = [fold.patients for fold in (outcomes.train, outcomes.test) if fold.patients is not None]
    patients = [str(patient) for fold in named for patient in fold]
    if repeated := len(patients) - len(set(patients)):
        raise invalid_data(f"source.outcomes: {repeated} rows are of a patient with an earlier row; expected one each")
    return patients


def _windows_of(fold: Records, grid: WindowGrid, start: int, stop: int) -> Records:
    windows, owners = grid.cut(start, stop)
    return replace(fold.take(owners), features=windows)


def _window_notes(outside: int, num_unmeasured: int) -> Iterator[str]:
    if outside:
        yield f"{outside} measurements lie outside the windows and are left out"
    if num_unmeasured:
        yield f"{num_unmeasured} patients with an outcome have no measurement and are left out"
