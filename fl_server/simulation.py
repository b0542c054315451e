"""A study tried on one machine: the private run itself, then the runs that it is compared with, then the report."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fl_contract.errors import ConsiliumError, RunError, SettingError
from fl_contract.study import Study
from fl_contract.study_file import STUDIES, Scalar, load_study, parse_assignment
from fl_server.dry_run import check_simulation
from fl_server.flower_engine import run_on_flower
from fl_server.live import follow_run, read_rounds
from fl_server.local_engine import run_locally
from fl_server.run_lock import refuse_live_run
from fl_server.run_record import RUN_FILE, read_header
from fl_server.settings import variant_of

FLOWER_STOP_SECONDS = 45.0
"""For Flower's processes to end after Ctrl-C; `fl_server.flower_engine` ends them and needs less."""
STUDY_WORKER = "study"
"""Name of the thread that runs the study's own run."""
SITE_LOGS = "sites/*/site.log"
WRITTEN_AT_THE_END = ("summary.json", "report.html")


@dataclass(frozen=True, kw_only=True)
class SimulationPlan:
    """What a person asked for.

    Attributes:
        study_name: Of the study.
        studies: The folder that holds it.
        overrides: Values by dotted key.
        out: Folder for everything.
        engine: ``local`` or ``flower``.
        resume: Go on with what ``out`` holds.
        with_baselines: Run the comparisons too.
        start: The run setting that names an earlier model to start from, if any: see `fl_server.starting_point`.
    """

    study_name: str
    studies: Path
    overrides: Mapping[str, Scalar]
    out: Path
    engine: str
    resume: bool
    with_baselines: bool
    start: Mapping[str, Scalar] = field(default_factory=dict)

    def load(self, extra: Mapping[str, Scalar] | None = None) -> Study:
        """The study, with the overrides and further ones of a comparison."""
        return load_study(self.study_name, directory=self.studies, overrides={**self.overrides, **(extra or {})})

    def check(self, study: Study) -> None:
        """Raise what would stop the run before its first round; a dry run makes the same checks."""
        if self.engine == "flower" and self.studies.resolve() != STUDIES.resolve():
            raise SettingError(
                f"{self.studies}: Flower takes a study from the bundle only; copy the file into {STUDIES}"
            )
        check_simulation(study)


def baselines(study: Study) -> Iterator[tuple[str, dict[str, Scalar]]]:
    """What the study's own run is compared with: a title and the overrides that make it.

    The same apps run all of them. An earlier model to start from is for joint runs only. Hospitals alone and pooled
    data train without differential privacy, since nothing of a patient would leave a hospital alone, and pooling is not
    allowed in the first place. A study that protects whole hospitals only is the joint run of its own comparison.
    """
    open_study: dict[str, Scalar] = {"privacy.mechanism": "none"}
    if study.protects_hospitals:
        open_study["central-privacy.mechanism"] = "none"
    if study.is_private:
        yield "together without privacy", open_study
    yield "all data pooled", {**open_study, "simulation.trainers": "pooled", "federation.min-sites": 1}
    for site in study.simulation.site_names:
        yield f"{site} alone", {**open_study, "simulation.trainers": site, "federation.min-sites": 1}


def find_study(argument: str) -> tuple[str, Path]:
    """Name and folder of a study that is given by name, or by the path of its file.

    >>> find_study("digits")[0]
    'digits'
    """
    if argument.endswith(".toml"):
        path = Path(argument)
        return path.stem, path.parent
    if not STUDIES.is_dir():
        raise SettingError(
            f"{STUDIES} is not there; Consilium runs from a checkout of its repository, after make setup"
        )
    return argument, STUDIES


def parse_overrides(assignments: Iterable[str]) -> dict[str, Scalar]:
    """Overrides of a command line; a folder of data is named from the root, since Flower's processes run elsewhere.

    >>> parse_overrides(["num-rounds=3", "simulation.data=/data/digits"])
    {'num-rounds': 3, 'simulation.data': '/data/digits'}
    """
    overrides = dict(parse_assignment(assignment) for assignment in assignments)
    if isinstance(data := overrides.get("simulation.data"), str):
        overrides["simulation.data"] = str(Path(data).resolve())
    return overrides


