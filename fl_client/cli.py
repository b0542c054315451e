"""The hospital's command line, thin over the package."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from fl_client.exit_codes import errors_in_words
from fl_client.node import approval_commands, node_commands
from fl_client.node.doctor_command import doctor
from fl_client.node.log_commands import log_app

if TYPE_CHECKING:
    from fl_client.audit import ModelAudit
    from fl_client.budget import SiteBudget
    from fl_contract.study import Study
    from privacy.audit import Audit

app = typer.Typer(
    help="Consilium at a hospital: its records, its privacy budget and ledger, and whether training keeps its promise.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
ledger_app = typer.Typer(help="The hospital's privacy ledger.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")
data_app = typer.Typer(help="Public data sets, for trying a study.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Place = Annotated[Path, typer.Argument(help="The hospital's site.toml, or a folder that holds one or several.")]


@app.callback()
def main() -> None:
    """Consilium at a hospital."""


@app.command()
def budget(place: Place) -> None:
    """Show what of each cohort's privacy budget is spent, by study and run, what is left, what comes next."""
    from fl_client.budget import read_budgets

    with errors_in_words():
        budgets = read_budgets(place)
    console = Console()
    console.print(_budget_table(budgets))
    if any(site.runs for site in budgets):
        console.print(_run_table(budgets))
    if any(site.studies for site in budgets):
        console.print(_study_table(budgets))
    if any(run.next_round for site in budgets for run in site.runs):
        console.print(_next_table(budgets))
    if any(len(site.runs) > 1 for site in budgets):
        console.print("Runs compose: spent is less than their sum.")


