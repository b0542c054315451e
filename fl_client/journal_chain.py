"""The only place that says how a line of the journal is written, what its hash covers, and whether lines follow on.

A line is JSON in one spelling (keys sorted, no spaces, ASCII): a number, a content, and the SHA-256 of the hash of the
line before, the number and the content's text. So no line can be changed, left out, moved or put in between without
breaking it or the next. Spelling and hash are those of the privacy ledger's rows. Times are for display: the order is
that of the numbers.
"""

import json
from dataclasses import dataclass
from typing import Any, Self

from fl_contract.errors import JournalError
from privacy.ledger_chain import hash_row, write_content


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line, after its hash was checked.

    Attributes:
        number: From 1, without gaps.
        kind: What happened: ``release``, ``refusal``, ``approval``, ...
        time: UTC, when the hospital's clock said it was.
        fields: What else is said of it.
        hash: Hexadecimal.
        line: As the file holds it, with its end.
    """

    number: int
    kind: str
    time: str
    fields: dict[str, Any]
    hash: str
    line: bytes

    @classmethod
    def make(cls, content: dict[str, Any], *, number: int, previous: str) -> Self:
        """The line that follows the line whose hash is ``previous``."""
        found = hash_row(previous, number, write_content(content))
        line = write_content({"content": content, "hash": found, "number": number}).encode() + b"\n"
        fields = {name: value for name, value in content.items() if name not in ("kind", "time")}
        return cls(number=number, kind=content["kind"], time=content["time"], fields=fields, hash=found, line=line)


def read_lines(data: bytes, *, after: int, previous: str) -> tuple[list[Entry], bytes]:
    """Read the lines that follow line ``after``, whose hash is ``previous``.

    Returns:
        The lines, and what a power cut left behind them: a piece without an end, or a last line with gaps of NUL.

    Raises:
        JournalError: Names the first line that does not follow.

    >>> first = "0" * 64
    >>> whole = Entry.make({"kind": "start", "time": "12:00"}, number=1, previous=first).line
    >>> entries, torn = read_lines(whole + b'{"con', after=0, previous=first)
    >>> [entry.kind for entry in entries], torn
    (['start'], b'{"con')
    """
    *lines, torn = data.split(b"\n")
    if lines and not torn and b"\0" in lines[-1]:
        torn = lines.pop() + b"\n"
    entries = []
    for number, line in enumerate(lines, start=after + 1):
        entries.append(entry := read_line(line + b"\n", number=number, previous=previous))
        previous = entry.hash
    return entries, torn


def read_line(line: bytes, *, number: int, previous: str) -> Entry:
    """Read one line, which follows the line whose hash is ``previous``.

    Raises:
        JournalError: It does not.
    """
    try:
        raw = json.loads(line.decode("ascii"))
        said = raw["number"]
        entry = Entry.make(raw["content"], number=number, previous=previous)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise JournalError(f"line {number} was changed: it cannot be read") from error
    if entry.line == line:
        return entry
    if isinstance(said, int) and said > number:
        raise JournalError(f"line {number} is missing; the one in its place is line {said}")
    raise JournalError(f"line {number} was changed, or put in its place: its hash does not follow line {number - 1}")
