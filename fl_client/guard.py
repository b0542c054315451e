"""The hospital's outermost handler: every request is answered in time, and every error leaves as our own sentence."""

import errno
import logging
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from flwr.app import Context, Message

from fl_client.disclosure import release_refusal
from fl_client.settings import read_site_settings, site_file
from fl_client.site_files import SITE_LOG
from fl_contract.errors import DisclosureError, MessageError, RefusalCode, RefusalError
from privacy.errors import BudgetExceededError, PrivacySettingError, UnsupportedModelError

logger = logging.getLogger("fl_client")
logger.propagate = False


def guard(message: Message, context: Context, handle: Callable[[Message, Context], Message]) -> Message:
    """A Flower mod: answer every request, with an error reply where the handler raises.

    Guarantees:
        - The reply's error holds a `RefusalCode` and its sentence, nothing of the exception.
        - The exception is never written to the log of a hospital that the request was not for.
        - A real hospital's handler that runs in Python and in the main thread ends when its ``[node]`` table says so.
    """
    log_to_site(None)
    try:
        if (path := site_file(context.node_config)) is None:
            return _checked(handle(message, context))
        log_to_site(path.parent)
        with _time_limit(read_site_settings(path).node.task_timeout_seconds):
            return _checked(handle(message, context))
    except Exception as error:
        logger.exception("request %r was refused", message.metadata.message_type)
        study = str(context.run_config.get("study", ""))
        refusal = release_refusal(refusal_code(error), message, folder=_known_folder(), study=study)
        return Message(refusal, reply_to=message)


def refusal_code(error: Exception) -> RefusalCode:
    """The code that an exception leaves the hospital as.

    >>> refusal_code(ValueError("patient 17 has no age")).label
    'internal'
    """
    if isinstance(error, RefusalError):
        return error.code
    if any(_is_full_disk(each) for each in _with_causes(error)):
        return RefusalCode.DISK_FULL
    codes: dict[type[Exception], RefusalCode] = {
        BudgetExceededError: RefusalCode.BUDGET_EXHAUSTED,
        UnsupportedModelError: RefusalCode.MODEL_NOT_PRIVATE,
        MessageError: RefusalCode.INVALID_REQUEST,
        PrivacySettingError: RefusalCode.PRIVACY_SETTING,
        DisclosureError: RefusalCode.DISCLOSURE,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), RefusalCode.INTERNAL)


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _checked(reply: object) -> Message:
    if not isinstance(reply, Message):
        raise TypeError(f"the handler returned {type(reply).__name__}; expected a Message")
    return reply


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt what runs inside when its time is over, and again each second until it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can be interrupted; the hospital's executor ends the process
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise RefusalError(RefusalCode.TIME_LIMIT, f"node.task-timeout-seconds={seconds}; the request took longer")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _known_folder() -> Path | None:
    files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    return Path(files[0].baseFilename).parent if files else None


def log_to_site(folder: Path | None) -> None:
    """Send this process's log of refusals and errors to a hospital's own file from here on.

    Args:
        folder: The hospital's own; None while no hospital is known, for standard error.
    """
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    if folder is not None:
        (folder / SITE_LOG).touch(mode=0o600)
        file = logging.FileHandler(folder / SITE_LOG, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)
