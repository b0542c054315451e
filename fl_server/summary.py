"""The only place that reads a run folder: what its files hold, and the figures that follow from them.

A run folder OUT holds one folder a variant (``private``, ``federated``, ``pooled``, ``local-<site>``) with
``run.json``, ``rounds.jsonl`` and, once the run is over, ``evaluation.json``. Any subset of the variants may be there.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fl_contract.errors import RunError
from fl_contract.metrics import measurement_from_json, merge_measurements
from fl_contract.metrics.measurement import Measurement
from fl_server.figures import Figures, compare_figures, finite_or_none
from fl_server.run_lock import is_run_live
from fl_server.run_record import ROUNDS_FILE, RUN_FILE, write_atomically

KINDS = ("local", "federated", "private", "pooled")
"""Ways to train that a report compares; ``local`` stands for the models of all ``local-<site>`` folders."""

STOPPED = "No process runs it any more: it was stopped, and --resume goes on with it."
"""The reason of a run that is still recorded as running, after its process ended."""

_LOCAL = "local-"
_split = re.compile(r"(\d+)").split


class _Record(BaseModel):
    """A part of a file that `fl_server.run_record` wrote; keys of a later version are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Absence(_Record):
    """Why a hospital did not take part: a code and the sentence that goes with it."""

    code: str
    reason: str


class Declared(_Record):
    """What a hospital said before round 1: its training records, the noise of its plan, perhaps its machine."""

    num_examples: int
    noise_multiplier: float | None = None
    num_cores: int | None = None


class PrivacyTerms(_Record):
    """The study's privacy settings as the run recorded them; see `fl_contract.study_tables.PrivacySettings`."""

    mechanism: Literal["dp-sgd", "none"]
    unit: str
    epsilon: float
    delta: float
    clip_norm: float = Field(alias="clip-norm")
    sampling_rate: float = Field(alias="sampling-rate")
    steps_per_round: int = Field(alias="steps-per-round")


class BestRound(_Record):
    """The round with the lowest pooled held-out loss; see `fl_server.best_round`."""

    round: int
    loss: float


class Origin(_Record):
    """Which earlier model a run started from; see `fl_server.starting_point`."""

    kind: Literal["warm-start", "continue-from"]
    file: str
    sha256: str
    run: str | None
    study: str | None


class Run(_Record):
    """``run.json``: one variant's run as a whole; ``num_rounds`` is what was planned.

    A run that says ``running`` while no process runs it is read as ``stopped``.
    """

    study: str
    title: str
    run: str
    engine: str
    status: Literal["running", "stopped", "completed", "converged", "failed"]
    reason: str
    started: datetime
    finished: datetime | None
    seconds: float
    seed: int
    num_rounds: int
    num_parameters: int
    clipping: str | None = None
    averaged_from_round: int | None = None
    personal: bool = False
    starts_from: Origin | None = None
    best_round: BestRound | None = None
    versions: dict[str, str]
    sites: dict[str, Declared]
    refused: dict[str, Absence]
    settings: dict[str, Any]

    @property
    def privacy(self) -> PrivacyTerms:
        """The terms in ``settings.privacy``; pydantic's ``ValidationError`` where a term is missing."""
        return PrivacyTerms.model_validate(self.settings.get("privacy"))


class SiteRound(_Record):
    """One hospital in one round: no ``num_examples`` if it did not train; epsilon and delta as spent up to here.

    ``noise_scale`` and ``measured_epsilon`` are those of a measurement that was sent with noise. ``staleness`` counts
    the rounds since the one whose model it trained from, where a reply may be late.
    """

    num_examples: int | None
    test_examples: int | None
    loss: float | None
    figures: dict[str, float | None]
    bytes_down: int
    bytes_up: int
    seconds: float
    epsilon: float | None
    delta: float | None
    steps: int | None
    noise_scale: float | None = None
    measured_epsilon: float | None = None
    staleness: int | None = None


class PooledRound(_Record):
    """The round's model on all reporting hospitals' held-out patients together."""

    loss: float | None
    figures: dict[str, float | None]


class CentralSpend(_Record):
    """What hospital-level privacy had spent after a round; see `strategies.central_privacy.CentralSpend`."""

    unit: str
    neighbouring: str
    accountant: str
    epsilon: float
    delta: float
    rounds: int
    noise_multiplier: float


class Round(_Record):
    """A line of ``rounds.jsonl``; ``central`` is None without hospital-level privacy."""

    round: int
    seconds: float
    sites: dict[str, SiteRound]
    pooled: PooledRound | None
    missing: dict[str, Absence]
    central: CentralSpend | None = None


