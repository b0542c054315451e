"""A hospital's journal, ``journal.jsonl``: the only place that keeps what was approved, run, refused and released.

Lines are only added, each durable before `Journal.append` returns, by any number of processes. A receipt in another
folder says how many lines there were and how the last one ended, so that a journal that was cut or put back from an old
copy is noticed. It is written after the line: a crash in between leaves it behind, never ahead. Whoever puts back old
copies of both is not noticed, and whoever rewrites both is not either: the chain has no secret.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fl_client.durable_file import flush_folder, write_durably
from fl_client.journal_chain import Entry, read_lines
from fl_contract.errors import JournalError
from privacy.ledger_chain import FIRST

JOURNAL_FILE = "journal.jsonl"
RECEIPT_FILE = Path("receipts") / "journal.receipt"

APPROVAL = "approval"
WITHDRAWAL = "withdrawal"
REFUSAL = "refusal"
RUN = "run"
RELEASE = "release"
START = "start"
STOP = "stop"
REPAIR = "repair"
KINDS = (APPROVAL, WITHDRAWAL, REFUSAL, RUN, RELEASE, START, STOP, REPAIR)

_MOST_AHEAD = 2
"""Lines that one crash can leave behind the receipt: a repair and what was to be written."""
_WHAT_TO_DO = "run fl-client log verify, and put the latest copy back"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """How the journal ended.

    Attributes:
        lines: How many it had.
        start: Byte at which the last one begins.
        size: Of the journal, in bytes.
        hash: Of the last line.
    """

    lines: int = 0
    start: int = 0
    size: int = 0
    hash: str = FIRST

    def then(self, entries: Sequence[Entry]) -> "Receipt":
        """The receipt after further lines."""
        if not entries:
            return self
        size = self.size + sum(len(entry.line) for entry in entries)
        last = entries[-1]
        return Receipt(lines=last.number, start=size - len(last.line), size=size, hash=last.hash)


class Journal:
    """What happened at a hospital, in order.

    Args:
        folder: That of its ``site.toml``.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL_FILE
        self._receipt = folder / RECEIPT_FILE

    def append(self, kind: str, **fields: object) -> None:
        """Add a line; it is on disk when this returns. What a power cut left of an earlier one is replaced by a line.

        Reads the end of the file only: the time does not grow with the journal.

        Args:
            kind: One of `KINDS`.
            fields: What JSON can hold.

        Raises:
            JournalError: The journal does not end as its receipt says.
            OSError: It cannot be written.
        """
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}; expected one of {list(KINDS)}")
        content: dict[str, Any] = {**fields, "kind": kind, "time": _now()}
        Entry.make(content, number=1, previous=FIRST)  # what JSON cannot hold is noticed before anything is written
        self._receipt.parent.mkdir(mode=0o700, exist_ok=True)
        with _locked(self._path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as file:
            receipt, torn = self._end(file)
            entries: list[Entry] = []
            previous = receipt.hash
            for each in [_repair(torn), content] if torn else [content]:
                entries.append(Entry.make(each, number=receipt.lines + len(entries) + 1, previous=previous))
                previous = entries[-1].hash
            _write(file, b"".join(entry.line for entry in entries), at=receipt.size)
            self._write_receipt(receipt.then(entries))

    def read(self) -> list[Entry]:
        """All lines, after every one was checked; what a power cut left behind the last one is left out.

        Raises:
            JournalError: Names the first line that is broken, missing or another one than the receipt says.
        """
        return self.check()[0]

    def check(self) -> tuple[list[Entry], int]:
        """The same, and how many bytes a power cut left behind the last line.

        Raises:
            JournalError: As `read`.
        """
        data = b""
        with suppress(FileNotFoundError), _locked(self._path, os.O_RDONLY, fcntl.LOCK_SH) as file:
            found, data = self._read_receipt(), _read(file, 0, os.fstat(file).st_size)
        if not data:
            found = self._read_receipt()
        if data and found is None:
            raise self._no_receipt()
        receipt = found or Receipt()
        entries, torn = read_lines(data, after=0, previous=FIRST)
        if len(entries) < receipt.lines:
            raise JournalError(
                f"line {len(entries) + 1} is missing, or cut; the receipt says that there are {receipt.lines}"
            )
        if Receipt().then(entries[: receipt.lines]) != receipt:
            raise JournalError(
                f"line {receipt.lines} is another one than the receipt says; the journal was written anew, or the "
                "receipt was changed"
            )
        _check_ahead(entries[receipt.lines :])
        return entries, len(torn)

    def _end(self, file: int) -> tuple[Receipt, bytes]:
        """How the journal ends, with a receipt that says so; and what a power cut left behind it."""
        size, receipt = os.fstat(file).st_size, self._read_receipt()
        if receipt is None:
            if size:
                raise self._no_receipt()
            self._write_receipt(receipt := Receipt())
            flush_folder(self._path.parent)
        if size < receipt.size or not _ends_as(file, receipt):
            raise JournalError(f"line {receipt.lines} is missing, or another one than the receipt says; {_WHAT_TO_DO}")
        tail = _read(file, receipt.size, size - receipt.size)
        entries, torn = read_lines(tail, after=receipt.lines, previous=receipt.hash)
        _check_ahead(entries)
        if entries:
            self._write_receipt(receipt := receipt.then(entries))
        return receipt, torn

    def _read_receipt(self) -> Receipt | None:
        try:
            return Receipt(**json.loads(self._receipt.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise JournalError(f"receipt={self._receipt}; cannot be read; put its latest copy back") from error

    def _no_receipt(self) -> JournalError:
        return JournalError(f"receipt={self._receipt}; is missing; put its latest copy back")

    def _write_receipt(self, receipt: Receipt) -> None:
        write_durably(self._receipt, (json.dumps(asdict(receipt)) + "\n").encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _repair(torn: bytes) -> dict[str, Any]:
    begins = torn[:200].decode("ascii", "backslashreplace")
    return {
        "kind": REPAIR,
        "time": _now(),
        "bytes": len(torn),
        "sha256": hashlib.sha256(torn).hexdigest(),
        "begins": begins,
    }


def _check_ahead(entries: list[Entry]) -> None:
    if len(entries) > _MOST_AHEAD:
        raise JournalError(
            f"line {entries[_MOST_AHEAD].number} is not in the receipt, an old copy that misses {len(entries)} lines; "
            "put its latest copy back"
        )


def _ends_as(file: int, receipt: Receipt) -> bool:
    if not receipt.lines:
        return True
    try:
        last = json.loads(_read(file, receipt.start, receipt.size - receipt.start))
        return bool((last["number"], last["hash"]) == (receipt.lines, receipt.hash))
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def _locked(path: Path, flags: int, lock: int) -> Iterator[int]:
    """Open the journal, its owner's alone, and keep other processes and threads out; a crash lets go of the lock."""
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, lock)
        yield file
    finally:
        os.close(file)


def _read(file: int, start: int, size: int) -> bytes:
    with os.fdopen(os.dup(file), "rb") as stream:
        stream.seek(start)
        return stream.read(size)


def _write(file: int, data: bytes, *, at: int) -> None:
    """Write behind the last whole line; a disk that is full leaves none of it."""
    try:
        os.ftruncate(file, at)
        os.lseek(file, at, os.SEEK_SET)
        with os.fdopen(os.dup(file), "wb") as stream:
            stream.write(data)
        os.fsync(file)
    except OSError:
        with suppress(OSError):
            os.ftruncate(file, at)
        raise
