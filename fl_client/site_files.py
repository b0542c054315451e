"""The only place that finds the own files of the hospitals in a folder."""

from pathlib import Path

from fl_contract.errors import SettingError

SITE_LOG = "site.log"
"""Full text of refusals and errors; never sent anywhere."""
SITE_FILE = "site.toml"


def site_files(place: Path) -> list[Path]:
    """The ``site.toml`` that is given, or every one below a folder.

    Raises:
        SettingError: There is none.
    """
    if not place.exists():
        raise SettingError(f"{place}: does not exist; give the hospital's {SITE_FILE} or its folder")
    files = [place] if place.is_file() else sorted(place.rglob(SITE_FILE))
    if not files:
        raise SettingError(f"{place}: holds no {SITE_FILE}; give the hospital's file or its folder")
    return files
