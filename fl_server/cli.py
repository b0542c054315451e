"""The coordinator's command line, thin over the package.

Heavy packages are imported inside the commands, so that ``--help`` answers at once.
"""

import os
import shlex
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fl_contract.errors import SettingError
from fl_host.quiet_flower import QUIET_FLOWER
from fl_server.exit_codes import exit_codes, interrupted_by_sigterm, open_console
from fl_server.host.admission_commands import admit, expel, sites
from fl_server.host.bundle_commands import bundle
from fl_server.host.provisioning_commands import init, renew
from fl_server.host.run_commands import log, pull, run, start, status, stop

os.environ.update(QUIET_FLOWER)

app = typer.Typer(
    help="Consilium's coordinator: try a study on this machine, run it across hospitals, read its report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RUNS = Path("runs")


class Engine(StrEnum):
    """Where a simulation runs."""

    LOCAL = "local"
    FLOWER = "flower"


@app.command()
def simulate(
    study: Annotated[str, typer.Argument(help="A study's name, or the path of its TOML file.")] = "breast-cancer",
    engine: Annotated[
        Engine, typer.Option(help="local: in this process. flower: Flower's own simulation, with Ray.")
    ] = Engine.LOCAL,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, as privacy.epsilon=4.0. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; by default runs/<study>-<time>.", show_default=False)
    ] = None,
    continue_from: Annotated[
        Path | None, typer.Option(help="Folder of an ended run of the study: go on from its model.", show_default=False)
    ] = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(help="A run's folder or a .safetensors file: start from that model.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that --out holds.")] = False,
    baselines: Annotated[bool, typer.Option(help="Also run what the study is compared with.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the study and say what would be run.")] = False,
) -> None:
    """Try a study over virtual hospitals on this machine, and write its report.

    Trains the study as it stands (with differential privacy, if it asks for it), then what it is compared with: the
    same hospitals without privacy, each hospital alone, and all data pooled. Exits with 1 when the run fails and with 2
    when a setting is wrong.
    """
    from fl_server.comparison import print_comparison
    from fl_server.dry_run import describe_noise, describe_simulation
    from fl_server.run_record import RUN_FILE
    from fl_server.simulation import SimulationPlan, find_study, parse_overrides, simulate
    from fl_server.summary import write_summary

    console = open_console()
    with exit_codes(), interrupted_by_sigterm():
        if resume and out is None:
            raise SettingError("--resume needs --out: the folder of the run to go on with")
        name, studies = find_study(study)
        named = {"continue-from": continue_from, "warm-start": warm_start}
        start = {kind: path for kind, path in named.items() if path is not None}
        plan = SimulationPlan(
            study_name=name,
            studies=studies,
            overrides=parse_overrides(assignments or []),
            start={kind: str(path.resolve()) for kind, path in start.items()},
            out=out or RUNS / f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}",
            engine=engine.value,
            resume=resume,
            with_baselines=baselines,
        )
        loaded = plan.load()
        plan.check(loaded)
        describe_simulation(loaded, console)
        if dry_run:
            describe_noise(loaded, console)
            return
        try:
            simulate(plan, console)
        except KeyboardInterrupt:
            again = ["fl-server", "simulate", study]
            again += [word for assignment in assignments or [] for word in ("--set", assignment)]
            again += [word for kind, path in start.items() for word in (f"--{kind}", str(path))]
            again += ["--engine", engine.value, *([] if baselines else ["--no-baselines"]), "--out", str(plan.out)]
            again += ["--resume"] if any(plan.out.glob(f"*/{RUN_FILE}")) else []
            console.print(f"\nstopped; go on with: {shlex.join(again)}", soft_wrap=True)
            raise
        summary = write_summary(plan.out)
        print_comparison(plan.out, console)
        from fl_server.report import write_report  # brings matplotlib, which no dry run needs

        report = write_report(plan.out)
        console.print(f"\nsummary  {summary}\nreport   {report}", soft_wrap=True)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a run, as simulate's --out.")]) -> None:
    """Write a run's report.html and summary.json again."""
    from fl_server.comparison import print_comparison
    from fl_server.report import write_report
    from fl_server.summary import write_summary

    console = open_console()
    with exit_codes():
        write_summary(run)
        print_comparison(run, console)
        console.print(f"\nreport   {write_report(run)}", soft_wrap=True)


@app.command()
def runs(folder: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = RUNS) -> None:
    """List the runs in a folder: study, how it ended, rounds, result."""
    from fl_server.run_list import print_runs

    console = open_console()
    with exit_codes():
        print_runs(folder, console)


for command in (init, renew, start, admit, sites, expel, bundle, run, status, log, stop, pull):
    app.command()(command)
