"""The hospital's command line, thin over the package."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(
    help="Consilium at a hospital: what of the privacy budget is spent.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def main() -> None:
    """Consilium at a hospital."""


@app.command()
def budget(
    place: Annotated[Path, typer.Argument(help="The hospital's site.toml, or a folder that holds one or several.")],
) -> None:
    """Show what of a hospital's privacy budget is spent, by study and run, and what is left."""
    from fl_client.budget import read_budgets
    from fl_contract.errors import ConsiliumError
    from privacy.errors import PrivacyError

    try:
        budgets = read_budgets(place)
    except (ConsiliumError, PrivacyError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    table = Table(pad_edge=False)
    for title in ("hospital", "study", "run", "rounds", "steps", "ε"):
        table.add_column(title, justify="left" if title in ("hospital", "study", "run") else "right")
    for site in budgets:
        for run in site.runs:
            table.add_row(site.name, run.study, run.run[:8], str(run.rounds), str(run.steps), f"{run.epsilon:.3f}")
        total = f"spent {site.spent:.3f} of {site.budget:g}, {site.remaining:.3f} left, δ {site.delta:g}"
        table.add_row(site.name, f"[bold]{total}[/]", "", "", "", f"[bold]{site.spent:.3f}[/]")
        table.add_section()
    Console().print(table)
