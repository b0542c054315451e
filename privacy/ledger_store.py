"""The only place where a ledger's file, its chain of rows and its receipt come together, in one transaction.

In this order: lock the receipt's folder, begin, read and check the rows that others added, check the receipt, decide,
add rows, commit, read the rows back from the file, write the receipt, unlock. What a ledger says is always read from
its file.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privacy.errors import LedgerError
from privacy.ledger_book import Book
from privacy.ledger_chain import FIRST, add_rows, read_rows
from privacy.ledger_file import WHAT_TO_DO, open_ledger_file
from privacy.ledger_receipt import Receipt, only_one, read_receipt, write_receipt


class LedgerStore:
    """The rows of one hospital's ledger, read and extended under a lock.

    Attributes:
        book: What the rows say, as far as they were read.
    """

    def __init__(self, path: Path, *, site: str, delta: float, receipt: Path) -> None:
        """Open the ledger, or create it and the folder of its receipt.

        Args:
            path: The file; see `open_ledger_file` for what is refused.
            site: The hospital's name; that of the ledger.
            delta: That of the ledger.
            receipt: Where the ledger's receipt is kept; its folder's own folder exists.
        """
        self._path, self._receipt_path, self._site = path, receipt, site
        self._read_nothing()
        if path.parent.is_dir() and receipt.parent.parent.is_dir() and not path.exists():
            receipt.parent.mkdir(mode=0o700, exist_ok=True)
        with only_one(receipt.parent):
            if not path.exists() and read_receipt(receipt) is not None:
                raise LedgerError(f"ledger={path}; is missing, but has a receipt, {receipt}; {WHAT_TO_DO}")
            self._connection = open_ledger_file(path, site=site, delta=delta)
            try:
                self._catch_up()
                self._check_identity(delta)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the file; allowed more than once."""
        self._connection.close()

    @property
    def num_rows(self) -> int:
        """How many rows were read."""
        return len(self._hashes) - 1

    @property
    def last_hash(self) -> str:
        """Hash of the last row that was read."""
        return self._hashes[-1]

    @contextmanager
    def reading(self) -> Iterator[Book]:
        """Give the book as the file has it now; changes nothing."""
        with self._errors_named(), only_one(self._receipt_path.parent):
            self._catch_up()
            yield self.book

    @contextmanager
    def transaction(self) -> Iterator[list[dict[str, Any]]]:
        """Give a list for the contents of new rows; they are on disk when the block was left without an error.

        The book says what the file has, from the first line of the block on, and nobody changes it meanwhile.

        Raises:
            LedgerError: The file or the receipt cannot be used. If the rows were added and only the receipt could not
                be written, they stay, and the next transaction writes it first.
        """
        with self._errors_named(), only_one(self._receipt_path.parent):
            self._connection.execute("BEGIN IMMEDIATE")
            contents: list[dict[str, Any]] = []
            try:
                self._catch_up()
                self._write_receipt()
                yield contents
                timed = [{**content, "time": _now()} for content in contents]
                add_rows(self._connection, timed, after=self.num_rows, previous=self.last_hash)
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            self._catch_up()
            self._write_receipt()

    def read_again(self) -> None:
        """Forget what was read and check the whole file once more."""
        self._read_nothing()
        with self.reading():
            pass

    def _read_nothing(self) -> None:
        self.book = Book()
        self._hashes = [FIRST]
        self._receipt: Receipt | None = None

    def _catch_up(self) -> None:
        """Take in the rows that were added since, and compare with the receipt."""
        try:
            for row in read_rows(self._connection, after=self.num_rows, previous=self.last_hash):
                self.book.add(row)
                self._hashes.append(row.hash)
            if not self.num_rows:
                raise LedgerError("row 1 is missing")
        except LedgerError as error:
            raise LedgerError(f"ledger={self._path}; {error}; {WHAT_TO_DO}") from error
        self._receipt = read_receipt(self._receipt_path)
        self._check_receipt()

    def _check_identity(self, delta: float) -> None:
        if self.book.site != self._site:
            raise LedgerError(
                f"site={self._site!r}; ledger {self._path} is that of {self.book.site!r}; expected the hospital's own; "
                "put the right file in place, or the name back in the site's settings"
            )
        if self.book.delta != delta:
            raise LedgerError(
                f"delta={delta!r}; ledger {self._path} was created with delta={self.book.delta!r}; expected the same: "
                "every epsilon it ever reported holds at that delta only; put it back in the site's settings"
            )

    def _check_receipt(self) -> None:
        kept = self._receipt or Receipt(site=self.book.site, rows=0, hash=FIRST)
        told = f"ledger={self._path}; has {self.num_rows} rows, its receipt {self._receipt_path} counts {kept.rows}"
        if kept.site != self.book.site:
            raise LedgerError(
                f"receipt={self._receipt_path}; is that of {kept.site!r}, the ledger that of {self.book.site!r}; "
                "put the right file in place"
            )
        if kept.rows > self.num_rows:
            raise LedgerError(f"{told}: an older copy was put in its place; {WHAT_TO_DO}")
        if kept.hash != self._hashes[kept.rows]:
            raise LedgerError(
                f"{told} and has another row {kept.rows}: it is a copy that went its own way; {WHAT_TO_DO}"
            )
        if kept.rows < self.book.transaction - 1:
            raise LedgerError(
                f"{told}: the receipt is missing or an older copy; put back the latest one, from the same moment"
            )

    def _write_receipt(self) -> None:
        current = Receipt(site=self.book.site, rows=self.num_rows, hash=self.last_hash)
        if self._receipt != current:
            write_receipt(self._receipt_path, current)
            self._receipt = current

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(f"ledger={self._path}; cannot be used: {error}; nothing was changed") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
