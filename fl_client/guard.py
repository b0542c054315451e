"""The hospital's outermost handler: every error leaves as a code and our own sentence, never as an exception's text."""

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message

from fl_contract.errors import DisclosureError, MessageError, RefusalCode, RefusalError, SettingError
from privacy.errors import BudgetExceededError, UnsupportedModelError

SITE_LOG = "site.log"

logger = logging.getLogger("fl_client")


def guard(message: Message, context: Context, handle: Callable[[Message, Context], Message]) -> Message:
    """A Flower mod: answer every request, with an error reply where the handler raises.

    Guarantees:
        - The reply's error holds a `RefusalCode` and its sentence, nothing of the exception.
    """
    try:
        return handle(message, context)
    except Exception as error:
        logger.exception("request %r was refused", message.metadata.message_type)
        code = refusal_code(error)
        return Message(Error(code=int(code), reason=code.sentence), reply_to=message)


def refusal_code(error: Exception) -> RefusalCode:
    """The code that an exception leaves the hospital as.

    >>> refusal_code(ValueError("patient 17 has no age")).label
    'internal'
    """
    if isinstance(error, RefusalError):
        return error.code
    codes: dict[type[Exception], RefusalCode] = {
        BudgetExceededError: RefusalCode.BUDGET_EXHAUSTED,
        UnsupportedModelError: RefusalCode.MODEL_NOT_PRIVATE,
        MessageError: RefusalCode.INVALID_REQUEST,
        SettingError: RefusalCode.STUDY_MISMATCH,
        DisclosureError: RefusalCode.DISCLOSURE,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), RefusalCode.INTERNAL)


def log_to_site(folder: Path) -> None:
    """Send this process's log of refusals and errors to a hospital's own file from here on."""
    path = (folder / SITE_LOG).resolve()
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler) and handler.baseFilename == str(path):
            return
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
