"""The only place that checks where a command was asked to write, before it does anything that cannot be taken back."""

from pathlib import Path

from fl_contract.errors import SettingError


def check_output(path: Path) -> None:
    """Raise if a file cannot be written because of where it should be.

    Raises:
        SettingError: Its folder is absent, or it is a folder itself.
    """
    if path.is_dir():
        raise SettingError(f"--out={path}; is a folder; name a file in it")
    if not path.parent.is_dir():
        raise SettingError(f"--out={path}; there is no folder {path.parent}; make it, or name a file elsewhere")
