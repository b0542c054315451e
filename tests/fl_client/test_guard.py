"""Whatever goes wrong, a code and our own sentence leave; the exception's text stays in the hospital's own log."""

import errno
import logging
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from fl_client.data.records import SiteRecords
from fl_client.guard import guard, log_to_site, refusal_code
from fl_client.journal import JOURNAL_FILE, REFUSAL, Journal
from fl_client.site_files import SITE_LOG
from fl_contract.errors import DisclosureError, MessageError, QuorumError, RefusalCode, RefusalError, SettingError
from fl_contract.messages import EVALUATE, PLAN, ROSTER, TRAIN
from privacy.errors import (
    BudgetExceededError,
    LedgerError,
    PrivacyError,
    PrivacySettingError,
    UnsupportedModelError,
)

SECRET = "patient 4711, /srv/records/4711.csv"


def own_sentence(reply: Message, code: RefusalCode) -> bool:
    """Whether a reply is this refusal, in our words and nothing else."""
    return (
        reply.has_error()
        and not reply.has_content()
        and (reply.error.code, reply.error.reason) == (int(code), code.sentence)
    )


@pytest.fixture
def answer(make_request: Callable[..., Message], tmp_path: Path) -> Callable[[BaseException], Message]:
    """The reply of a handler that opens the hospital's log and then raises."""

    def answer(error: BaseException) -> Message:
        def handle(message: Message, context: Context) -> Message:
            log_to_site(tmp_path)
            raise error

        return guard(make_request(TRAIN), Context(1, 1, {}, RecordDict(), {}), handle)

    return answer


def test_a_ledger_whose_disk_is_full_is_a_full_disk() -> None:
    error = LedgerError("cannot be written")
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError) as full:
        database.execute("CREATE TABLE charges (epsilon REAL)")
    error.__cause__ = full.value

    assert refusal_code(error) is RefusalCode.DISK_FULL


@pytest.mark.parametrize("code", list(RefusalCode))
def test_a_refusal_leaves_as_its_own_code(code: RefusalCode) -> None:
    assert refusal_code(RefusalError(code, SECRET)) is code


