"""No line of the journal can be changed, taken out, moved, put in or cut off without being named."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_client import journal as journal_module
from fl_client.journal import JOURNAL_FILE, RECEIPT_FILE, REFUSAL, RELEASE, REPAIR, START, Journal
from fl_contract.errors import JournalError
from privacy.ledger_chain import FIRST, hash_row

NUM_LINES = 6


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal of six lines."""
    written = Journal(tmp_path)
    for number in range(1, NUM_LINES + 1):
        written.append(RELEASE, round=number, study="heart-disease")
    return written


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], bytes]:
    """Lines of a journal, and its receipt."""
    folder = tmp_path_factory.mktemp("whole")
    written = Journal(folder)
    for number in range(1, NUM_LINES + 1):
        written.append(RELEASE, round=number, study="heart-disease")
    return (folder / JOURNAL_FILE).read_bytes().splitlines(keepends=True), (folder / RECEIPT_FILE).read_bytes()


@pytest.fixture(scope="module")
def check(
    whole: tuple[list[bytes], bytes], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[bytes], tuple[int, int]]:
    """Checks a journal that holds these bytes, with the receipt of the whole one: its lines, and the bytes left."""
    folder = tmp_path_factory.mktemp("changed")
    (folder / RECEIPT_FILE).parent.mkdir()
    (folder / RECEIPT_FILE).write_bytes(whole[1])

    def run(data: bytes) -> tuple[int, int]:
        (folder / JOURNAL_FILE).write_bytes(data)
        entries, torn = Journal(folder).check()
        return len(entries), torn

    return run


def test_lines_are_read_as_they_were_written(journal: Journal) -> None:
    entries = journal.read()

    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert entries[3].kind == RELEASE
    assert entries[3].fields == {"round": 4, "study": "heart-disease"}
    assert entries[3].time.endswith("+00:00")


def test_a_line_s_hash_covers_the_hash_before_its_number_and_its_content(journal: Journal, tmp_path: Path) -> None:
    """So that another program can check the file: this is the whole rule."""
    previous = FIRST
    for number, line in enumerate((tmp_path / JOURNAL_FILE).read_text().splitlines(), start=1):
        raw = json.loads(line)
        text = json.dumps(raw["content"], sort_keys=True, separators=(",", ":"))
        assert raw["hash"] == hash_row(previous, number, text)
        previous = raw["hash"]
    assert previous == journal.read()[-1].hash


def test_no_journal_is_an_empty_one_and_is_not_made_by_reading(tmp_path: Path) -> None:
    assert Journal(tmp_path).read() == []
    assert list(tmp_path.iterdir()) == []


def test_journal_and_receipt_are_their_owner_s_alone(journal: Journal, tmp_path: Path) -> None:
    assert (tmp_path / JOURNAL_FILE).stat().st_mode & 0o077 == 0
    assert (tmp_path / RECEIPT_FILE).parent.stat().st_mode & 0o077 == 0


@given(data=st.data())
def test_a_changed_byte_is_noticed_and_its_line_named(
    data: st.DataObject, whole: tuple[list[bytes], bytes], check: Callable[[bytes], tuple[int, int]]
) -> None:
    lines = list(whole[0])
    index = data.draw(st.integers(0, NUM_LINES - 1))
    position = data.draw(st.integers(0, len(lines[index]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != lines[index][position]))
    lines[index] = lines[index][:position] + bytes([byte]) + lines[index][position + 1 :]

    with pytest.raises(JournalError, match=rf"^line {index + 1} "):
        check(b"".join(lines))


@given(first=st.integers(0, NUM_LINES - 1), count=st.integers(1, NUM_LINES))
def test_lines_that_were_taken_out_are_noticed_and_the_first_is_named(
    first: int, count: int, whole: tuple[list[bytes], bytes], check: Callable[[bytes], tuple[int, int]]
) -> None:
    lines = whole[0][:first] + whole[0][first + count :]

    with pytest.raises(JournalError, match=rf"^line {first + 1} is missing"):
        check(b"".join(lines))


@given(order=st.permutations(range(NUM_LINES)).filter(lambda order: order != list(range(NUM_LINES))))
def test_lines_in_another_order_are_noticed_and_the_first_is_named(
    order: list[int], whole: tuple[list[bytes], bytes], check: Callable[[bytes], tuple[int, int]]
) -> None:
    first = next(position for position, line in enumerate(order) if position != line)

    with pytest.raises(JournalError, match=rf"^line {first + 1} "):
        check(b"".join(whole[0][line] for line in order))


@given(
    position=st.integers(0, NUM_LINES),
    line=st.one_of(
        st.binary(min_size=1, max_size=80).filter(lambda text: not set(text) & {0, 10}),
        st.integers(0, NUM_LINES - 1),
    ),
)
def test_a_line_that_was_put_in_is_noticed_and_named(
    position: int, line: bytes | int, whole: tuple[list[bytes], bytes], check: Callable[[bytes], tuple[int, int]]
) -> None:
    put_in = whole[0][line] if isinstance(line, int) else line + b"\n"
    if position < NUM_LINES and put_in == whole[0][position]:
        position += 1  # the second of two equal lines is the one too many
    lines = [*whole[0][:position], put_in, *whole[0][position:]]

    with pytest.raises(JournalError, match=rf"^line {position + 1} "):
        check(b"".join(lines))


@given(data=st.data())
def test_a_journal_that_was_cut_is_noticed_and_the_line_named(
    data: st.DataObject, whole: tuple[list[bytes], bytes], check: Callable[[bytes], tuple[int, int]]
) -> None:
    text = b"".join(whole[0])
    size = data.draw(st.integers(0, len(text) - 1))

    with pytest.raises(JournalError, match=rf"^line {text[:size].count(10) + 1} is missing, or cut"):
        check(text[:size])


@given(content=st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=3), number=st.integers(1, NUM_LINES))
@settings(max_examples=5)
def test_a_chain_that_was_written_anew_from_a_line_on_is_noticed(
    content: dict[str, int],
    number: int,
    whole: tuple[list[bytes], bytes],
    tmp_path_factory: pytest.TempPathFactory,
    check: Callable[[bytes], tuple[int, int]],
) -> None:
    """Whoever knows the rule can make a chain of their own; the receipt knows how the right one ended."""
    folder = tmp_path_factory.mktemp("forged")
    forged = Journal(folder)
    for position in range(1, NUM_LINES + 1):
        forged.append(RELEASE, **({"round": position} if position < number else {**content, "forged": 1}))

    with pytest.raises(JournalError, match=rf"^line {NUM_LINES} is another one than the receipt says"):
        check((folder / JOURNAL_FILE).read_bytes())


