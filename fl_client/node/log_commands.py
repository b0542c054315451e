"""``fl-client log``, thin over `fl_client.journal`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fl_client.journal_chain import Entry

Place = Annotated[Path, typer.Argument(help="The hospital's site.toml, or a folder that holds one or several.")]

_SAID = ("reply", "refusal", "request", "reason", "by")
"""Fields that say more of what happened."""

log_app = typer.Typer(help="The hospital's journal: approvals, runs, refusals, releases.", no_args_is_help=True)


@log_app.command()
def verify(place: Place) -> None:
    """Check every line of the journal and its receipt; exit 1 and name the first broken line if one is."""
    from fl_client.exit_codes import FAILED, errors_in_words
    from fl_client.journal import Journal
    from fl_client.site_files import site_files
    from fl_contract.errors import JournalError

    console, is_broken = Console(highlight=False, soft_wrap=True), False
    with errors_in_words():
        files = site_files(place)
    for site in files:
        try:
            entries, torn = Journal(site.parent).check()
        except (JournalError, OSError) as error:
            console.print(f"{escape(str(site.parent))}: [red]BROKEN[/], {escape(str(error))}")
            is_broken = True
            continue
        told = f"OK, {len(entries)} lines, last hash {entries[-1].hash}" if entries else "no journal, nothing happened"
        rest = f"; behind them {torn} bytes that a crash left, which the next line replaces" if torn else ""
        console.print(f"{escape(str(site.parent))}: {told}{rest}")
    if is_broken:
        raise typer.Exit(FAILED)


@log_app.command()
def show(
    site: Annotated[Path, typer.Argument(help="The hospital's site.toml.")],
    kind: Annotated[str | None, typer.Option(help="Only lines of this kind, as release or refusal.")] = None,
) -> None:
    """Show the journal, after it was checked: when, what, which study and round, how many bytes, hash."""
    from fl_client.exit_codes import exit_codes
    from fl_client.journal import KINDS, REFUSAL, Journal
    from fl_client.settings import read_site_settings
    from fl_client.site_files import SITE_LOG
    from fl_contract.errors import SettingError

    with exit_codes():
        if kind is not None and kind not in KINDS:
            raise SettingError(f"kind={kind!r}; expected one of {list(KINDS)}")
        read_site_settings(site)
        entries = [entry for entry in Journal(site.parent).read() if kind in (None, entry.kind)]
    table = Table(pad_edge=False)
    for name in ("when, UTC", "what", "study"):
        table.add_column(name, overflow="fold")
    for name in ("round", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("hash", no_wrap=True)
    for entry in entries:
        table.add_row(*map(escape, _row(entry)))
    Console(highlight=False).print(table if entries else "no such line")
    if any(entry.kind == REFUSAL for entry in entries):
        Console(highlight=False, markup=False, soft_wrap=True).print(
            f"why, in full: {site.parent / SITE_LOG}, and node/logs beside it"
        )


def _row(entry: "Entry") -> tuple[str, ...]:
    fields = entry.fields
    words = [entry.kind, *(str(fields[name]) for name in _SAID if name in fields)]
    return (
        entry.time[:19].replace("T", " "),
        " ".join(words),
        str(fields.get("study", "")),
        str(fields.get("round", "")),
        f"{fields['bytes']:,}" if "bytes" in fields else "",
        str(fields.get("sha256", fields.get("bundle", "")))[:12],
    )
