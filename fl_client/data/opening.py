"""The only place that says whether a source opens at all, without a study: no record is read."""

import os
from collections.abc import Iterator
from pathlib import Path

from fl_client.refusals import invalid_data
from fl_client.source_settings import AnySourceSettings, SeriesSourceSettings, SqlSourceSettings

PLACES = ("train", "test", "file", "folder")
"""Names of the settings that hold a path, in every kind of source."""


def check_opens(settings: AnySourceSettings, folder: Path) -> str:
    """Connect to the database, or look at each file and folder that the settings name.

    Args:
        settings: From ``site.toml``.
        folder: That of ``site.toml``.

    Returns:
        What was opened.

    Raises:
        RefusalError: INVALID_DATA: something cannot be opened.
    """
    if isinstance(settings, SqlSourceSettings):
        from fl_client.data.sql import SqlSource

        SqlSource(settings, folder=folder, features=()).connect()
        return f"connected to {settings.url}; the query was not run"
    paths = list(_paths(settings, folder))
    for path in paths:
        if not path.exists():
            raise invalid_data(f"{path}: is absent; site.toml names it as a source")
        if not os.access(path, os.R_OK):
            raise invalid_data(f"{path}: cannot be read by this user; site.toml names it as a source")
    return f"{len(paths)} files and folders can be read" if paths else "comes with this installation"


def _paths(settings: AnySourceSettings, folder: Path) -> Iterator[Path]:
    holders: list[object] = [settings]
    if isinstance(settings, SeriesSourceSettings):
        holders.append(settings.outcomes)
    for holder in holders:
        yield from (folder / value for name in PLACES if (value := getattr(holder, name, None)))
    if (index := getattr(settings, "index", None)) is not None:
        yield folder / index.table
