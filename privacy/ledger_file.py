"""The only place that creates, opens and checks the SQLite file behind a ledger.

Durability: a rollback journal with ``synchronous=EXTRA``, which is FULL plus a flush of the folder, so that neither a
crash nor a power cut can undo a committed charge. Append-only: triggers refuse to delete, replace or change a charge, a
plan or the delta, and to settle a charge twice or upwards. They stop mistakes, also those of another program that opens
the file, and nobody who means it: whoever can write the file can drop the triggers, or put an older copy in its place.
"""

import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path

from privacy.errors import LedgerError

_APPLICATION_ID = 0x436F6E73  # "Cons"
_FORMAT_VERSION = 1
_BUSY_TIMEOUT_SECONDS = 60.0
_FLUSH_ALL = "PRAGMA synchronous = EXTRA"

_IDENTITY = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_FORMAT_VERSION};"

_SCHEMA = """
CREATE TABLE ledger (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), delta REAL NOT NULL);
CREATE TABLE plan (run TEXT PRIMARY KEY, study TEXT NOT NULL, plan TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE entry (
    id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
    run TEXT NOT NULL,
    server_round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    study TEXT NOT NULL,
    noise_multiplier REAL NOT NULL CHECK (noise_multiplier > 0),
    sampling_rate REAL NOT NULL CHECK (sampling_rate > 0 AND sampling_rate <= 1),
    clip_norm REAL NOT NULL CHECK (clip_norm > 0),
    steps_reserved INTEGER NOT NULL CHECK (steps_reserved > 0),
    steps_run INTEGER CHECK (steps_run BETWEEN 0 AND steps_reserved),
    holder TEXT NOT NULL,
    reserved_at TEXT NOT NULL,
    settled_at TEXT,
    UNIQUE (run, server_round, attempt)
);
CREATE TRIGGER entry_is_kept BEFORE DELETE ON entry
BEGIN SELECT RAISE(ABORT, 'a charge cannot be deleted'); END;
CREATE TRIGGER entry_is_not_replaced BEFORE INSERT ON entry
WHEN EXISTS (SELECT 1 FROM entry WHERE id = NEW.id
    OR (run = NEW.run AND server_round = NEW.server_round AND attempt = NEW.attempt))
BEGIN SELECT RAISE(ABORT, 'a charge cannot be replaced'); END;
CREATE TRIGGER entry_is_settled_once BEFORE UPDATE ON entry
WHEN OLD.steps_run IS NOT NULL OR NEW.id IS NOT OLD.id OR NEW.run IS NOT OLD.run
    OR NEW.server_round IS NOT OLD.server_round OR NEW.attempt IS NOT OLD.attempt OR NEW.study IS NOT OLD.study
    OR NEW.noise_multiplier IS NOT OLD.noise_multiplier OR NEW.sampling_rate IS NOT OLD.sampling_rate
    OR NEW.clip_norm IS NOT OLD.clip_norm OR NEW.steps_reserved IS NOT OLD.steps_reserved
    OR NEW.reserved_at IS NOT OLD.reserved_at
BEGIN SELECT RAISE(ABORT, 'a charge cannot be changed, only settled once'); END;
CREATE TRIGGER delta_is_kept BEFORE UPDATE ON ledger
BEGIN SELECT RAISE(ABORT, 'the delta of a ledger cannot be changed'); END;
CREATE TRIGGER delta_is_not_deleted BEFORE DELETE ON ledger
BEGIN SELECT RAISE(ABORT, 'the delta of a ledger cannot be deleted'); END;
CREATE TRIGGER delta_is_not_replaced BEFORE INSERT ON ledger WHEN EXISTS (SELECT 1 FROM ledger)
BEGIN SELECT RAISE(ABORT, 'the delta of a ledger cannot be replaced'); END;
CREATE TRIGGER plan_is_kept BEFORE UPDATE ON plan
BEGIN SELECT RAISE(ABORT, 'a plan cannot be changed'); END;
CREATE TRIGGER plan_is_not_deleted BEFORE DELETE ON plan
BEGIN SELECT RAISE(ABORT, 'a plan cannot be deleted'); END;
CREATE TRIGGER plan_is_not_replaced BEFORE INSERT ON plan WHEN EXISTS (SELECT 1 FROM plan WHERE run = NEW.run)
BEGIN SELECT RAISE(ABORT, 'a plan cannot be replaced'); END;
"""


def open_ledger_file(path: Path, *, delta: float) -> sqlite3.Connection:
    """Open the ledger at ``path``, creating it first if there is none.

    Guarantees:
        - The file is readable and writable by its owner only (mode 0600).
        - A new file appears complete or not at all; two processes that create it at once share one.
        - An empty, damaged or foreign file, and one of another delta, is refused and left as it is.

    Args:
        path: In an existing folder: a folder that is suddenly missing may be a volume that is not mounted, and
            starting there with nothing spent would be wrong.
        delta: Recorded at creation; must be equal ever after.

    Returns:
        A connection in autocommit mode; transactions are begun by hand.
    """
    if not path.parent.is_dir():
        raise LedgerError(f"ledger={path}; the folder does not exist; create it, or mount the volume that holds it")
    if not path.exists():
        _create(path, delta)
    if not path.is_file():
        raise LedgerError(f"ledger={path}; not a file; expected a ledger or nothing at that path")
    try:
        path.chmod(0o600)
    except OSError as error:
        raise LedgerError(f"ledger={path}; cannot be opened: {error}; check its owner and its disk") from error
    connection = _connect(path)
    try:
        _check(connection, path, delta)
    except sqlite3.Error as error:
        connection.close()
        raise LedgerError(f"ledger={path}; not a ledger, or damaged: {error}; {_WHAT_TO_DO}") from error
    except LedgerError:
        connection.close()
        raise
    return connection


_WHAT_TO_DO = "restore the latest backup; a new, empty ledger would forget what was spent"


def _create(path: Path, delta: float) -> None:
    """Build the whole file in a folder of its own, then link it into place unless another process was first."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            new_file = Path(folder) / path.name
            new_file.touch(mode=0o600)
            with contextlib.closing(_connect(new_file)) as connection:
                connection.executescript(f"{_FLUSH_ALL}; BEGIN; {_IDENTITY} {_SCHEMA} COMMIT;")
                connection.execute("INSERT INTO ledger VALUES (1, ?)", (delta,))
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


def _check(connection: sqlite3.Connection, path: Path, delta: float) -> None:
    connection.execute(_FLUSH_ALL)
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application_id != _APPLICATION_ID:
        raise LedgerError(f"ledger={path}; the file is not a ledger; {_WHAT_TO_DO}")
    if version != _FORMAT_VERSION:
        raise LedgerError(f"ledger={path}; format {version}; expected {_FORMAT_VERSION}; use the release that wrote it")
    problem = connection.execute("PRAGMA quick_check").fetchone()[0]
    if problem != "ok":
        raise LedgerError(f"ledger={path}; damaged: {problem}; {_WHAT_TO_DO}")
    recorded = connection.execute("SELECT max(delta) AS delta FROM ledger").fetchone()["delta"]
    if recorded != delta:
        raise LedgerError(
            f"delta={delta!r}; ledger {path} was created with delta={recorded!r}; expected the same: "
            "every epsilon it ever reported holds at that delta only; put it back in the site's settings"
        )
