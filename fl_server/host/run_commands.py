"""The commands that serve a federation, and that start, watch and end its runs."""

import shlex
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_contract.errors import RunError, SettingError
from fl_server.exit_codes import exit_codes, interrupted_by_sigterm, open_console
from fl_server.host.admission_commands import LeadKeyOption
from fl_server.host.provisioning_commands import FOLDER, FolderOption

if TYPE_CHECKING:
    from rich.console import Console

    from fl_server.host.federation import FederationFolder
    from fl_server.host.runs import RunPlan, RunState

LOOK_SECONDS = 2.0
"""Between two questions to the SuperLink whether a run goes on."""
PATIENCE_SECONDS = 300.0
"""For a SuperLink that restarts while a run is watched."""
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Number of a run, or name of its folder.")]


def start(folder: FolderOption = FOLDER) -> None:
    """Run the coordinator in the foreground: the SuperLink and the executor of server apps.

    Exits with 0 after SIGTERM, SIGINT or SIGHUP, with 2 when a setting is wrong, and else with the code of what failed.
    """
    from fl_server.host.federation import FederationFolder
    from fl_server.host.start import start

    console = open_console()
    code = 0
    with exit_codes():
        code = start(FederationFolder(folder), lambda line: console.print(line, soft_wrap=True))
    raise typer.Exit(code)


def run(
    study: Annotated[str, typer.Argument(help="A study's name.")],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, if hospitals allow it. Repeatable."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="What fl-server bundle built; by default built from this checkout.", show_default=False),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start the run and leave it.")] = False,
    resume: Annotated[
        Path | None, typer.Option(help="Folder of a run: go on from its checkpoint.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the study and say what would be run.")] = False,
    folder: FolderOption = FOLDER,
    lead_key: LeadKeyOption = None,
) -> None:
    """Run a study across the hospitals, and watch it.

    Exits with 0 only if the run completed, with 1 if it failed, with 2 when a setting is wrong, and with 130 after
    Ctrl-C, which leaves the run going.
    """
    from fl_server.dry_run import describe_deployment
    from fl_server.host.control import open_control
    from fl_server.host.federation import FederationFolder
    from fl_server.host.runs import start_run

    console = open_console()
    with exit_codes(), interrupted_by_sigterm():
        federation = FederationFolder(folder)
        federation.settings()
        plan = _plan(federation, study, assignments or [], bundle, resume, lead_key)
        describe_deployment(plan.study, console)
        console.print(f"bundle   sha256 {plan.sha256}; hospitals run it only if they approved it", soft_wrap=True)
        if dry_run:
            return
        with open_control(federation, lead_key) as control:
            run_id = start_run(control, plan)
        console.print(f"run      {run_id}\nresults  {plan.out}\n", soft_wrap=True)
        where = [] if folder == FOLDER else ["--folder", str(folder)]
        where += ["--lead-key", str(lead_key)] if lead_key else []
        if detach:
            console.print(f"go on with: {shlex.join(['fl-server', 'status', str(run_id), *where])}", soft_wrap=True)
            return
        try:
            state = _watch(federation, lead_key, run_id, plan, console)
        except KeyboardInterrupt:
            console.print(
                f"\nrun {run_id} goes on; watch it: {shlex.join(['fl-server', 'log', str(run_id), '--follow', *where])}"
                f"\nstop it: {shlex.join(['fl-server', 'stop', str(run_id), *where])}",
                soft_wrap=True,
            )
            raise
        again = ["fl-server", "run", study, *(word for each in assignments or [] for word in ("--set", each))]
        again += ["--bundle", str(bundle)] if bundle else []
        _print_end(federation, state, console, shlex.join([*again, "--resume", str(state.out), *where]))


def status(
    which: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Number of a run, or its folder.")] = None,
    folder: FolderOption = FOLDER,
    lead_key: LeadKeyOption = None,
) -> None:
    """List the runs of the federation, or show one: rounds, result, and which hospitals refused and why."""
    from fl_server.host.control import open_control
    from fl_server.host.federation import FederationFolder
    from fl_server.host.run_views import print_run, print_run_table
    from fl_server.host.runs import find_run, list_runs

    console = open_console()
    federation = FederationFolder(folder)
    with exit_codes(), open_control(federation, lead_key) as control:
        if which is None:
            print_run_table(list_runs(control), console)
        else:
            print_run(federation, find_run(control, which), console)


def log(
    which: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", help="Until the run ends.")] = False,
    folder: FolderOption = FOLDER,
    lead_key: LeadKeyOption = None,
) -> None:
    """Print what the coordinator's app of a run wrote."""
    from fl_server.host.control import open_control
    from fl_server.host.federation import FederationFolder
    from fl_server.host.runs import find_run, read_log

    with (
        exit_codes(),
        interrupted_by_sigterm(),
        open_control(FederationFolder(folder), lead_key) as control,
    ):
        for text in read_log(control, find_run(control, which), follow=follow):
            sys.stdout.write(text)
            sys.stdout.flush()


