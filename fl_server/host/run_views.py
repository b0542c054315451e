"""How runs of a federation are shown."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from fl_server.exit_codes import print_columns
from fl_server.host.federation import FederationFolder
from fl_server.host.runs import RunState
from fl_server.host.site_record import name_nodes
from fl_server.live import read_rounds, render_run


def print_run_table(states: Sequence[RunState], console: Console) -> None:
    """One line a run."""
    if not states:
        console.print("no run was started yet; start one: fl-server run STUDY")
        return
    rows = [("run", "study", "status", "rounds", "started", "results")]
    for state in states:
        rows.append((str(state.run_id), state.study, state.status, _rounds(state), state.started[:19], state.out.name))
    print_columns(rows, console)


def print_run(federation: FederationFolder, state: RunState, console: Console) -> None:
    """One run in detail."""
    header = state.header()
    lines = [
        f"run      {state.run_id}",
        f"study    {state.study}",
        f"status   {state.status}",
        f"rounds   {_rounds(state)}",
        f"started  {state.started[:19]} UTC",
        f"results  {state.out}",
    ]
    if state.has_ended and not state.is_complete:
        lines.append(f"reason   {state.reason}")
    lines += [f"refused  {line}" for line in refusals(state)]
    console.print(Text(name_nodes(federation, "\n".join(lines))), soft_wrap=True)
    if header and state.record_folder and (rounds := read_rounds(state.record_folder)):
        console.print()
        console.print(render_run(header, rounds))


def refusals(state: RunState) -> list[str]:
    """Hospitals whose reply was not used, before round 1 or in a round, each with its reasons."""
    folder, found = state.record_folder, list[str]()
    if folder is None:
        return found
    for site, absence in sorted(state.header().get("refused", {}).items()):
        found.append(f"{site}: {absence['code']}: {absence['reason']}")
    missed: dict[tuple[str, str, str], list[int]] = {}
    for entry in read_rounds(folder):
        for site, absence in entry["missing"].items():
            missed.setdefault((site, absence["code"], absence["reason"]), []).append(entry["round"])
    for (site, code, reason), rounds in sorted(missed.items()):
        which = ", ".join(map(str, rounds[:10])) + (", …" if len(rounds) > 10 else "")
        found.append(f"{site} in round {which}: {code}: {reason}")
    return found


def _rounds(state: RunState) -> str:
    header, folder = state.header(), state.record_folder
    return f"{len(read_rounds(folder))} of {header['num_rounds']}" if header and folder else "–"
