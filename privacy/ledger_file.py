"""The only place that creates, opens and checks the SQLite file behind a ledger.

Durability: a rollback journal with ``synchronous=EXTRA``, which is FULL plus a flush of the folder, so that neither a
crash nor a power cut can undo a committed row. Append-only: triggers refuse to change or delete a row, and to add one
anywhere but at the end. They stop mistakes, also those of another program that opens the file, and nobody who means it:
whoever can write the file can drop the triggers. The chain of hashes and the receipt notice what was done then.
"""

import contextlib
import os
import secrets
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from privacy.errors import LedgerError
from privacy.ledger_chain import FIRST, add_rows

_APPLICATION_ID = 0x436F6E73  # "Cons"
_FORMAT_VERSION = 2
_BUSY_TIMEOUT_SECONDS = 60.0
_FLUSH_ALL = "PRAGMA synchronous = EXTRA"

_IDENTITY = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_FORMAT_VERSION};"

_SCHEMA = """
CREATE TABLE chain (
    number INTEGER PRIMARY KEY CHECK (number > 0),
    content TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE TRIGGER row_is_at_the_end BEFORE INSERT ON chain
WHEN NEW.number IS NOT (SELECT ifnull(max(number), 0) + 1 FROM chain)
BEGIN SELECT RAISE(ABORT, 'a row can only be added at the end'); END;
CREATE TRIGGER row_is_kept BEFORE UPDATE ON chain
BEGIN SELECT RAISE(ABORT, 'a row cannot be changed'); END;
CREATE TRIGGER row_is_not_deleted BEFORE DELETE ON chain
BEGIN SELECT RAISE(ABORT, 'a row cannot be deleted'); END;
"""


def open_ledger_file(path: Path, *, site: str, delta: float) -> sqlite3.Connection:
    """Open the ledger at ``path``, creating it first if there is none.

    Guarantees:
        - The file is readable and writable by its owner only (mode 0600).
        - A new file appears complete or not at all; two processes that create it at once share one.
        - An empty, damaged or foreign file is refused and left as it is.

    Args:
        path: In an existing folder: a folder that is suddenly missing may be a volume that is not mounted, and
            starting there with nothing spent would be wrong.
        site: The hospital's name, for a new file; whose an existing file is, its first row says.
        delta: The same.

    Returns:
        A connection in autocommit mode; transactions are begun by hand.
    """
    if not path.parent.is_dir():
        raise LedgerError(f"ledger={path}; the folder does not exist; create it, or mount the volume that holds it")
    if not path.exists():
        _create(path, site, delta)
    if not path.is_file():
        raise LedgerError(f"ledger={path}; not a file; expected a ledger or nothing at that path")
    try:
        path.chmod(0o600)
    except OSError as error:
        raise LedgerError(f"ledger={path}; cannot be opened: {error}; check its owner and its disk") from error
    connection = _connect(path)
    try:
        _check(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise LedgerError(f"ledger={path}; not a ledger, or damaged: {error}; {WHAT_TO_DO}") from error
    except LedgerError:
        connection.close()
        raise
    return connection


WHAT_TO_DO = "restore the latest backup; a new, empty ledger would forget what was spent"


def first_content(site: str, delta: float) -> dict[str, Any]:
    """Whose ledger it is, at which delta, and the secret with which it fingerprints records."""
    return {"kind": "ledger", "site": site, "delta": delta, "salt": secrets.token_hex(32)}


def _create(path: Path, site: str, delta: float) -> None:
    """Build the whole file in a folder of its own, then link it into place unless another process was first."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            new_file = Path(folder) / path.name
            new_file.touch(mode=0o600)
            with contextlib.closing(_connect(new_file)) as connection:
                connection.executescript(f"{_FLUSH_ALL}; BEGIN; {_IDENTITY} {_SCHEMA} COMMIT;")
                add_rows(connection, [first_content(site, delta)], after=0, previous=FIRST)
            _link(new_file, path)
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"ledger={path}; cannot be created: {error}; check the folder's owner and disk") from error


def _link(new_file: Path, path: Path) -> None:
    """Give the file its name, and flush the folder so that a power cut does not take it back."""
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(new_file)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=_BUSY_TIMEOUT_SECONDS
    )
    connection.row_factory = sqlite3.Row
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute(_FLUSH_ALL)
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application_id != _APPLICATION_ID:
        raise LedgerError(f"ledger={path}; the file is not a ledger; {WHAT_TO_DO}")
    if version != _FORMAT_VERSION:
        raise LedgerError(f"ledger={path}; format {version}; expected {_FORMAT_VERSION}; use the release that wrote it")
    problem = connection.execute("PRAGMA quick_check").fetchone()[0]
    if problem != "ok":
        raise LedgerError(f"ledger={path}; damaged: {problem}; {WHAT_TO_DO}")
