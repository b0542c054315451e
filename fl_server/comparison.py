"""The table that answers "was it worth joining?" on the terminal."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_contract.metrics import MEASURES
from fl_server.summary import natural_order, summarise

COLUMNS = {
    "local": "alone",
    "private": "together,\nprivate",
    "federated": "together,\nno privacy",
    "pooled": "all data\npooled",
}


def print_comparison(out: Path, console: Console) -> None:
    """Print the measure per hospital and on all held-out patients, for each way to train that the folder holds.

    Raises:
        RunError: The folder holds no run.
    """
    summary = summarise(out)
    variants: dict[str, Any] = summary["variants"]
    kinds = [kind for kind in COLUMNS if kind in variants]
    measure = summary["measure"]
    title = f"\nWas it worth joining? {MEASURES[measure]} on held-out patients, and its 95 % interval"
    caption = "together: each hospital's personal model, on its own patients" if summary["personal"] else None
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", pad_edge=False)
    table.add_column("hospital")
    for kind in kinds:
        table.add_column(COLUMNS[kind], justify="right")
    if summary["epsilon"]:
        table.add_column("ε spent", justify="right")
    for site in natural_order({site for kind in kinds for site in variants[kind][measure]["sites"]}):
        cells = [_number(variants[kind][measure]["sites"].get(site)) for kind in kinds]
        table.add_row(Text(site), *cells, *([_number(summary["epsilon"].get(site))] if summary["epsilon"] else []))
    table.add_section()
    pooled = [_number(variants[kind][measure]["pooled"]) for kind in kinds]
    table.add_row("all patients", *pooled, *([""] if summary["epsilon"] else []), style="bold")
    intervals = [_interval(variants[kind][measure]["interval"]) for kind in kinds]
    table.add_row("interval", *intervals, *([""] if summary["epsilon"] else []), style="dim")
    console.print(table)


def _interval(ends: list[float] | None) -> str:
    return "–" if ends is None else "–".join(f"{end:.3f}" for end in ends)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
