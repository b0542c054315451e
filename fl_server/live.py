"""What a person sees while a run goes on: a live table on a terminal, one line a round elsewhere."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fl_contract.metrics import MEASURES
from fl_server.run_record import read_header
from fl_server.summary import read_round_lines

LOOK_SECONDS = 0.2


def follow_run(
    folder: Path, console: Console, is_running: Callable[[], bool], *, known: Sequence[dict[str, Any]] = ()
) -> None:
    """Show a run from its record until it ends.

    The record is read, not the run: the same view serves both engines.

    Args:
        folder: Of the run.
        console: To show it on.
        is_running: Asked about five times a second.
        known: Rounds that the folder held before the run began or went on; without a terminal they are not printed.
    """
    if console.is_terminal:
        _follow_live(folder, console, is_running)
    else:
        _follow_by_lines(folder, console, is_running, known)


def _follow_live(folder: Path, console: Console, is_running: Callable[[], bool]) -> None:
    with Live(console=console, auto_refresh=False) as live:
        going = True
        while going:
            going = is_running()
            live.update(render_run(read_header(folder), read_rounds(folder)), refresh=True)
            if going:
                time.sleep(LOOK_SECONDS)


def _follow_by_lines(
    folder: Path, console: Console, is_running: Callable[[], bool], known: Sequence[dict[str, Any]]
) -> None:
    going = True
    while going:
        going = is_running()
        rounds = read_rounds(folder)
        for entry in rounds[_count_equal(known, rounds) :]:
            console.print(Text(_round_line(read_header(folder), entry)), soft_wrap=True)
        known = rounds
        if going:
            time.sleep(LOOK_SECONDS)


def _count_equal(known: Sequence[dict[str, Any]], rounds: Sequence[dict[str, Any]]) -> int:
    """Rounds at the beginning of both; a resumed run drops those after its checkpoint and writes them anew."""
    pairs = zip(known, rounds, strict=False)
    return next((number for number, (old, new) in enumerate(pairs) if old != new), min(len(known), len(rounds)))


def render_run(header: dict[str, Any], rounds: list[dict[str, Any]]) -> RenderableType:
    """The table of a run's last round, with its progress."""
    if not rounds:
        return Text("Calling the hospitals and agreeing on privacy before round 1 …", style="dim")
    last, planned = rounds[-1], header["num_rounds"]
    bar = Columns([ProgressBar(total=planned, completed=last["round"], width=60)])  # a bar alone ends no line
    return Group(_progress_line(header, rounds), bar, _sites(header, last))


def _progress_line(header: dict[str, Any], rounds: list[dict[str, Any]]) -> Text:
    last, planned = rounds[-1], header["num_rounds"]
    mean_seconds = sum(entry["seconds"] for entry in rounds) / len(rounds)
    left = mean_seconds * (planned - last["round"])
    ended = {"completed": "done", "converged": "converged", "failed": "failed"}.get(header["status"])
    pooled, (measure, name) = last["pooled"] or {}, _measure(last)
    return Text.assemble(
        (f"{header['title']}\n", "bold"),
        f"round {last['round']} of {planned}",
        f" · pooled {name} {_number(pooled.get('figures', {}).get(measure))} · loss {_number(pooled.get('loss'))}",
        f" · {ended}" if ended else f" · about {left:.0f} s left",
    )


def _sites(header: dict[str, Any], last: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    measure, name_of_measure = _measure(last)
    table.add_column("hospital")
    for title in ("trains on", "held out", "loss", name_of_measure, "ε of target"):
        table.add_column(title, justify="right")
    table.add_column("")
    absent = {**header["refused"], **last["missing"]}
    for name in sorted(last["sites"].keys() | absent.keys()):
        entry = last["sites"].get(name, {})
        table.add_row(
            Text(name),
            _number(entry.get("num_examples"), "d"),
            _number(entry.get("test_examples"), "d"),
            _number(entry.get("loss")),
            _number(entry.get("figures", {}).get(measure)),
            _spent(header, entry),
            Text(absent[name]["code"] if name in absent else _lateness(entry), style="yellow"),
        )
    return table


def _lateness(site: dict[str, Any]) -> str:
    """How old a reply was that was folded in; empty for one of its own round."""
    return f"{site['staleness']} late" if site.get("staleness") else ""


def _measure(entry: dict[str, Any]) -> tuple[str, str]:
    """Key and name of what models are compared by in a round."""
    key = next(iter((entry["pooled"] or {}).get("figures", {})), "auroc")
    return key, MEASURES[key]


def _spent(header: dict[str, Any], entry: dict[str, Any]) -> str:
    if entry.get("epsilon") is None:
        return "–"
    return f"{entry['epsilon']:.3f} of {header['settings']['privacy']['epsilon']:g}"


def _round_line(header: dict[str, Any], entry: dict[str, Any]) -> str:
    pooled, (measure, name) = entry["pooled"] or {}, _measure(entry)
    spent = [site["epsilon"] for site in entry["sites"].values() if site["epsilon"] is not None]
    parts = [
        f"round {entry['round']:>3} of {header['num_rounds']}",
        f"loss {_number(pooled.get('loss'))}",
        f"{name} {_number(pooled.get('figures', {}).get(measure))}",
    ]
    if spent:
        parts.append(f"ε {max(spent):.3f} of {header['settings']['privacy']['epsilon']:g}")
    parts += [f"{name}: {absence['code']}" for name, absence in entry["missing"].items()]
    parts += [f"{name}: {late}" for name, site in entry["sites"].items() if (late := _lateness(site))]
    return "  ".join(parts)


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The rounds of a run that are complete, for the display: a line that cannot be read is left out."""
    rounds = []
    for line in read_round_lines(folder):
        with suppress(ValueError):
            rounds.append(json.loads(line))
    return rounds
