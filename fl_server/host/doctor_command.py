"""``fl-server doctor``, thin over the checks."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    folder: Annotated[Path, typer.Option(help="The federation's folder.")] = Path("federation"),
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check everything that the coordinator needs, and say what to do about each thing that is wrong.

    Disturbs no run. Exits with 0 if nothing failed, 1 if something did, 2 if federation.toml cannot be used.
    """
    from rich.console import Console

    from fl_host.checks import exit_code, print_checks, run_checks, to_json
    from fl_server.host.doctor import CoordinatorDoctor

    checks = run_checks(CoordinatorDoctor(folder).questions())
    if json:
        typer.echo(to_json(checks))
    else:
        print_checks(f"Coordinator, {folder}", checks, Console(highlight=False))
    if code := exit_code(checks):
        raise typer.Exit(code)