_EVALUATIONS = TypeAdapter(dict[str, dict[str, Any]])


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One variant's folder.

    Attributes:
        run: The run as a whole.
        rounds: Finished rounds in the order of the file.
        evaluations: The final model on each hospital's held-out patients; empty if the run failed or is not over.
    """

    run: Run
    rounds: tuple[Round, ...]
    evaluations: Mapping[str, Measurement]

    @property
    def is_private(self) -> bool:
        """Whether it trained with differential privacy."""
        return self.run.privacy.mechanism != "none"

    @property
    def central_spend(self) -> CentralSpend | None:
        """What hospital-level privacy has spent in the end; None without it."""
        return self.rounds[-1].central if self.rounds else None


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted so that numbers inside them count as numbers.

    >>> natural_order(["hospital-10", "hospital-2"])
    ['hospital-2', 'hospital-10']
    """
    return sorted(set(names), key=lambda name: [part.zfill(20) if part.isdigit() else part for part in _split(name)])


def write_evaluations(path: Path, evaluations: Mapping[str, Measurement]) -> Path:
    """Write ``evaluation.json``: the final model on each hospital's held-out patients."""
    write_atomically(path, json.dumps({site: evaluation.to_json() for site, evaluation in evaluations.items()}))
    return path


def read_evaluations(path: Path) -> dict[str, Measurement]:
    """Read what `write_evaluations` wrote.

    Raises:
        RunError: The file is absent, not JSON, or breaks the format.
    """
    try:
        fields = _EVALUATIONS.validate_json(path.read_bytes())
        return {site: measurement_from_json(part) for site, part in fields.items()}
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def read_variants(out: Path) -> dict[str, Variant]:
    """Read every variant's folder by its name.

    A last line of ``rounds.jsonl`` without its line end was cut off while it was written and does not count.

    Raises:
        RunError: There is no variant, or a file breaks its format.
    """
    known = re.compile(rf"private|federated|pooled|{_LOCAL}.+")
    names = natural_order(path.parent.name for path in out.glob(f"*/{RUN_FILE}"))
    variants = {name: _read_variant(out / name) for name in names if known.fullmatch(name)}
    if not variants:
        raise RunError(f"{out}: no run found; expected a folder such as private/ with a run.json")
    return variants


def read_round_lines(folder: Path) -> list[str]:
    """The lines of ``rounds.jsonl`` that are complete; one that is being written, or was cut off, is left out."""
    path = folder / ROUNDS_FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def _read_variant(folder: Path) -> Variant:
    path = folder / RUN_FILE
    try:
        run = Run.model_validate_json(path.read_bytes())
        _ = run.privacy
        if run.status == "running" and not is_run_live(folder):
            run = run.model_copy(update={"status": "stopped", "reason": STOPPED})
        path = folder / ROUNDS_FILE
        rounds = tuple(Round.model_validate_json(line) for line in read_round_lines(folder))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    measured = folder / "evaluation.json"
    is_measured = run.status != "failed" and measured.exists()
    return Variant(run=run, rounds=rounds, evaluations=read_evaluations(measured) if is_measured else {})


def _damaged(path: Path, error: Exception) -> RunError:
    rule = str(error)
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        rule = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return RunError(f"{path} cannot be read; {rule}")


def main_variant(variants: Mapping[str, Variant]) -> Variant:
    """What the report is about: ``private`` if it is there, else ``federated``, else any."""
    return variants.get("private") or variants.get("federated") or next(iter(variants.values()))


def local_sites(variants: Mapping[str, Variant]) -> dict[str, Variant]:
    """Variants that one hospital trained alone, by that hospital."""
    return {name.removeprefix(_LOCAL): variant for name, variant in variants.items() if name.startswith(_LOCAL)}


def last_spend(variants: Mapping[str, Variant]) -> dict[str, SiteRound]:
    """Each hospital's last report of what it spent; a run that failed has spent it too. Empty without privacy."""
    private = variants.get("private")
    if private is None or not private.is_private:
        return {}
    spend = {
        site: report for each in private.rounds for site, report in each.sites.items() if report.epsilon is not None
    }
    return {site: spend[site] for site in natural_order(spend)}


def summarise(out: Path) -> Figures:
    """The figures of a run folder; see `summarise_variants`."""
    return summarise_variants(read_variants(out))


def summarise_variants(variants: Mapping[str, Variant]) -> Figures:
    """Compare the variants, and say what was spent.

    A figure that is not defined, such as the AUROC of patients of one class, is None, and so is an interval that the
    patients say nothing about. Intervals are of 95 %, see `fl_server.figures.compare_figures`. For ``local``, a site's
    figure is that of its own model on its own patients; ``pooled`` is the mean over local models of their figure on all
    hospitals' patients together. A variant that failed or is not there is left out.
    """
    main = main_variant(variants)
    has_federation = "private" in variants or "federated" in variants
    spend = last_spend(variants)
    figures = {kind: _figures_of_kind(kind, variants) for kind in KINDS}
    return {
        "study": main.run.study,
        "personal": main.run.personal,
        "measure": next((next(iter(figure)) for figure in figures.values() if figure), "auroc"),
        "rounds": len({each.round for each in main.rounds}) if has_federation else 0,
        "seconds": sum(variant.run.seconds for variant in variants.values()),
        "best_round": main.run.best_round.model_dump() if main.run.best_round else None,
        "variants": {kind: figure for kind, figure in figures.items() if figure is not None},
        "epsilon": {site: finite_or_none(report.epsilon) for site, report in spend.items()},
        "delta": {site: finite_or_none(report.delta) for site, report in spend.items()},
    }


