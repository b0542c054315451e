"""The only place that writes a host's logs: JSON lines, rotated, for their owner alone, and the same on stderr."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from fl_host.private_files import PRIVATE_FILE, make_private_folder

MAX_BYTES = 10_000_000
BACKUPS = 9
"""Beside the file that is written: ten in all."""
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def open_json_log(folder: Path, process: str) -> logging.Logger:
    """Open ``<folder>/<process>.jsonl``; lines also go to stderr.

    A line holds ``time`` (UTC), ``level``, ``process``, ``message``, what ``extra=`` adds, and ``exception``
    where there is one. Opening the same log again gives the same logger.
    """
    make_private_folder(folder)
    path = folder / f"{process}.jsonl"
    logger = logging.getLogger(f"consilium.host.{path.resolve()}")
    if not logger.handlers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        for handler in (_PrivateRotatingFile(path), logging.StreamHandler(sys.stderr)):
            handler.setFormatter(_JsonLines(process))
            logger.addHandler(handler)
    return logger


class _PrivateRotatingFile(RotatingFileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", delay=True)

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        return os.fdopen(descriptor, "a", encoding="utf-8")


class _JsonLines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _OWN_FIELDS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
