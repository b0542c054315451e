"""The coordinator's command line, thin over the package.

Heavy packages are imported inside the commands, so that ``--help`` answers at once.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fl_contract.errors import ConsiliumError, SettingError
from fl_contract.study import parse_assignment
from fl_server.flower_engine import QUIET_FLOWER

os.environ.update(QUIET_FLOWER)

app = typer.Typer(
    help="Consilium's coordinator: try a study on this machine, read its report.",
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
    from fl_server.dry_run import describe_simulation
    from fl_server.report import write_report
    from fl_server.simulation import SimulationPlan, find_study, simulate
    from fl_server.summary import write_summary

    console = Console()
    with _exit_codes():
        if resume and out is None:
            raise SettingError("--resume needs --out: the folder of the run to go on with")
        name, studies = find_study(study)
        plan = SimulationPlan(
            study_name=name,
            studies=studies,
            overrides=dict(parse_assignment(assignment) for assignment in assignments or []),
            out=out or RUNS / f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}",
            engine=engine.value,
            resume=resume,
            with_baselines=baselines,
        )
        describe_simulation(plan.load(), console)
        if dry_run:
            return
        try:
            simulate(plan, console)
        except KeyboardInterrupt:
            again = f"fl-server simulate {study} --out {plan.out} --resume"
            console.print(f"\nstopped; go on with the same settings and: {again}", highlight=False, soft_wrap=True)
            raise typer.Exit(130) from None
        summary = write_summary(plan.out)
        print_comparison(plan.out, console)
        report = write_report(plan.out)
        console.print(f"\nsummary  {summary}\nreport   {report}", highlight=False, soft_wrap=True)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a run, as simulate's --out.")]) -> None:
    """Write a run's report.html and summary.json again."""
    from fl_server.comparison import print_comparison
    from fl_server.report import write_report
    from fl_server.summary import write_summary

    console = Console()
    with _exit_codes():
        write_summary(run)
        print_comparison(run, console)
        console.print(f"\nreport   {write_report(run)}", highlight=False, soft_wrap=True)


@app.command()
def runs(folder: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = RUNS) -> None:
    """List the runs in a folder: study, how it ended, rounds, result."""
    from fl_server.run_list import print_runs

    console = Console()
    with _exit_codes():
        print_runs(folder, console)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn our exceptions into a message and an exit code: 2 for a wrong setting, 1 for anything else."""
    from privacy.errors import PrivacyError

    try:
        yield
    except (ConsiliumError, PrivacyError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, SettingError) else 1) from error
