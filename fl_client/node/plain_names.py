"""Names in code that only look like others: the only place that writes them out, as Python reads them.

With a Cyrillic o, ``copy`` is another function than it seems; in wide letters, it is the same one in another spelling.
"""

import io
import re
import tokenize
from collections.abc import Iterator

_LETTERS = re.compile(r"[^\x00-\x7f]")


def spell_out_names(code: str) -> str:
    r"""Python in which each name that holds letters outside ASCII is written in escapes; comments and texts stay.

    Expressions inside f-strings are names too, so f-strings are written out whole; so is code that is no Python.

    >>> print(spell_out_names("c\u043epy(1)  # Größe"))
    c\u043epy(1)  # Größe
    """
    lines = code.split("\n")
    try:
        for (row, start), (end_row, end) in reversed(list(_places(code))):
            for number in range(row, end_row + 1):
                line = lines[number - 1]
                first, last = start if number == row else 0, end if number == end_row else len(line)
                lines[number - 1] = line[:first] + _escape(line[first:last]) + line[last:]
    except (tokenize.TokenError, SyntaxError):
        return _escape(code)
    return "\n".join(lines)


def _places(code: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where names and f-strings begin and end that hold more than ASCII: lines from 1, columns from 0."""
    for token in tokenize.generate_tokens(io.StringIO(code, newline="\n").readline):
        is_formatted = token.type == tokenize.STRING and "f" in token.string.partition(token.string[-1])[0].lower()
        if (token.type in (tokenize.NAME, tokenize.ERRORTOKEN) or is_formatted) and not token.string.isascii():
            yield token.start, token.end


def _escape(text: str) -> str:
    return _LETTERS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