def simulate(plan: SimulationPlan, console: Console) -> dict[str, str]:
    """Run the study and what it is compared with.

    A comparison that fails is left out of the report and named in the result; it does not fail the study's own run.

    Args:
        plan: What to run.
        console: To show progress on.

    Returns:
        Why each comparison that failed did, by title.

    Raises:
        ConsiliumError: The study's own run failed.
    """
    study = plan.load()
    plan.check(study)
    _prepare_folder(plan.out)
    _run_main(plan, study, console)
    failures: dict[str, str] = {}
    for title, extra in baselines(study) if plan.with_baselines and study.simulation.trainers == "all" else ():
        with console.status(Text(f"For comparison: {title}")):
            try:
                _run_local(plan, extra)
            except ConsiliumError as error:
                failures[title] = str(error)
                console.print(Text.assemble((f"for comparison: {title}: left out.", "yellow"), f" {error}"))
            else:
                console.print(Text(f"for comparison: {title}: done", style="dim"))
    return failures


def _prepare_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--out={out}; cannot make this folder: {error.strerror}; choose another") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise SettingError(f"--out={out}; cannot write to this folder: Permission denied; choose another")
    for name in WRITTEN_AT_THE_END:
        if (out / name).is_dir():
            raise SettingError(f"--out={out}; {out / name} is a folder and must become a file; choose another")


def _run_main(plan: SimulationPlan, study: Study, console: Console) -> None:
    folder = plan.out / variant_of(study)
    refuse_live_run(folder)
    known = read_rounds(folder)
    stop = threading.Event()
    if plan.engine == "flower":
        worker = _Worker(lambda: _run_on_flower(plan, study, folder, stop))
    else:
        worker = _Worker(lambda: _run_local(plan, {}))
    try:
        worker.start()
        follow_run(folder, console, worker.is_alive, known=known)
    finally:
        stop.set()
        if plan.engine == "flower" and worker.is_alive():
            with _without_interrupts(), console.status("Ending Flower's processes"):
                worker.join(FLOWER_STOP_SECONDS)
    try:
        worker.raise_failure()
    except ConsiliumError:
        if any(plan.out.glob(SITE_LOGS)):
            console.print(Text(f"the hospitals' own logs: {plan.out}/{SITE_LOGS}"), soft_wrap=True)
        raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let nothing cut short what ends other processes; signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_on_flower(plan: SimulationPlan, study: Study, folder: Path, stop: threading.Event) -> None:
    """Flower's log is long and its command says little; the reason that counts is in the run's own record."""
    try:
        run_config = _run_config(plan, study, plan.out.resolve())
        run_on_flower(run_config, num_nodes=study.simulation.num_sites, out=plan.out, stop=stop)
    except RunError as error:
        raise RunError(f"{read_header(folder).get('reason', '')} {error}".strip()) from error


def _run_local(plan: SimulationPlan, extra: Mapping[str, Scalar]) -> None:
    study = plan.load(extra)
    has_begun = (plan.out / variant_of(study) / RUN_FILE).exists()
    resume = plan.resume and (has_begun or not extra)
    run_locally(study, {**_run_config(plan, study, plan.out), **extra, "resume": resume}, studies=plan.studies)


def _run_config(plan: SimulationPlan, study: Study, out: Path) -> dict[str, Scalar]:
    start = plan.start if study.simulation.trainers == "all" else {}
    return {"study": plan.study_name, "out": str(out), "resume": plan.resume, **start, **plan.overrides}


class _Worker(threading.Thread):
    """Runs a task beside the display and keeps its failure."""

    def __init__(self, task: Callable[[], None]) -> None:
        super().__init__(name=STUDY_WORKER, daemon=True)
        self._task = task
        self._failure: Exception | None = None

    def run(self) -> None:
        try:
            self._task()
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            self._failure = error

    def raise_failure(self) -> None:
        """Raise what the task raised.

        Raises:
            ConsiliumError: As it was, or a RunError for anything that is not ours.
        """
        self.join()
        if isinstance(self._failure, ConsiliumError):
            raise self._failure
        if self._failure is not None:
            raise RunError(f"the run ended with {type(self._failure).__name__}: {self._failure}") from self._failure
