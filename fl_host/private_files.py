"""The only place that writes what nobody but its owner may read, and that checks whether it stayed so."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from fl_contract.errors import SettingError

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step by one that its owner alone may read; after a crash it holds the old or the new.

    Guarantees:
        - No moment at which others could read it, whatever the umask.
        - The content is on the disk when this returns.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), PRIVATE_FILE)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    _sync_folder(path.parent)


def make_private_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner alone; one that is there is made private."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with suppress(FileExistsError):
            folder.mkdir(mode=PRIVATE_FOLDER)
    path.chmod(PRIVATE_FOLDER)


def check_private(path: Path) -> None:
    """Raise if anybody but the user who runs this may read or write a file or folder.

    Raises:
        SettingError: It is absent, another user's, or open to the group or others.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if found.st_uid != os.geteuid():
        raise SettingError(f"{path}: belongs to user {found.st_uid}; expected {os.geteuid()}, who runs this; chown it")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(found.st_mode)
        raise SettingError(f"{path}: mode={mode:04o}; expected none for group and others; chmod go= {path}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
