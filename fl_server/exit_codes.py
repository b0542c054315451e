"""How the coordinator's commands print and end: the only place that turns errors into a message and an exit code."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from fl_contract.errors import ConsiliumError, SettingError

FAILED = 1
WRONG_SETTING = 2
INTERRUPTED = 130
WORKERS = ("study", "local-grid")
"""Names of the threads that run a study in this process (`fl_server.simulation`, `fl_server.local_grid`)."""
WORKER_SECONDS = 1.0


def open_console(*, stderr: bool = False) -> Console:
    """A console that prints names, paths and errors as they are: what looks like markup in them is not."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def print_columns(rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print rows of which the first holds the titles, each column as wide as it must be; nothing is cut."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        console.print(Text(line, style="" if number else "bold"), soft_wrap=True)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn exceptions into a message and an exit code: 2 for a wrong setting, 130 for Ctrl-C, 1 for anything else."""
    from privacy.errors import PrivacyError

    code = 0
    try:
        yield
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (ConsiliumError, PrivacyError) as error:
        _print_error(str(error))
        code = WRONG_SETTING if isinstance(error, SettingError) else FAILED
    except OSError as error:
        _print_error(f"{error.filename2 or error.filename or 'a file'}: {error.strerror or error}")
        code = FAILED
    _leave_busy_workers(code)
    if code:
        raise typer.Exit(code)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, and a terminal that closes, do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    changed = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in changed:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _print_error(message: str) -> None:
    open_console(stderr=True).print(Text.assemble(("error: ", "red"), message), soft_wrap=True)


def _leave_busy_workers(code: int) -> None:
    """End the process at once if a worker thread is still in a request; torch aborts an interpreter that ends under it.

    What the worker does is lost as in a crash: budgets are charged before use, and files are replaced in one step.
    """
    deadline = time.monotonic() + WORKER_SECONDS
    workers = [thread for thread in threading.enumerate() if thread.name in WORKERS]
    for thread in workers:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in workers):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