def test_a_journal_that_is_gone_is_noticed(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / JOURNAL_FILE).unlink()

    with pytest.raises(JournalError, match="line 1 is missing"):
        journal.read()
    with pytest.raises(JournalError, match="line 6 is missing"):
        journal.append(START)


def test_a_receipt_that_is_gone_or_unreadable_is_noticed(journal: Journal, tmp_path: Path) -> None:
    receipt = tmp_path / RECEIPT_FILE
    for damage in (receipt.unlink, lambda: receipt.write_text("{}{"), lambda: receipt.write_text('{"rows": 1}')):
        damage()

        with pytest.raises(JournalError, match="receipt="):
            journal.read()
        with pytest.raises(JournalError, match="receipt="):
            journal.append(START)


def test_an_older_receipt_is_noticed(journal: Journal, tmp_path: Path) -> None:
    old = (tmp_path / RECEIPT_FILE).read_bytes()
    for _ in range(3):
        journal.append(START)
    (tmp_path / RECEIPT_FILE).write_bytes(old)

    for attempt in (journal.read, lambda: journal.append(START)):
        with pytest.raises(JournalError, match="line 9 is not in the receipt"):
            attempt()


@pytest.mark.parametrize("change", ["last line", "size"])
def test_nothing_is_added_behind_an_end_that_was_changed(journal: Journal, tmp_path: Path, change: str) -> None:
    file = tmp_path / JOURNAL_FILE
    text = file.read_bytes()
    file.write_bytes(text[:-30] + b"0" * 29 + b"\n" if change == "last line" else text[:-1])

    with pytest.raises(JournalError, match="line 6"):
        journal.append(START)

    assert START not in file.read_text()


def test_a_crash_between_line_and_receipt_loses_no_line(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_durably", crash)
        with pytest.raises(KeyboardInterrupt):
            journal.append(START)

    assert [entry.kind for entry in journal.read()][-2:] == [RELEASE, START]
    journal.append(REFUSAL)
    assert [entry.kind for entry in journal.read()][-2:] == [START, REFUSAL]


@pytest.mark.parametrize(
    "torn", [b'{"content":{"kind":"rel', b"\0\0\0\0", b'{"content":\0\0\0\0"number":7}\n', b'{"content":{}}']
)
def test_what_a_power_cut_left_is_no_tampering_and_is_replaced_by_a_line_that_says_so(
    journal: Journal, tmp_path: Path, torn: bytes
) -> None:
    with (tmp_path / JOURNAL_FILE).open("ab") as stream:
        stream.write(torn)

    assert journal.check()[1] == len(torn)
    journal.append(START)

    *_, repair, last = journal.read()
    assert (repair.kind, repair.number, last.kind) == (REPAIR, NUM_LINES + 1, START)
    assert repair.fields["bytes"] == len(torn)
    assert repair.fields["begins"] == torn.decode()


def test_a_disk_that_is_full_leaves_the_journal_as_it_was(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (tmp_path / JOURNAL_FILE).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            journal.append(START)

    assert (tmp_path / JOURNAL_FILE).read_bytes() == before
    journal.append(START)
    assert len(journal.read()) == NUM_LINES + 1


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        Journal(tmp_path).append(START, value=value)

    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        Journal(tmp_path).append("note")


def test_a_link_in_the_journals_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / JOURNAL_FILE).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match=JOURNAL_FILE):
        Journal(tmp_path).append(START)


def _append_many(folder: Path, name: str) -> None:
    for number in range(20):
        Journal(folder).append(START, by=name, number=number)


def test_processes_and_threads_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_many, args=(tmp_path, f"process-{number}")) for number in range(2)]
    threads = [threading.Thread(target=_append_many, args=(tmp_path, f"thread-{number}")) for number in range(2)]

    for process in processes:
        process.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.join()

    written: dict[str, list[int]] = {}
    for entry in Journal(tmp_path).read():
        written.setdefault(entry.fields["by"], []).append(entry.fields["number"])
    assert written == {name: list(range(20)) for name in ("process-0", "process-1", "thread-0", "thread-1")}