@app.command()
def check(
    site: Annotated[Path, typer.Argument(help="The hospital's site.toml.")],
    study: Annotated[str, typer.Option(help="The study's name.")],
    studies: Annotated[
        Path | None, typer.Option(help="Folder of the studies; that of this installation if not given.")
    ] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Read this hospital's records and say whether it could take part in a study, and what to put right if not.

    Trains nothing, charges nothing, sends nothing. Prints counts, which no epsilon covers: keep them inside the
    hospital. Exits with 0 if it could, 1 if not, 2 if a setting is wrong.
    """
    from fl_client.check_report import print_check, to_json
    from fl_client.data_check import check_site
    from fl_client.settings import read_site_settings
    from fl_client.site import Site
    from fl_contract.study_file import STUDIES, load_study

    with errors_in_words(exit_code=2):
        opened = Site(
            settings=read_site_settings(site), folder=site.parent, study=load_study(study, directory=studies or STUDIES)
        )
        report = check_site(opened)
    if json:
        typer.echo(to_json(report))
    else:
        print_check(report, Console(highlight=False))
    if not report.is_ok:
        raise typer.Exit(1)


@ledger_app.command()
def verify(place: Place) -> None:
    """Check each row of a ledger, its receipt and its arithmetic; exit 1 and name the first broken row if one is."""
    from fl_client.budget import verify_ledgers

    with errors_in_words():
        states = verify_ledgers(place)
    console = Console()
    for site, state in states.items():
        if state is None:
            console.print(f"{site}: no ledger, nothing spent", highlight=False)
            continue
        spent = ", ".join(f"{cohort} ε {epsilon:.3f}" for cohort, epsilon in state.epsilons.items())
        told = f"{site}: OK, {state.num_rows} rows, last hash {state.last_hash}; {spent or 'nothing spent'}"
        console.print(told, highlight=False, soft_wrap=True)


@ledger_app.command()
def charge(
    site: Annotated[Path, typer.Argument(help="The hospital's site.toml.")],
    study: Annotated[str, typer.Option(help="What the privacy was spent for.")],
    epsilon: Annotated[float, typer.Option(help="Epsilon of the spend, add-or-remove-one.")],
    reason: Annotated[str, typer.Option(help="Why it is entered, for whoever reads the ledger later.")],
    delta: Annotated[float, typer.Option(help="Delta of the spend.")] = 0.0,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Enter privacy that was spent outside Consilium on the patients the hospital trains on; it stays for ever."""
    from fl_client.budget import charge_by_hand
    from privacy.accounting import ExternalSpend

    with errors_in_words():
        spend = ExternalSpend(epsilon=epsilon, delta=delta)
        if not yes:
            typer.confirm(f"Charge epsilon {epsilon:g}, delta {delta:g} for ever?", abort=True)
        after = charge_by_hand(site, study=study, spend=spend, reason=reason)
    Console().print(_budget_table([after]))


@app.command()
def audit(
    study: Annotated[str, typer.Argument(help="A study's name, or the path of its TOML file.")] = "breast-cancer",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, as privacy.epsilon=4.0. Repeatable."),
    ] = None,
    canaries: Annotated[int, typer.Option(help="Made-up records to train on; more find smaller deviations.")] = 1000,
    membership: Annotated[
        Path | None, typer.Option(metavar="SITE.TOML", help="Attack a model with this hospital's patients instead.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="The model to attack, as safetensors.")] = None,
    named_study: Annotated[str | None, typer.Option("--study", help="Another way to give STUDY.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the result to this file.")] = None,
) -> None:
    """Attack this installation's private training, and say whether anything contradicts its privacy claim.

    Trains on made-up canaries as the study would on patients: no patient is read and no budget is spent. With
    --membership and --model, attacks a trained model by this hospital's training and held-out patients instead; what is
    printed then stays inside the hospital. Exits with 1 when something contradicts the claim, or on an error.
    """
    from fl_client.audit import open_study
    from fl_client.audit_report import write_record
    from fl_contract.errors import SettingError
    from fl_contract.study_file import parse_assignment

    with errors_in_words():
        opened = open_study(named_study or study, dict(parse_assignment(word) for word in assignments or []))
        if membership is not None and model is not None:
            result, is_contradicted = _attack_model(opened, membership, model)
        elif membership is None and model is None:
            result, is_contradicted = _audit_training(opened, canaries)
        else:
            raise SettingError("--membership and --model go together: the hospital's site.toml and the model to attack")
        if json is not None:
            write_record(json, opened, result)
    if is_contradicted:
        raise typer.Exit(1)


def _audit_training(study: "Study", canaries: int) -> tuple["Audit | ModelAudit", bool]:
    """Audit a study's private training and show the result; True if something contradicts the claim."""
    from fl_client.audit import plan_to_audit
    from fl_client.audit_report import print_training_audit
    from privacy.audit import audit_training

    console = Console(highlight=False)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("calibrating the noise", total=None)
        plan = plan_to_audit(study)
        progress.update(task, description="training on canaries", total=plan.num_rounds)
        result = audit_training(plan, num_canaries=canaries, on_round=lambda: progress.advance(task))
    print_training_audit(study, result, console)
    return result, bool(result.contradictions)


def _attack_model(study: "Study", site_file: Path, model_file: Path) -> tuple["Audit | ModelAudit", bool]:
    """Attack a model and show the result; True if it contradicts the study's epsilon."""
    from fl_client.audit import NUM_SHADOWS, attack_model
    from fl_client.audit_report import contradicts_claim, print_model_audit

    console = Console(highlight=False)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("training shadow models", total=NUM_SHADOWS)
        result = attack_model(study, site_file, model_file, lambda: progress.advance(task))
    print_model_audit(study, result, console)
    return result, contradicts_claim(study, result)


@data_app.command(name="list")
def list_data_sets() -> None:
    """Say which data sets can be fetched, from where."""
    from fl_client.data_sets import DATA_SETS

    console = Console()
    for name, files in DATA_SETS.items():
        console.print(f"{name}: {len(files)} files, {sum(file.num_bytes for file in files):,} bytes", highlight=False)
        for file in files:
            console.print(f"  {file.url}", highlight=False, soft_wrap=True)


@data_app.command()
def get(
    name: Annotated[str, typer.Argument(help="Of the data set, such as heart-disease.")],
    to: Annotated[Path, typer.Option(help="Folder for its files; data/NAME if not given.")] = Path(),
) -> None:
    """Fetch a public data set; each file is kept only if its checksum is right."""
    from fl_client.data_sets import DATA_SETS, fetch
    from fl_contract.errors import SettingError

    with errors_in_words():
        if name not in DATA_SETS:
            raise SettingError(f"data set {name!r}; expected one of {sorted(DATA_SETS)}")
        folder = to if to != Path() else Path("data") / name
        files = DATA_SETS[name]
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task(name, total=sum(file.num_bytes for file in files))
            for file in files:
                is_new = fetch(file, folder, lambda count: progress.advance(task, count))
                if not is_new:
                    progress.advance(task, file.num_bytes)
                progress.console.print(f"{folder / file.name}: {'fetched' if is_new else 'was there'}", highlight=False)


def _label(site: "SiteBudget") -> str:
    return site.cohort if site.cohort.split("/")[0] == site.name else f"{site.name}: {site.cohort}"


def _budget_table(budgets: Sequence["SiteBudget"]) -> Table:
    table = _table("Privacy budget, ε over all studies", "hospital", numbers=("spent", "budget", "left", "δ", "runs"))
    for site in budgets:
        left = f"{site.remaining:.3f}" if site.remaining else "[red]0.000[/]"
        table.add_row(
            _label(site), f"{site.spent:.3f}", f"{site.budget:.3f}", left, f"{site.delta:g}", str(len(site.runs))
        )
    return table


def _run_table(budgets: Sequence["SiteBudget"]) -> Table:
    table = _table("\nSpent by run", "hospital", "study", "run", numbers=("rounds", "steps", "ε"))
    for site in budgets:
        for position, run in enumerate(site.runs):
            table.add_row(
                "" if position else _label(site),
                escape(run.study),
                escape(run.run[:8]),
                str(run.rounds),
                str(run.steps),
                f"{run.epsilon:.3f}",
            )
    return table


def _study_table(budgets: Sequence["SiteBudget"]) -> Table:
    table = _table("\nSpent by study, all its runs together", "hospital", "study", numbers=("by hand", "ε"))
    for site in budgets:
        for position, study in enumerate(site.studies):
            first = "" if position else _label(site)
            table.add_row(first, escape(study.study), str(study.outside), f"{study.epsilon:.3f}")
    return table


def _next_table(budgets: Sequence["SiteBudget"]) -> Table:
    table = _table("\nNext round of each open run", "hospital", "study", "run", numbers=("steps", "ε spent", "then"))
    for site in budgets:
        for run in site.runs:
            if (coming := run.next_round) is not None:
                table.add_row(
                    _label(site),
                    escape(run.study),
                    escape(run.run[:8]),
                    f"{coming.steps} of {run.steps_per_round}",
                    f"{coming.epsilon_before:.3f}",
                    f"{coming.epsilon_after:.3f}" if coming.steps else "refused",
                )
    return table


def _table(title: str, *texts: str, numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", pad_edge=False)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


app.add_typer(log_app, name="log")
app.command()(node_commands.enroll)
app.command()(node_commands.join)
app.command()(doctor)
app.command()(approval_commands.approve)
app.command()(approval_commands.approvals)
app.command()(node_commands.start)
