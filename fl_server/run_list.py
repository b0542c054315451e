"""The list of runs in a folder."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from fl_contract.errors import RunError
from fl_server.run_record import RUN_FILE
from fl_server.summary import main_variant, read_variants


def print_runs(folder: Path, console: Console) -> None:
    """Print each run in a folder, the newest first.

    Raises:
        RunError: The folder holds no run.
    """
    found = sorted({path.parent.parent for path in folder.glob(f"*/*/{RUN_FILE}")})
    if not found:
        raise RunError(f"{folder}: holds no run; start one with 'fl-server simulate'")
    rows = [(main_variant(read_variants(run)), run) for run in found]
    table = Table(pad_edge=False)
    for title in ("run", "study", "started", "ended", "rounds", "AUROC"):
        table.add_column(title, justify="right" if title in ("rounds", "AUROC") else "left")
    for variant, run in sorted(rows, key=lambda row: row[0].run.started, reverse=True):
        pooled = variant.rounds[-1].pooled if variant.rounds else None
        table.add_row(
            str(run),
            variant.run.study,
            f"{variant.run.started:%Y-%m-%d %H:%M}",
            variant.run.status,
            f"{len(variant.rounds)} of {variant.run.num_rounds}",
            f"{pooled.auroc:.3f}" if pooled and pooled.auroc is not None else "–",
        )
    console.print(table)
