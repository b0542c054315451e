"""Which images a hospital has: the only place that reads an index of image files or looks into folders of classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fl_client.data.image_stack import ImageEntry, ImageFolds
from fl_client.data.outcome_columns import IndexedOutcome
from fl_client.source_settings import ImageIndexSettings
from fl_contract.errors import RefusalCode, RefusalError

FOLDS = ("train", "test")
"""What the fold column may hold, and the names of the folders of class folders."""

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Of the files in class folders, in capital letters too."""


def read_image_index(
    settings: ImageIndexSettings,
    *,
    site_folder: Path,
    image_folder: Path,
    frame: str | None = None,
    outcome: IndexedOutcome | None = None,
) -> ImageFolds:
    """The images that an index names; files that it does not name are none of the study's.

    Args:
        settings: The CSV file and its columns.
        site_folder: That the path of the CSV file begins at; the one of ``site.toml``.
        image_folder: That the paths in the CSV file begin at.
        frame: Column with the number of an image in its file, from 1; None where each file is one image.
        outcome: Columns of what is predicted; None where only the files are asked for.

    Raises:
        RefusalError: INVALID_DATA: the index cannot be read, has no rows, misses a column or a value, holds a text for
            a number, names an image twice or a file outside the folder, or has a patient in both folds.
    """
    path = site_folder / settings.table
    table = _read_table(path)
    outcome = outcome or IndexedOutcome()
    columns = [settings.file, outcome.label, settings.fold, settings.patient, frame, *outcome.numbers, outcome.mask]
    named = list(dict.fromkeys(column for column in columns if column is not None))
    if missing := [column for column in named if column not in table.columns]:
        raise _refusal(f"{path}: columns {missing} are missing; site.toml names them")
    if table.empty:
        raise _refusal(f"{path}: holds no rows; expected at least one image")
    for column in named:
        if empty := int((table[column] == "").sum()):
            raise _refusal(f"{path}: column {column!r} is empty in {empty} rows; expected a value in each")
    if unknown := int((~table[settings.fold].isin(FOLDS)).sum()):
        raise _refusal(f"{path}: column {settings.fold!r}: {unknown} rows hold no fold; expected 'train' or 'test'")
    if frame is not None and (wrong := int((~table[frame].str.fullmatch(r"[1-9][0-9]{0,8}")).sum())):
        raise _refusal(f"{path}: column {frame!r}: {wrong} rows hold no frame; expected whole numbers from 1")
    for column in [settings.file, *([outcome.mask] if outcome.mask is not None else [])]:
        if outside := sum(_is_outside(Path(name)) for name in table[column]):
            raise _refusal(f"{path}: column {column!r}: {outside} rows name a file outside the folder of images")
    numbers = _read_numbers(table, outcome.numbers, path)
    if twice := int(table.duplicated([column for column in (settings.file, frame) if column is not None]).sum()):
        raise _refusal(f"{path}: {twice} images are named more than once; expected each in one row")
    _check_patients(table, settings, path)

    def entries(fold: str) -> tuple[ImageEntry, ...]:
        return tuple(
            ImageEntry(
                path=image_folder / row[settings.file],
                place=f"line {line}",
                label=row[outcome.label] if outcome.label is not None else "",
                patient=row[settings.patient] if settings.patient is not None else None,
                frame=int(row[frame]) if frame is not None else None,
                numbers=tuple(numbers[line - 2].tolist()),
                mask=image_folder / row[outcome.mask] if outcome.mask is not None else None,
            )
            for line, row in enumerate(table.to_dict("records"), start=2)
            if row[settings.fold] == fold
        )

    return ImageFolds(train=entries("train"), test=entries("test"))


def find_class_folders(folder: Path) -> ImageFolds:
    """The images in ``train/<class>/`` and ``test/<class>/``, by name; the folder's name is the label.

    Raises:
        RefusalError: INVALID_DATA: a folder cannot be read, something there is no PNG or JPEG file, or there are no
            images.
    """
    try:
        train, test = (_find_fold(folder / fold) for fold in FOLDS)
    except OSError as error:
        raise _refusal(
            f"{folder}: folders 'train' and 'test' of class folders cannot be read ({error.strerror}); "
            "check that they are there, and their permissions"
        ) from error
    if not train + test:
        raise _refusal(f"{folder}: holds no images; expected at least one")
    return ImageFolds(train=train, test=test)


def _find_fold(folder: Path) -> tuple[ImageEntry, ...]:
    found, others = [], 0
    for number, class_folder in enumerate(sorted(folder.iterdir()), start=1):
        if not class_folder.is_dir():
            others += 1
            continue
        for position, path in enumerate(sorted(class_folder.iterdir()), start=1):
            if path.suffix.lower() not in SUFFIXES:
                others += 1
            place = f"{folder.name}, folder {number}, file {position}"
            found.append(ImageEntry(path=path, place=place, label=class_folder.name))
    if others:
        raise _refusal(f"{folder}: {others} entries are neither class folders nor PNG or JPEG files; move them away")
    return tuple(found)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except OSError as error:
        raise _refusal(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except ValueError as error:
        raise _refusal(f"{path}: is no table; expected CSV in UTF-8 with a line of column names") from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the surplus values at the left for names of rows
        raise _refusal(f"{path}: rows hold more values than there are column names")
    return table


def _read_numbers(table: pd.DataFrame, columns: Sequence[str], path: Path) -> NDArray[np.float64]:
    """[N, columns], all finite."""
    numbers = np.empty((len(table), len(columns)))
    for position, column in enumerate(columns):
        numbers[:, position] = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=np.float64)
        if wrong := int((~np.isfinite(numbers[:, position])).sum()):
            raise _refusal(f"{path}: column {column!r}: {wrong} rows hold no number; expected a finite one in each")
    return numbers


def _is_outside(name: Path) -> bool:
    return name.is_absolute() or ".." in name.parts


def _check_patients(table: pd.DataFrame, settings: ImageIndexSettings, path: Path) -> None:
    if settings.patient is None:
        return
    train, test = (set(table.loc[table[settings.fold] == fold, settings.patient]) for fold in FOLDS)
    if shared := len(train & test):
        raise _refusal(f"{path}: {shared} patients are in training and held-out rows; expected each in one of them")


def _refusal(detail: str) -> RefusalError:
    return RefusalError(RefusalCode.INVALID_DATA, detail)
