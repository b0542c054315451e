"""The only place that reads a database's user and password: from the environment, or from a private file."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from fl_client.refusals import invalid_data
from fl_client.source_settings import CredentialsSettings

PRIVATE = "a file of your own that nobody else can read (chmod 600)"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A database's user and password, in no repr."""

    user: str = field(repr=False)
    password: str = field(repr=False)


def read_credentials(settings: CredentialsSettings, *, folder: Path) -> Credentials:
    """Read ``user:password``; the password may hold colons.

    Args:
        settings: Where it is kept.
        folder: That a relative path begins at.

    Raises:
        RefusalError: INVALID_DATA: the variable or file is absent, the file is not private, or the text is of another
            form.
    """
    if settings.environment is not None:
        origin = f"environment variable {settings.environment}"
        if (text := os.environ.get(settings.environment)) is None:
            raise invalid_data(f"{origin} is not set; source.credentials in site.toml names it")
    else:
        path = folder / str(settings.file)
        origin, text = str(path), _read_private(path)
    user, colon, password = text.removesuffix("\n").removesuffix("\r").partition(":")
    if not (user and colon and password) or len(text.splitlines()) > 1:
        raise invalid_data(f"{origin}: expected one line, user:password")
    return Credentials(user=user, password=password)


def _read_private(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            state = os.fstat(file.fileno())
            if state.st_uid != os.geteuid():
                raise invalid_data(f"{path}: belongs to another user; expected {PRIVATE}")
            if (mode := stat.S_IMODE(state.st_mode)) & (stat.S_IRWXG | stat.S_IRWXO):
                raise invalid_data(f"{path}: others have rights, mode {mode:04o}; expected {PRIVATE}")
            return file.read()
    except OSError as error:
        raise invalid_data(f"{path}: cannot be read ({error.strerror}); expected {PRIVATE}") from error
    except UnicodeDecodeError:  # whose text holds the password
        raise invalid_data(f"{path}: expected one line in UTF-8, user:password") from None
