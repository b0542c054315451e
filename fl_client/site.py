"""A hospital in a run: its settings, its folder, and its own copy of the study."""

import json
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import Context
from torch import nn

from fl_client.data.records import SiteRecords, Source
from fl_client.policy import check_run
from fl_client.record_cache import RecordCache, stamp_of
from fl_client.settings import PolicySettings, SiteSettings, partition, read_site_settings, read_study, site_file
from fl_client.site_files import SITE_FILE
from fl_client.source_settings import SqlSourceSettings
from fl_client.sources import open_source
from fl_client.virtual_source import virtual_source
from fl_contract.errors import RefusalCode, RefusalError, SettingError
from fl_contract.initial_weights import load_initial_weights
from fl_contract.models.own_model import OwnModelSettings
from fl_contract.run_folder import run_folder
from fl_contract.study import Study
from privacy.ledger import Ledger, LedgerTerms

LEDGER_FILE = "ledger.sqlite"
RECEIPT_FILE = Path("receipts") / "ledger.receipt"
HELD_OUT = "held-out"

logger = logging.getLogger("fl_client")

_records = RecordCache()
"""Of all hospitals that this process speaks for."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A hospital in a run.

    Attributes:
        settings: Its own file.
        folder: Its own state: ledger, outbox, logs.
        study: Its own copy, with the run's overrides.
        run: Which run asks; None for none.
        weights: Folder of the files that studies name as ``model.weights``.
    """

    settings: SiteSettings
    folder: Path
    study: Study
    run: str | None = None
    weights: Path = Path("weights")

    @property
    def name(self) -> str:
        """As the federation knows it."""
        return self.settings.name

    def build_model(self) -> nn.Module:
        """The study's model before the first round; what of it is frozen has the weights that every hospital gives it.

        Raises:
            RefusalError: STUDY_MISMATCH: the file of these weights is absent or another one.
        """
        model = self.study.build_model()
        if self.study.model.trainable != "all":
            try:
                load_initial_weights(model, self.study, self.weights)
            except SettingError as error:
                raise RefusalError(RefusalCode.STUDY_MISMATCH, str(error)) from error
        return model

    def load_records(self) -> SiteRecords:
        """Its patients; kept in memory as long as the files stay as they are, a database for one run."""
        source = open_source(self.settings.source, self.folder, self.study.data_schema)

        def load() -> SiteRecords:
            records = source.load()
            for note in records.notes:
                logger.warning(note)
            return records

        place = (str(self.folder), self.settings.source.model_dump_json(), self.study.data_schema.model_dump_json())
        return _records.get(place, lambda: self._stamp(source), load)

    def _stamp(self, source: Source) -> Hashable:
        files = source.files()
        if files is not None:
            return stamp_of(files)
        return self.run if isinstance(self.settings.source, SqlSourceSettings) else None

    def open_ledger(self) -> Ledger:
        """Its privacy ledger, over all studies, for the patients it trains on; to be closed after use."""
        return open_ledger(self.settings, self.folder, cohort=training_cohort(self.settings))

    def open_held_out_ledger(self) -> Ledger:
        """The same ledger, for the patients it measures on; to be closed after use."""
        return open_ledger(self.settings, self.folder, cohort=held_out_cohort(self.settings))


def training_cohort(settings: SiteSettings) -> str:
    """The patients that the hospital trains on, by the name its file gives them."""
    return settings.cohort or settings.name


def held_out_cohort(settings: SiteSettings) -> str:
    """The patients that it measures on: others, so that what is spent on them is no spend of those trained on."""
    return f"{training_cohort(settings)}/{HELD_OUT}"


def open_ledger(settings: SiteSettings, folder: Path, *, cohort: str) -> Ledger:
    """The privacy ledger of a hospital whose ``site.toml`` lies in ``folder``, seen from one cohort."""
    policy = settings.policy
    terms = LedgerTerms(
        site=settings.name,
        cohort=cohort,
        epsilon_budget=policy.epsilon_budget,
        epsilon_per_study=policy.epsilon_per_study,
        delta=policy.delta,
        policy=policy.version,
    )
    return Ledger(folder / LEDGER_FILE, terms, receipt=receipt_path(settings, folder))


def has_ledger(settings: SiteSettings, folder: Path) -> bool:
    """Whether the hospital has ever had one: a ledger that is missing while its receipt is there was lost."""
    return (folder / LEDGER_FILE).exists() or receipt_path(settings, folder).exists()


