"""The only place that keeps the second copy of a ledger's end: a small file in another folder, its receipt.

A backup of the ledger that is put back is a whole chain, only shorter. The receipt says how long the chain was and how
it ended, so that a shorter or another one is refused. It is written after the commit: a crash in between leaves it
behind by the rows of one transaction, never ahead. Whoever puts back an old copy of both is not noticed.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from privacy.errors import LedgerError


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """How a ledger ended.

    Attributes:
        site: The hospital whose ledger it is.
        rows: How many rows it had.
        hash: Of its last row.
    """

    site: str
    rows: int
    hash: str


def read_receipt(path: Path) -> Receipt | None:
    """Read a receipt; None if there is none.

    Raises:
        LedgerError: It cannot be read.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Receipt(site=str(values["site"]), rows=int(values["rows"]), hash=str(values["hash"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"receipt={path}; cannot be read: {error!r}; put its latest copy back") from error


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Replace a receipt in one step; it is on disk when this returns.

    Raises:
        LedgerError: It cannot be written; the one before is still there.
    """
    partial = path.with_suffix(".partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(receipt)) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise LedgerError(
            f"receipt={path}; cannot be written: {error}; what was charged stays charged, nothing is trained; "
            "check the folder's owner and disk"
        ) from error


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep every other process and thread out, from before a transaction until its receipt is written.

    The lock is on the receipts' folder, which stays in place while receipts are replaced. A crash lets go of it.

    Raises:
        LedgerError: There is no such folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise LedgerError(
            f"receipts={folder}; cannot be opened: {error.strerror}; create the folder, or mount the volume that "
            "holds it"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