def stop(which: RunArgument, folder: FolderOption = FOLDER, lead_key: LeadKeyOption = None) -> None:
    """End a run; its folder and checkpoint stay, so that run --resume can go on with it."""
    from fl_server.host.control import open_control
    from fl_server.host.federation import FederationFolder
    from fl_server.host.runs import find_run, stop_run

    console = open_console()
    with exit_codes(), open_control(FederationFolder(folder), lead_key) as control:
        state = find_run(control, which)
        stop_run(control, state)
        console.print(
            f"run {state.run_id} was stopped; a hospital that trains now finishes that round for itself\n"
            f"go on with: fl-server run {state.study} --resume {state.out}",
            soft_wrap=True,
        )


def pull(
    which: RunArgument,
    to: Annotated[Path, typer.Option(help="New or empty folder.")],
    folder: FolderOption = FOLDER,
    lead_key: LeadKeyOption = None,
) -> None:
    """Copy a run's results out of the federation's folder: model, record, report."""
    from fl_server.host.control import open_control
    from fl_server.host.federation import FederationFolder
    from fl_server.host.runs import find_run, pull_run

    console = open_console()
    with exit_codes():
        with open_control(FederationFolder(folder), lead_key) as control:
            state = find_run(control, which)
        pulled = pull_run(state, to)
        if state.is_complete:
            from fl_server.report import write_report
            from fl_server.summary import write_summary

            write_summary(pulled)
            write_report(pulled)
        console.print(f"run {state.run_id}, {state.status}: {pulled}", soft_wrap=True)


def _plan(
    federation: "FederationFolder",
    study: str,
    assignments: list[str],
    bundle: Path | None,
    resume: Path | None,
    lead_key: Path | None,
) -> "RunPlan":
    from fl_contract.study_file import STUDIES
    from fl_server.host.bundle import build_and_sign
    from fl_server.host.lead import read_lead_key
    from fl_server.host.runs import RunPlan, check_study, resumed_folder, study_in_bundle
    from fl_server.local_grid import PROJECT
    from fl_server.simulation import find_study, parse_overrides

    name, studies = find_study(study)
    if studies.resolve() != STUDIES.resolve():
        raise SettingError(f"{study}: hospitals take a study from the bundle only; copy the file into {STUDIES}")
    overrides = parse_overrides(assignments)
    try:
        content = bundle.read_bytes() if bundle else build_and_sign(PROJECT, read_lead_key(federation, lead_key))[0]
    except OSError as error:
        raise SettingError(f"--bundle={bundle}; cannot be read ({error.strerror}); check the path") from error
    loaded = study_in_bundle(content, name, overrides)
    check_study(loaded)
    out = federation.runs.resolve() / f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    return RunPlan(
        study=loaded,
        overrides=overrides,
        bundle=content,
        out=resumed_folder(federation, resume) if resume else out,
        resume=resume is not None,
    )


def _watch(
    federation: "FederationFolder", lead_key: Path | None, run_id: int, plan: "RunPlan", console: "Console"
) -> "RunState":
    """Show the run until it has ended."""
    from fl_server.host.control import open_control
    from fl_server.host.runs import find_run
    from fl_server.live import follow_run, read_rounds

    def ask() -> "RunState":
        with open_control(federation, lead_key) as control:
            return find_run(control, str(run_id))

    watched = _Watched(ask)
    known = read_rounds(plan.record_folder)
    follow_run(plan.record_folder, console, watched.is_running, known=known)
    return watched.state


class _Watched:
    """Asks the SuperLink now and then, and forgives that it is away for a while."""

    def __init__(self, ask: "Callable[[], RunState]") -> None:
        self._ask = ask
        self._asked = 0.0
        self._answered = time.monotonic()
        self.state: RunState = ask()

    def is_running(self) -> bool:
        """Whether the run goes on, as far as is known."""
        now = time.monotonic()
        if now - self._asked >= LOOK_SECONDS:
            self._asked = now
            try:
                self.state = self._ask()
                self._answered = now
            except RunError:
                if now - self._answered > PATIENCE_SECONDS:
                    raise
        return not self.state.has_ended


def _print_end(federation: "FederationFolder", state: "RunState", console: "Console", again: str) -> None:
    """Say how a run ended.

    Raises:
        RunError: Not well; with the command that goes on, if there is a checkpoint.
    """
    from fl_server.checkpoint import CHECKPOINT_FILE
    from fl_server.host.run_views import refusals
    from fl_server.host.site_record import name_nodes

    for line in refusals(state):
        console.print(f"refused  {name_nodes(federation, line)}", soft_wrap=True)
    if not state.is_complete:
        has_checkpoint = state.record_folder is not None and (state.record_folder / CHECKPOINT_FILE).exists()
        advice = f"\ngo on with: {again}" if has_checkpoint else ""
        raise RunError(f"run {state.run_id} {state.status}: {name_nodes(federation, state.reason)}{advice}")
    console.print(
        f"\nrun {state.run_id} {state.header()['status']}\nresults  {state.out}\nreport   fl-server report {state.out}",
        soft_wrap=True,
    )
