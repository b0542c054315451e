"""A study tried on one machine: the private run itself, then the runs that it is compared with, then the report."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fl_contract.errors import ConsiliumError, RunError, SettingError
from fl_contract.study import STUDIES, Scalar, Study, load_study
from fl_server.flower_engine import run_on_flower
from fl_server.live import follow_run
from fl_server.local_engine import run_locally
from fl_server.run_record import RUN_FILE, read_header
from fl_server.settings import variant_of

FLOWER_STOP_SECONDS = 30.0
"""For Flower's processes to end after Ctrl-C, which reaches them too."""


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
    """

    study_name: str
    studies: Path
    overrides: Mapping[str, Scalar]
    out: Path
    engine: str
    resume: bool
    with_baselines: bool

    def load(self, extra: Mapping[str, Scalar] | None = None) -> Study:
        """The study, with the overrides and further ones of a comparison."""
        return load_study(self.study_name, directory=self.studies, overrides={**self.overrides, **(extra or {})})


def baselines(study: Study) -> Iterator[tuple[str, dict[str, Scalar]]]:
    """What the study's own run is compared with: a title and the overrides that make it.

    The same apps run all of them. Hospitals alone and pooled data train without differential privacy, since nothing of
    a patient would leave a hospital alone, and pooling is not allowed in the first place.
    """
    open_study: dict[str, Scalar] = {"privacy.mechanism": "none"}
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
    return argument, STUDIES


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
    if plan.engine == "flower" and plan.studies.resolve() != STUDIES.resolve():
        raise SettingError(f"{plan.studies}: Flower takes a study from the bundle only; copy the file into {STUDIES}")
    _check_quorum(study)
    plan.out.mkdir(parents=True, exist_ok=True)
    _run_main(plan, study, console)
    failures: dict[str, str] = {}
    for title, extra in baselines(study) if plan.with_baselines and study.simulation.trainers == "all" else ():
        with console.status(f"For comparison: {title}"):
            try:
                _run_local(plan, extra)
            except ConsiliumError as error:
                failures[title] = str(error)
                console.print(f"[yellow]for comparison: {title}: left out.[/] {error}", highlight=False)
            else:
                console.print(f"for comparison: {title}: done", style="dim", highlight=False)
    return failures


def _check_quorum(study: Study) -> None:
    trainers = study.simulation.num_sites if study.simulation.trainers == "all" else 1
    if study.federation.min_sites > trainers:
        raise SettingError(
            f"federation.min-sites={study.federation.min_sites}; expected at most the {trainers} virtual hospitals "
            f"that train (simulation.num-sites, simulation.trainers)"
        )


def _run_main(plan: SimulationPlan, study: Study, console: Console) -> None:
    folder = plan.out / variant_of(study)
    if plan.engine == "flower":
        worker = _Worker(lambda: _run_on_flower(plan, study, folder))
    else:
        worker = _Worker(lambda: _run_local(plan, {}))
    try:
        follow_run(folder, console, worker.is_alive)
    except KeyboardInterrupt:
        if plan.engine == "flower":
            worker.join(FLOWER_STOP_SECONDS)
        raise
    worker.raise_failure()


def _run_on_flower(plan: SimulationPlan, study: Study, folder: Path) -> None:
    """Flower's log is long and its command says little; the reason that counts is in the run's own record."""
    try:
        run_on_flower(_run_config(plan, plan.out.resolve()), num_nodes=study.simulation.num_sites, out=plan.out)
    except RunError as error:
        raise RunError(f"{read_header(folder).get('reason', '')} {error}".strip()) from error


def _run_local(plan: SimulationPlan, extra: Mapping[str, Scalar]) -> None:
    study = plan.load(extra)
    has_begun = (plan.out / variant_of(study) / RUN_FILE).exists()
    resume = plan.resume and (has_begun or not extra)
    run_locally(study, {**_run_config(plan, plan.out), **extra, "resume": resume}, studies=plan.studies)


def _run_config(plan: SimulationPlan, out: Path) -> dict[str, Scalar]:
    return {"study": plan.study_name, "out": str(out), "resume": plan.resume, **plan.overrides}


class _Worker(threading.Thread):
    """Runs a task beside the display and keeps its failure."""

    def __init__(self, task: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._task = task
        self._failure: Exception | None = None
        self.start()

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
