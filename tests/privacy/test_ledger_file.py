"""A ledger file is private to its owner, durable, and never replaced by an empty one in silence."""

import os
import sqlite3
from pathlib import Path

import pytest

from privacy.errors import LedgerError
from privacy.ledger_file import open_ledger_file

DELTA = 1e-3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def create(path: Path) -> None:
    """Create a ledger with enough rows in it to span many pages."""
    connection = open_ledger_file(path, site="st-anna", delta=DELTA)
    connection.executemany("INSERT INTO chain VALUES (?, ?, '')", [(row, "x" * 2000) for row in range(2, 22)])
    connection.close()


def num_rows(path: Path) -> int:
    connection = open_ledger_file(path, site="st-anna", delta=DELTA)
    count = connection.execute("SELECT count(*) FROM chain").fetchone()[0]
    connection.close()
    return int(count)


def test_a_new_file_is_readable_and_writable_by_its_owner_only(path: Path) -> None:
    before = os.umask(0)
    create(path)
    os.umask(before)

    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_is_never_readable_by_others_not_even_before_it_is_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "chmod", lambda *_: None)
    before = os.umask(0)
    create(path)
    os.umask(before)

    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_others_could_read_is_closed_to_them_when_opened(path: Path) -> None:
    create(path)
    path.chmod(0o644)

    create_again = open_ledger_file(path, site="st-anna", delta=DELTA)
    create_again.close()

    assert path.stat().st_mode & 0o777 == 0o600


def test_every_commit_is_flushed_together_with_its_folder(path: Path) -> None:
    connection = open_ledger_file(path, site="st-anna", delta=DELTA)

    # 3 is EXTRA; a rollback journal, because its FULL alone could lose the last commit to a power cut.
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 3
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    connection.close()


def test_opening_again_keeps_what_is_in_the_file(path: Path) -> None:
    create(path)

    assert num_rows(path) == 21


def test_a_process_that_loses_the_race_to_create_the_file_uses_the_winners(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(path)
    monkeypatch.setattr(Path, "exists", lambda _: False)

    assert num_rows(path) == 21
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [b"", b"patient,age\n1,60\n" * 100, b"SQLite format 3\x00" + b"\xff" * 5000],
    ids=["empty", "csv", "torn"],
)
def test_a_file_that_is_not_a_ledger_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(LedgerError, match=r"not a ledger.*restore the latest backup"):
        open_ledger_file(path, site="st-anna", delta=DELTA)

    assert path.read_bytes() == content


def test_another_programs_database_is_refused(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE entry (id INTEGER)")
    other.close()

    with pytest.raises(LedgerError, match="not a ledger"):
        open_ledger_file(path, site="st-anna", delta=DELTA)


@pytest.mark.parametrize("version", [1, 3])
def test_a_ledger_of_another_format_is_refused(path: Path, version: int) -> None:
    create(path)
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA user_version = {version}")
    other.close()

    with pytest.raises(LedgerError, match=rf"format {version}; expected 2; use the release that wrote it"):
        open_ledger_file(path, site="st-anna", delta=DELTA)


@pytest.mark.parametrize("page", [2, 3, 5, 9])
def test_a_damaged_page_is_found_when_the_ledger_is_opened(path: Path, page: int) -> None:
    create(path)
    content = bytearray(path.read_bytes())
    start = (page - 1) * 4096
    content[start : start + 4096] = b"\xff" * 4096
    path.write_bytes(content)

    with pytest.raises(LedgerError, match=r"(?s)damaged.*restore the latest backup"):
        open_ledger_file(path, site="st-anna", delta=DELTA)


def test_a_damaged_header_is_found_when_the_ledger_is_opened(path: Path) -> None:
    create(path)
    content = bytearray(path.read_bytes())
    content[36:40] = (5).to_bytes(4, "big")  # the number of free pages, which is 0
    path.write_bytes(content)

    with pytest.raises(LedgerError, match=r"(?s)damaged: .*freelist.*restore the latest backup"):
        open_ledger_file(path, site="st-anna", delta=DELTA)


def test_a_missing_folder_is_refused_because_it_may_be_a_volume_that_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="the folder does not exist; create it, or mount"):
        open_ledger_file(tmp_path / "volume" / "ledger.sqlite", site="st-anna", delta=DELTA)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_place_of_the_file_is_refused_and_left_alone(path: Path) -> None:
    path.mkdir(mode=0o755)

    with pytest.raises(LedgerError, match="not a file"):
        open_ledger_file(path, site="st-anna", delta=DELTA)

    assert path.stat().st_mode & 0o777 == 0o755


def test_a_file_that_cannot_be_closed_to_others_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("not yours")

    create(path)
    monkeypatch.setattr(Path, "chmod", refuse)

    with pytest.raises(LedgerError, match=r"cannot be opened: not yours; check its owner"):
        open_ledger_file(path, site="st-anna", delta=DELTA)


def test_a_file_that_cannot_be_created_is_refused_without_leaving_traces(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)

    with pytest.raises(LedgerError, match=r"cannot be created: no links here"):
        open_ledger_file(path, site="st-anna", delta=DELTA)

    assert list(path.parent.iterdir()) == []
