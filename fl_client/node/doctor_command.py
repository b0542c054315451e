"""``fl-client doctor``, thin over the checks."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    site: Annotated[Path, typer.Argument(metavar="SITE", help="The hospital's site.toml.")],
    study: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also read the records and check them for this study.")
    ] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check everything that this hospital needs to take part, and say what to do about each thing that is wrong.

    Disturbs no running node, charges nothing, sends nothing of a patient. Exits with 0 if nothing failed, 1 if
    something did, 2 if site.toml cannot be used.
    """
    from rich.console import Console

    from fl_client.node.doctor import HospitalDoctor
    from fl_host.checks import exit_code, print_checks, run_checks, to_json

    checks = run_checks(HospitalDoctor(site, study).questions())
    if json:
        typer.echo(to_json(checks))
    else:
        print_checks(f"Hospital, {site}", checks, Console(highlight=False))
    if code := exit_code(checks):
        raise typer.Exit(code)
