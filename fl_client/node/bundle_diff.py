"""What changed from one bundle to the next: the only place that compares them, as a person reads it."""

import difflib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fl_client.node.plain_names import spell_out_names


@dataclass(frozen=True, kw_only=True)
class FileChange:
    """One file that differs.

    Attributes:
        path: In the bundle.
        kind: ``added``, ``removed`` or ``changed``.
        lines_added: Lines that are only in the new one.
        lines_removed: Lines that are only in the old one.
        diff: Unified, in characters that show what they are.
    """

    path: str
    kind: str
    lines_added: int
    lines_removed: int
    diff: str


def compare(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[FileChange]:
    r"""Every file that was added, removed or changed, in the order of paths.

    >>> (change,) = compare({"a.py": b"x = 1\n"}, {"a.py": b"x = 2\n"})
    >>> change.kind, change.lines_added, change.lines_removed
    ('changed', 1, 1)
    """
    paths = sorted(before.keys() | after.keys())
    return [_change(path, before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)]


def _change(path: str, before: bytes | None, after: bytes | None) -> FileChange:
    kind = "added" if before is None else "removed" if after is None else "changed"
    lines = list(_diff(path, before, after))
    return FileChange(
        path=path,
        kind=kind,
        lines_added=sum(line.startswith("+") for line in lines[2:]),
        lines_removed=sum(line.startswith("-") for line in lines[2:]),
        diff="".join(f"{line}\n" for line in lines),
    )


def _diff(path: str, before: bytes | None, after: bytes | None) -> Iterator[str]:
    names = ("/dev/null" if before is None else f"a/{path}", "/dev/null" if after is None else f"b/{path}")
    old, new = (_lines(content, is_python=path.endswith(".py")) for content in (before, after))
    return difflib.unified_diff(old, new, *names, lineterm="")


def _lines(content: bytes | None, *, is_python: bool) -> list[str]:
    """Lines as Python's own line ends split them; a last line without an end says so."""
    if not content:
        return []
    text = content.decode("utf-8", "backslashreplace")
    lines = [visible(line) for line in (spell_out_names(text) if is_python else text).split("\n")]
    if lines[-1] == "":
        return lines[:-1]
    return [*lines[:-1], f"{lines[-1]}  (no line end)"]


def visible(text: str) -> str:
    r"""Text in which nothing moves the cursor, hides, or turns the order of characters: such are written as escapes.

    >>> visible("access = 1\u202e # tfel\x1b[2K\r")
    'access = 1\\u202e # tfel\\x1b[2K\\r'
    """
    return "".join(character if _is_shown(character) else _escape(character) for character in text)


def _is_shown(character: str) -> bool:
    return character == "\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
