"""Every file that differs is named with its lines, in characters that show what they are."""

import pytest

from fl_client.node.bundle_diff import compare, visible

BEFORE = {"a.py": b"x = 1\ny = 2\n", "gone.py": b"old\n", "same.py": b"same\n"}


def test_added_removed_and_changed_files_are_told_with_their_lines() -> None:
    changes = compare(BEFORE, {"a.py": b"x = 1\ny = 3\nz = 4\n", "new.py": b"1\n2\n", "same.py": b"same\n"})

    told = [(change.path, change.kind, change.lines_added, change.lines_removed) for change in changes]
    assert told == [("a.py", "changed", 2, 1), ("gone.py", "removed", 0, 1), ("new.py", "added", 2, 0)]
    assert changes[0].diff == "--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,3 @@\n x = 1\n-y = 2\n+y = 3\n+z = 4\n"


def test_equal_bundles_do_not_differ() -> None:
    assert compare(BEFORE, dict(BEFORE)) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"x = 1\n", b"x = 1"),  # only the last line's end
        (b"x = 1\n", b"x = 1\r\n"),
        (b"", b"\n"),
        (b"\xff\n", b"\xfe\n"),  # no UTF-8
        (b"-- x\n", b"++ x\n"),
        ("a\u2028b\n".encode(), b"a\nb\n"),
    ],
)
def test_a_difference_of_any_bytes_shows_in_a_line(before: bytes, after: bytes) -> None:
    (change,) = compare({"a.py": before}, {"a.py": after})

    assert change.lines_added + change.lines_removed >= 1


def test_an_empty_file_that_was_added_is_told() -> None:
    (change,) = compare({}, {"a.py": b""})

    assert (change.kind, change.lines_added) == ("added", 0)


@pytest.mark.parametrize("hidden", ["\x1b[2K", "\r", "\b", "\x00", "\u202e", "\u200b", "\ufeff", "\u2066", "\x9b"])
def test_what_would_hide_or_turn_characters_is_written_out(hidden: str) -> None:
    (change,) = compare({}, {"a.py": f"safe{hidden}code\n".encode()})

    assert hidden not in change.diff
    assert visible(hidden).startswith("\\")


def test_ordinary_letters_of_any_language_stay() -> None:
    assert visible("ε ≤ 4\tÅse 医院") == "ε ≤ 4\tÅse 医院"