def receipt_path(settings: SiteSettings, folder: Path) -> Path:
    """Where the ledger's receipt is kept; a relative path starts at the folder of ``site.toml``."""
    return folder / (settings.policy.ledger_receipt or RECEIPT_FILE)


def open_sites(context: Context) -> dict[str, Site]:
    """The hospitals that this node speaks for: one on a SuperNode, any number on a simulated node.

    Raises:
        RefusalError: POLICY: a hospital with a file of its own does not allow the run; its policy is asked first.
            STUDY_MISMATCH: this hospital's own copy does not know the study or an override.
        SettingError: The hospital's own settings break a rule.
    """
    if (path := site_file(context.node_config)) is not None:
        settings = read_site_settings(path)
        check_run(settings, context.run_config)
        weights = path.parent / settings.weights_folder
        study = _own_copy(context)
        return {settings.name: Site(settings=settings, folder=path.parent, study=study, weights=weights)}
    study = _own_copy(context)
    number, count = partition(context.node_config)
    names = study.simulation.site_names
    if study.simulation.trainers == "pooled":
        names = (*names, "pooled")
    folder = run_folder(context.run_config, context.run_id) / "sites"
    weights = Path(str(context.run_config.get("weights-folder") or "weights"))
    return {
        name: replace(_open_virtual_site(name, study, folder / name), weights=weights) for name in names[number::count]
    }


def _own_copy(context: Context) -> Study:
    try:
        return read_study(context.node_config, context.run_config)
    except SettingError as error:
        raise RefusalError(RefusalCode.STUDY_MISMATCH, str(error)) from error


def _open_virtual_site(name: str, study: Study, folder: Path) -> Site:
    path, planned = folder / SITE_FILE, _virtual_settings(name, study)
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        num_train = len(Site(settings=planned, folder=folder, study=study).load_records().train)
        written = planned.model_copy(update={"declared_examples": _round_to_ten(num_train)})
        path.write_text(_site_toml(written), encoding="utf-8")
    settings = read_site_settings(path)
    if settings != planned.model_copy(update={"declared_examples": settings.declared_examples}):
        raise SettingError(f"{path}: holds the settings of another simulation; choose another --out")
    if not study.is_private:  # a run for comparison, which would never happen: no budget is spent on measuring it
        settings = settings.model_copy(update={"policy": settings.policy.model_copy(update={"measurements": "exact"})})
    return Site(settings=settings, folder=folder, study=study)


def _virtual_settings(name: str, study: Study) -> SiteSettings:
    """Settings of a virtual hospital whose records were not counted yet."""
    simulation = study.simulation
    policy = {
        "epsilon-budget": simulation.epsilon_budget,
        "delta": study.privacy.delta,
        "epsilon-per-study": simulation.epsilon_budget,
        "minimum-noise-multiplier": 0.0,
        "unit": "record",
        "require-privacy": simulation.require_privacy,
        "statistics": "exact",
        "allow-one-class": simulation.has_hospitals,
        "min-examples": 1 if simulation.has_hospitals else 10,
        "measurements": simulation.measurements,
        "python-models": [study.model.path] if isinstance(study.model, OwnModelSettings) else [],
    }
    return SiteSettings.model_construct(
        name=name,
        cohort=name,
        declared_examples=_round_to_ten(0),
        source=virtual_source(name, study),
        policy=PolicySettings.parse(policy, origin=name),
    )


def _round_to_ten(number: int) -> int:
    return max(10, 10 * round(number / 10))


def _site_toml(settings: SiteSettings) -> str:
    tables: dict[str, Any] = settings.model_dump(mode="json", by_alias=True, exclude_none=True)
    lines = ["# A virtual hospital, written by the simulation from the study's [simulation] table."]
    lines += _toml_lines({key: value for key, value in tables.items() if not isinstance(value, dict)})
    for name in ("source", "policy"):
        lines += ["", f"[{name}]", *_toml_lines(tables[name])]
    return "\n".join(lines) + "\n"


def _toml_lines(table: dict[str, Any]) -> Sequence[str]:
    """Texts, numbers, truth values and lists of numbers are written in JSON as in TOML."""
    return [f"{key} = {json.dumps(value)}" for key, value in table.items()]
