"""The only place that turns what went wrong at a hospital's command into a message and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

FAILED = 1
WRONG_SETTING = 2
INTERRUPTED = 130


@contextmanager
def errors_in_words(*, exit_code: int = FAILED) -> Iterator[None]:
    """End with an exit code and one line on standard error for exceptions of ours and files that cannot be used."""
    from fl_contract.errors import ConsiliumError
    from privacy.errors import PrivacyError

    try:
        yield
    except (ConsiliumError, PrivacyError, OSError) as error:
        _print_error(str(error))
        raise typer.Exit(exit_code) from error


@contextmanager
def exit_codes() -> Iterator[None]:
    """The same, with 2 for a wrong setting, 130 for Ctrl-C, and 1 for anything else."""
    from fl_contract.errors import SettingError

    try:
        with errors_in_words():
            yield
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error
    except typer.Exit as end:
        if isinstance(end.__cause__, SettingError):
            raise typer.Exit(WRONG_SETTING) from end.__cause__
        raise


def _print_error(message: str) -> None:
    Console(stderr=True).print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
