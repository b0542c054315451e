"""The only place that chains the rows of a ledger: what a row's hash covers, how rows are read and how they are added.

A row is a number, a content and a hash: the SHA-256 of the previous row's hash, the row's number and its content. So a
row can be neither changed, left out, moved nor put in between without breaking every hash from there on. Nothing is
ever updated: settling a charge is a further row. The order of rows is that of their numbers; the times in them are for
display, and a clock that is set back changes nothing.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from privacy.errors import LedgerError

FIRST = "0" * 64
"""In place of a previous hash, for the first row."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row, after its hash was checked.

    Attributes:
        number: From 1, without gaps.
        content: What it says; its kinds and their fields are `privacy.ledger_book`'s.
        hash: Hexadecimal.
    """

    number: int
    content: dict[str, Any]
    hash: str


def write_content(content: dict[str, Any]) -> str:
    """Return the canonical text of a content, the one that is hashed: JSON, keys sorted, no spaces, ASCII.

    >>> write_content({"steps": 4, "run": "7"})
    '{"run":"7","steps":4}'
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def hash_row(previous: str, number: int, text: str) -> str:
    """Return the hash of a row, given the hash of the row before and the canonical text of its content.

    >>> hash_row(FIRST, 1, "{}")[:8]
    '857ee629'
    """
    return hashlib.sha256(f"{previous}\n{number}\n{text}".encode()).hexdigest()


def read_rows(connection: sqlite3.Connection, *, after: int, previous: str) -> list[Row]:
    """Read the rows that follow row ``after``, whose hash is ``previous``, and check that they continue the chain.

    Raises:
        LedgerError: Names the first row that does not.
    """
    rows = []
    for position, (number, text, found) in enumerate(
        connection.execute("SELECT number, content, hash FROM chain WHERE number > ? ORDER BY number", (after,)),
        start=after + 1,
    ):
        if number != position:
            raise LedgerError(f"row {position} is missing; the next one is row {number}")
        if hash_row(previous, number, str(text)) != found:
            raise LedgerError(f"row {number} was changed, or a row before it: its hash does not fit")
        rows.append(Row(number=number, content=json.loads(text), hash=found))
        previous = found
    return rows


def add_rows(connection: sqlite3.Connection, contents: Iterable[dict[str, Any]], *, after: int, previous: str) -> None:
    """Add rows behind row ``after``, whose hash is ``previous``; each is told where its transaction began."""
    for number, content in enumerate(contents, start=after + 1):
        text = write_content({**content, "transaction": after + 1})
        previous = hash_row(previous, number, text)
        connection.execute("INSERT INTO chain VALUES (?, ?, ?)", (number, text, previous))
