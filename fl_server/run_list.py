"""The list of runs in a folder."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_contract.errors import RunError
from fl_contract.metrics import MEASURES
from fl_server.run_record import RUN_FILE
from fl_server.summary import Variant, main_variant, read_variants


def print_runs(folder: Path, console: Console) -> None:
    """Print each run in a folder, the newest first; one that is damaged comes last, with what is wrong below the table.

    Raises:
        RunError: The folder holds no run.
    """
    found = sorted({path.parent.parent for path in folder.glob(f"*/*/{RUN_FILE}")})
    if not found:
        raise RunError(f"{folder}: holds no run; start one with 'fl-server simulate'")
    readable: dict[Path, Variant] = {}
    damaged: dict[Path, str] = {}
    for run in found:
        try:
            readable[run] = main_variant(read_variants(run))
        except RunError as error:
            damaged[run] = str(error)
    table = Table(pad_edge=False)
    for title in ("run", "study", "started", "ended", "rounds", "held-out patients"):
        table.add_column(title, justify="right" if title in ("rounds", "held-out patients") else "left")
    for run in sorted(readable, key=lambda each: readable[each].run.started, reverse=True):
        table.add_row(Text(str(run)), *(Text(cell) for cell in _cells(readable[run])))
    for run in damaged:
        table.add_row(Text(str(run)), "–", "–", "damaged", "–", "–")
    console.print(table)
    for reason in damaged.values():
        console.print(Text(f"damaged: {reason}", style="yellow"), soft_wrap=True)


def _cells(variant: Variant) -> list[str]:
    pooled = variant.rounds[-1].pooled if variant.rounds else None
    measure, figure = next(iter(pooled.figures.items()), ("", None)) if pooled else ("", None)
    return [
        variant.run.study,
        f"{variant.run.started:%Y-%m-%d %H:%M}",
        variant.run.status,
        f"{len(variant.rounds)} of {variant.run.num_rounds}",
        f"{MEASURES.get(measure, measure)} {figure:.3f}" if figure is not None else "–",
    ]