def write_summary(out: Path) -> Path:
    """Write `summarise` to OUT/summary.json."""
    path = out / "summary.json"
    write_atomically(path, json.dumps(summarise(out), indent=2, allow_nan=False) + "\n")
    return path


def _figures_of_kind(kind: str, variants: Mapping[str, Variant]) -> Figures | None:
    if kind == "local":
        alone = {site: variant for site, variant in local_sites(variants).items() if variant.evaluations}
        own = {site: variant.evaluations[site] for site, variant in alone.items() if site in variant.evaluations}
        together = [merge_measurements(variant.evaluations.values()) for variant in alone.values()]
    else:
        own = dict(variants[kind].evaluations) if kind in variants else {}
        together = [merge_measurements(own.values())] if own else []
    return compare_figures(together, {site: own[site] for site in natural_order(own)}) if together else None


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run folder's files and what follows from them.

    Attributes:
        variants: By folder name.
        main: The variant that the report is about.
        numbers: As in ``summary.json``.
        sites: Hospitals in the order of every table and plot.
        together: By kind, the final model on all held-out patients; without ``local``, which has no single model.
        own: By hospital, the evaluation on its held-out patients of whichever variant measured it, the main one first.
    """

    variants: Mapping[str, Variant]
    main: Variant
    numbers: Figures
    sites: Sequence[str]
    together: Mapping[str, Measurement]
    own: Mapping[str, Measurement]

    @classmethod
    def read(cls, out: Path) -> Self:
        """Read a folder; `RunError` if it holds no run or a damaged file."""
        variants = read_variants(out)
        main = main_variant(variants)
        alone = local_sites(variants)
        measured = [main, *(variants[kind] for kind in ("federated", "pooled") if kind in variants), *alone.values()]
        own = {site: part for variant in reversed(measured) for site, part in variant.evaluations.items()}
        in_rounds = (site for each in main.rounds for site in (*each.sites, *each.missing))
        return cls(
            variants=variants,
            main=main,
            numbers=summarise_variants(variants),
            sites=natural_order([*main.run.sites, *main.run.refused, *main.evaluations, *alone, *in_rounds]),
            together={
                kind: merge_measurements(variants[kind].evaluations.values())
                for kind in ("private", "federated", "pooled")
                if kind in variants and variants[kind].evaluations
            },
            own=own,
        )

    @property
    def labels(self) -> dict[str, str]:
        """What each kind is called; ``private`` only claims privacy if it had some."""
        private = self.variants.get("private")
        has_privacy = private is None or private.is_private
        federated = self.variants.get("federated")
        protects_hospitals = federated is not None and federated.central_spend is not None
        labels = {
            "local": "Alone",
            "private": "Together, with privacy" if has_privacy else "Together (study has no privacy)",
            "federated": "Together, hospitals protected" if protects_hospitals else "Together, without privacy",
            "pooled": "All data in one place",
        }
        personal = {kind for kind, variant in self.variants.items() if variant.run.personal}
        return {kind: f"{label}, personal models" if kind in personal else label for kind, label in labels.items()}

    @property
    def joint(self) -> str | None:
        """The kind that stands for joining: ``private`` if it was measured, else ``federated``."""
        return next((kind for kind in ("private", "federated") if kind in self.together), None)

    @property
    def main_kind(self) -> str:
        """The kind of the main variant."""
        return next((kind for kind in ("private", "federated", "pooled") if kind in self.variants), "local")

    @property
    def measure(self) -> str:
        """What models are compared by, a key of `fl_contract.metrics.MEASURES`."""
        return str(self.numbers["measure"])

    def figure(self, kind: str | None, site: str | None = None) -> float | None:
        """A figure of the summary; of all patients together without a site. None where there is none."""
        figures = self.numbers["variants"].get(kind, {}).get(self.measure, {"pooled": None, "sites": {}})
        value: float | None = figures["pooled"] if site is None else figures["sites"].get(site)
        return value

    def interval(self, kind: str | None) -> tuple[float, float] | None:
        """95 % interval of the figure of all patients together; None where it is not known."""
        found = self.numbers["variants"].get(kind, {}).get(self.measure, {}).get("interval")
        return None if found is None else (found[0], found[1])

    def change(self, site: str | None = None) -> float | None:
        """The measure together minus the measure alone."""
        return subtract(self.figure(self.joint, site), self.figure("local", site))


def subtract(left: float | None, right: float | None) -> float | None:
    """The difference of two figures; None where one is not defined."""
    return None if left is None or right is None else left - right