@pytest.mark.parametrize(
    ("error", "label"),
    [
        (BudgetExceededError(epsilon_spent=1.0, epsilon_budget=2.0, epsilon_requested=3.0), "budget-exhausted"),
        (UnsupportedModelError(SECRET), "model-not-private"),
        (MessageError(SECRET), "invalid-request"),
        (SettingError(SECRET), "internal"),
        (DisclosureError(SECRET), "disclosure"),
        (LedgerError(SECRET), "internal"),
        (PrivacySettingError(SECRET), "privacy-setting"),
        (PrivacyError(SECRET), "internal"),
        (QuorumError(SECRET), "internal"),
        (ValueError(SECRET), "internal"),
        (KeyError(SECRET), "internal"),
        (FileNotFoundError(2, "No such file", SECRET), "internal"),
        (OSError(errno.ENOSPC, "No space left on device", SECRET), "disk-full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", SECRET), "disk-full"),
        (MemoryError(SECRET), "internal"),
        (ZeroDivisionError(SECRET), "internal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_an_error_leaves_as_a_code_and_our_sentence_and_stays_in_full_at_the_hospital(
    answer: Callable[[BaseException], Message], tmp_path: Path, error: Exception, label: str
) -> None:
    reply = answer(error)

    assert own_sentence(reply, RefusalCode[label.upper().replace("-", "_")])
    assert "4711" not in str(reply)
    log = (tmp_path / SITE_LOG).read_text(encoding="utf-8")
    assert str(error) in log
    assert "Traceback" in log


def test_an_order_to_stop_is_not_answered(answer: Callable[[BaseException], Message]) -> None:
    with pytest.raises(KeyboardInterrupt):
        answer(KeyboardInterrupt())


def test_an_answer_is_handed_on_as_it_is(make_request: Callable[..., Message]) -> None:
    reply = make_request(TRAIN)

    answered = guard(make_request(TRAIN), Context(1, 1, {}, RecordDict(), {}), lambda message, context: reply)

    assert answered is reply


@pytest.fixture
def answer_in_time(
    make_request: Callable[..., Message], write_site_file: Callable[..., Path]
) -> Callable[[Callable[[], Any]], Message]:
    """The reply of a handler of a hospital whose requests may take a second."""

    def answer(work: Callable[[], Any]) -> Message:
        path = write_site_file()
        path.write_text(path.read_text(encoding="utf-8") + "\n[node]\ntask-timeout-seconds = 1\n", encoding="utf-8")
        context = Context(1, 1, {"site-file": str(path)}, RecordDict(), {})
        return guard(make_request(TRAIN), context, lambda message, context: work())

    return answer


@pytest.mark.slow
def test_a_handler_that_takes_longer_than_the_hospital_allows_is_ended_and_answered(
    answer_in_time: Callable[[Callable[[], Any]], Message],
) -> None:
    def ignore_the_first_interrupt_only() -> None:
        with suppress(RefusalError):
            time.sleep(30)
        time.sleep(30)

    start = time.monotonic()

    reply = answer_in_time(lambda: time.sleep(30))
    stubborn = answer_in_time(ignore_the_first_interrupt_only)

    assert own_sentence(reply, RefusalCode.TIME_LIMIT)
    assert own_sentence(stubborn, RefusalCode.TIME_LIMIT)
    assert time.monotonic() - start < 6


def test_after_an_answer_in_time_nothing_is_interrupted(
    answer_in_time: Callable[[Callable[[], Any]], Message], make_request: Callable[..., Message]
) -> None:
    before = signal.getsignal(signal.SIGALRM)

    answer_in_time(lambda: make_request(TRAIN))

    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize("wrong", [None, "done", 0])
def test_a_handler_that_returns_no_message_is_answered(
    answer_in_time: Callable[[Callable[[], Any]], Message], wrong: object
) -> None:
    reply = answer_in_time(lambda: wrong)

    assert own_sentence(reply, RefusalCode.INTERNAL)


def test_no_sentence_names_a_number_or_a_path() -> None:
    for code in RefusalCode:
        assert not set(code.sentence) & set("0123456789/\\{}")


def test_data_with_a_nan_are_refused_without_a_word_about_them(
    ask: Callable[..., Message], edit_records: Callable[[Callable[[SiteRecords], SiteRecords]], None], tmp_path: Path
) -> None:
    def spoil(site: SiteRecords) -> SiteRecords:
        site.train.features[0, 0] = np.nan
        return site

    edit_records(spoil)

    reply = ask(PLAN)

    assert own_sentence(reply, RefusalCode.INVALID_DATA)
    log = (tmp_path / "sites" / "hospital-1" / SITE_LOG).read_text(encoding="utf-8")
    assert "feature 'mean radius': 1 values are NaN or infinite" in log


def test_a_bad_path_does_not_leave(ask: Callable[..., Message], tmp_path: Path) -> None:
    reply = ask(ROSTER, node_config={"site-file": str(tmp_path / "patient-4711" / "site.toml")})

    assert reply.has_error()
    assert reply.error.reason in {code.sentence for code in RefusalCode}
    assert "4711" not in str(reply)


def test_a_real_hospitals_log_holds_what_went_wrong_before_its_settings_were_read(
    ask: Callable[..., Message], write_site_file: Callable[..., Path]
) -> None:
    path = write_site_file(epsilon_budget=-1.0)

    reply = ask(PLAN, site="st-anna", node_config={"site-file": str(path)})

    assert own_sentence(reply, RefusalCode.INTERNAL)
    assert "policy.epsilon-budget=-1.0" in (path.parent / SITE_LOG).read_text(encoding="utf-8")


def test_each_hospitals_log_holds_its_own_refusals_only(ask: Callable[..., Message], tmp_path: Path) -> None:
    for site, wrong in (("hospital-1", "first"), ("hospital-2", "second"), ("hospital-1", "third")):
        ask(EVALUATE, site=site, fingerprint=wrong)

    logs = [(tmp_path / "sites" / site / SITE_LOG).read_text(encoding="utf-8") for site in ("hospital-1", "hospital-2")]
    assert ["first" in logs[0], "second" in logs[0], "third" in logs[0]] == [True, False, True]
    assert ["first" in logs[1], "second" in logs[1], "third" in logs[1]] == [False, True, False]


def test_a_request_for_no_hospital_here_is_in_no_hospitals_log(
    ask: Callable[..., Message], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ask(EVALUATE, site="hospital-1", fingerprint="wrong")

    reply = ask(EVALUATE, site="hospital-9")

    assert own_sentence(reply, RefusalCode.INVALID_REQUEST)
    assert all("hospital-9" not in path.read_text(encoding="utf-8") for path in tmp_path.rglob(SITE_LOG))


def test_two_hundred_messages_of_two_hospitals_leave_no_file_open(ask: Callable[..., Message]) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    ask(EVALUATE, site="hospital-1", fingerprint="wrong")
    before = open_files()

    for number in range(200):
        ask(EVALUATE, site=f"hospital-{1 + number % 2}", fingerprint="wrong")

    assert open_files() <= before
    assert len(logging.getLogger("fl_client").handlers) == 1


def test_nothing_is_handed_to_other_loggers(
    answer: Callable[[BaseException], Message], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    answer(ValueError(SECRET))

    assert caplog.records == []
    written = capfd.readouterr()
    assert "4711" not in written.out + written.err


def test_a_refusal_is_in_the_journal_of_the_hospital_that_refused(ask: Callable[..., Message], tmp_path: Path) -> None:
    ask(EVALUATE, site="hospital-1", fingerprint="wrong")

    last = Journal(tmp_path / "sites" / "hospital-1").read()[-1]
    assert last.kind == REFUSAL
    assert last.fields == {
        "request": "evaluate",
        "refusal": "study-mismatch",
        "study": "breast-cancer",
        "run": "run-1",
        "round": 0,
    }


def test_a_refusal_leaves_also_when_the_journal_cannot_be_written(ask: Callable[..., Message], tmp_path: Path) -> None:
    ask(EVALUATE, site="hospital-1", fingerprint="wrong")
    log = tmp_path / "sites" / "hospital-1" / JOURNAL_FILE
    log.unlink()
    log.mkdir()

    reply = ask(EVALUATE, site="hospital-1", fingerprint="wrong")

    assert own_sentence(reply, RefusalCode.STUDY_MISMATCH)
    assert "does not hold" in (tmp_path / "sites" / "hospital-1" / SITE_LOG).read_text(encoding="utf-8")
