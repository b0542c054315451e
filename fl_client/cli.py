"""The hospital's command line, thin over the package."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fl_client.budget import SiteBudget

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
    console = Console()
    console.print(_budget_table(budgets))
    if any(site.runs for site in budgets):
        console.print(_run_table(budgets))
    if any(len(site.runs) > 1 for site in budgets):
        console.print("Runs compose: spent is less than their sum.")


def _budget_table(budgets: Sequence["SiteBudget"]) -> Table:
    table = _table("Privacy budget, ε over all studies", "hospital", numbers=("spent", "budget", "left", "δ", "runs"))
    for site in budgets:
        left = f"{site.remaining:.3f}" if site.remaining else "[red]0.000[/]"
        table.add_row(
            site.name, f"{site.spent:.3f}", f"{site.budget:.3f}", left, f"{site.delta:g}", str(len(site.runs))
        )
    return table


def _run_table(budgets: Sequence["SiteBudget"]) -> Table:
    table = _table("\nSpent by run", "hospital", "study", "run", numbers=("rounds", "steps", "ε"))
    for site in budgets:
        for position, run in enumerate(site.runs):
            table.add_row(
                "" if position else site.name,
                escape(run.study),
                escape(run.run[:8]),
                str(run.rounds),
                str(run.steps),
                f"{run.epsilon:.3f}",
            )
    return table


def _table(title: str, *texts: str, numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", pad_edge=False)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
