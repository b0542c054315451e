"""A study: what everybody agreed to. The only place where ``studies/<name>.toml`` becomes one frozen object.

The file travels in the bundle, so that a hospital can read it and approve it. A run may override single numbers, texts
and truth values; both sides apply the overrides to their own copy of the file and compare fingerprints.
"""

import hashlib
import inspect
import json
import math
import re
import tomllib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from fl_contract.codecs import CommunicationSettings, NoCodecSettings
from fl_contract.errors import SettingError
from fl_contract.models import ModelSettings, build_model
from fl_contract.models.architecture import ROW_TASKS
from fl_contract.models.encode import OneHot
from fl_contract.models.ensemble import Ensemble
from fl_contract.models.own_model import OwnModelSettings
from fl_contract.models.standardise import Standardise
from fl_contract.private_defaults import fill_private_defaults
from fl_contract.schema import Schema
from fl_contract.settings import Settings, read_toml, scalar_keys, suggest_key
from fl_contract.strategy_settings import FedBuffSettings, StrategySettings
from fl_contract.tasks import task_of
from fl_contract.tasks.task import Task

STUDIES = Path(__file__).resolve().parent.parent / "studies"
"""The folder of studies that ships beside our packages, in a checkout and in a bundle."""

STANDARDISE = "standardise"
"""Name in the model of the layer that holds statistics of all hospitals."""

Scalar = str | int | float | bool

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


_looked_at: set[str] = set()
"""Fingerprints of personalised studies whose model has what stays; a hospital reads its study for every request."""

LINEAR = ("fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi", "fedadagrad")
"""Algorithms that need no more of a round than the weighted mean of all hospitals."""

BALANCED = ("fedavg", "fedprox", "fednova")
"""Algorithms whose mean can count each hospital's update by step, so that hospitals may take different numbers."""

LEAST_SHARE_OF_STEPS = 4
"""A balanced round takes at least a whole round's steps divided by this."""

UNUSABLE_OPTIMIZERS = {
    "LBFGS": "it evaluates the loss several times a step, which neither mini-batches nor DP-SGD allow",
    "Muon": "it trains matrices only, and every model here has biases",
    "SparseAdam": "it takes sparse gradients only, which our models do not give",
}
"""Classes of ``torch.optim`` that cannot run a study's steps, and why."""


class TrainingSettings(Settings):
    """Local training at a hospital, without privacy unless said otherwise.

    Attributes:
        optimizer: A class of ``torch.optim`` by its name, such as ``SGD`` or ``Adam``. Under differential privacy too.
        learning_rate: Of that optimiser.
        private_learning_rate: Of that optimiser's noisy steps. A clipped gradient is at most ``privacy.clip-norm``
            long, so the two together set the length of a step. If it is not set, `fl_contract.private_defaults` says
            it for plain SGD; for another optimiser it is ``learning-rate``.
        optimizer_options: Further arguments of that class, such as ``momentum``.
        batch_size: Patients a step. Under differential privacy the sampling rate says it instead.
        local_epochs: Passes over a hospital's patients in a round. Under differential privacy the steps say it instead.
        local_steps: Steps in a round instead of ``local_epochs``, the same at a small hospital as at a large one.
    """

    optimizer: str = "SGD"
    learning_rate: float = Field(gt=0)
    private_learning_rate: float | None = Field(default=None, gt=0)
    optimizer_options: dict[str, int | float | bool] = Field(default_factory=dict)
    batch_size: int = Field(default=32, ge=1)
    local_epochs: int = Field(default=1, ge=1)
    local_steps: int | None = Field(default=None, ge=1, le=100_000)

    def steps_for(self, num_examples: float) -> int:
        """Local steps of a round with so many records, without privacy."""
        return self.local_steps or self.local_epochs * math.ceil(num_examples / self.batch_size)

    def least_steps_for(self, num_examples: float) -> int:
        """Fewest steps that a coordinator may ask of a hospital with so many records, a quarter of the study's own."""
        return -(-self.steps_for(num_examples) // LEAST_SHARE_OF_STEPS)

    @model_validator(mode="after")
    def _check_optimizer(self) -> Self:
        optimizer = getattr(torch.optim, self.optimizer, None)
        is_class = inspect.isclass(optimizer) and issubclass(optimizer, torch.optim.Optimizer)
        if optimizer is None or optimizer is torch.optim.Optimizer or not is_class:
            raise ValueError(
                f"optimizer={self.optimizer!r}; expected the name of a class of torch.optim, such as 'SGD'"
            )
        if reason := UNUSABLE_OPTIMIZERS.get(self.optimizer):
            raise ValueError(f"optimizer={self.optimizer!r}; {reason}; choose another, such as 'SGD' or 'Adam'")
        known = set(inspect.signature(optimizer).parameters) - {"params", "lr"}
        if unknown := sorted(set(self.optimizer_options) - known):
            raise ValueError(f"optimizer-options={unknown}; {self.optimizer} knows {sorted(known)}")
        return self


class FederationSettings(Settings):
    """Who takes part in a round.

    Attributes:
        min_sites: Hospitals whose replies a round needs (the quorum).
        fraction_sites: Share of the hospitals that is asked in a round, in (0, 1]; never fewer than ``min_sites``.
        max_update_norm: Largest accepted L2 norm of a hospital's update over all trained arrays, in weight units; a
            larger one is left out. No bound if it is not set.
        round_timeout_seconds: Deadline for the replies of a round.
        late_replies: Replies after the deadline are dropped (``drop``), or go into the round in which they arrive, as
            updates of the model that they were trained from (``fold``).
        set_aside_after: Rounds in a row without a usable reply after which a hospital is not asked for a while.
        regions: Region by hospital, of every hospital that trains.
        min_per_region: Hospitals of each region that are asked in a round at least; 0 without regions.
        balance: Ask slower hospitals for fewer local steps, so that a round's hospitals finish together. How long they
            took is then part of what a run depends on.
        measure_every: Rounds from one measurement on held-out patients to the next; the last round is always measured.
            Fewer measurements get less noise each where a hospital sends them with noise.
    """

    min_sites: int = Field(ge=1)
    fraction_sites: float = Field(default=1.0, gt=0, le=1)
    max_update_norm: float | None = Field(default=None, gt=0)
    round_timeout_seconds: float = Field(default=3600.0, gt=0)
    late_replies: Literal["drop", "fold"] = "drop"
    set_aside_after: int = Field(default=3, ge=1)
    regions: dict[str, str] = Field(default_factory=dict)
    min_per_region: int = Field(default=0, ge=0)
    balance: bool = False
    measure_every: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check_regions(self) -> Self:
        if bool(self.regions) != bool(self.min_per_region):
            raise ValueError(
                f"min-per-region={self.min_per_region} with {len(self.regions)} entries in federation.regions; "
                "they go together"
            )
        return self


class StoppingSettings(Settings):
    """When a run has converged.

    Attributes:
        patience: Rounds without a better pooled held-out loss after which the run stops; 0 never stops early.
        min_improvement: A loss is better when it is lower by more than this, in nats.
        min_relative_step: The run stops too when each of the last ``small_steps`` rounds moved the trained numbers by
            at most this share of their own L2 norm; 0 never stops by it. Noise keeps a private run's steps large.
        small_steps: Rounds in a row.
    """

    patience: int = Field(default=0, ge=0)
    min_improvement: float = Field(default=0.0, ge=0)
    min_relative_step: float = Field(default=0.0, ge=0)
    small_steps: int = Field(default=3, ge=1)


class PrivacySettings(Settings):
    """What the study proposes for privacy; each hospital's own policy and budget decide.

    A study need only set epsilon and delta: `fl_contract.private_defaults` fills in the three last settings.

    Attributes:
        mechanism: ``dp-sgd``, or ``none`` for a study without differential privacy.
        unit: What epsilon protects as a whole: a ``patient`` with all records, or a ``record``, one row or image. A
            hospital whose source does not say whose a record is cannot take part in a study by patient.
        epsilon: Target for all planned rounds together, add-or-remove-one; at least 0.02, which accountants resolve.
        delta: Of the same guarantee; at least 1e-10 and below 1 / patients.
        clip_norm: Bound on a record's gradient, in weight units per learning rate; 1e-6 to 1e6.
        sampling_rate: Chance of a record to be in a step's batch, in [1e-4, 1].
        steps_per_round: Noisy steps in a round; at most 100,000 in a run.
        measurement_epsilon: Target for all measurements together, where a hospital sends them with noise. It counts for
            held-out patients, whom training never touches; at least 0.02.
    """

    mechanism: Literal["dp-sgd", "none"]
    unit: Literal["patient", "record"] = "patient"
    epsilon: float = Field(ge=0.02)
    delta: float = Field(ge=1e-10, lt=1)
    clip_norm: float = Field(ge=1e-6, le=1e6)
    sampling_rate: float = Field(ge=1e-4, le=1)
    steps_per_round: int = Field(ge=1, le=100_000)
    measurement_epsilon: float = Field(default=2.0, ge=0.02)


class CentralPrivacySettings(Settings):
    """Differential privacy for whole hospitals, added by the coordinator; none if a study has no such table.

    It hides what one hospital contributed from everybody who sees the models, but not from the coordinator.

    Attributes:
        mechanism: ``discrete-gaussian``, or ``none`` to switch the table off, as a simulation's comparisons do.
        epsilon: Target for all rounds together, against the same run with one hospital's updates replaced by zeros.
        delta: Of the same guarantee; well below 1 / hospitals.
        clip_norm: Bound on a hospital's update of a round over all trained arrays, in weight units; 1e-6 to 1e6.
    """

    mechanism: Literal["discrete-gaussian", "none"] = "discrete-gaussian"
    epsilon: float = Field(ge=0.02)
    delta: float = Field(ge=1e-10, lt=1)
    clip_norm: float = Field(ge=1e-6, le=1e6)


NUM_HOSPITALS = {"heart-disease": 4, "tcga-brca": 6}
"""Of the public data sets whose patients already are of different hospitals."""


class SimulationSettings(Settings):
    """Virtual hospitals, for trying a study on one machine. A real hospital ignores this table.

    Attributes:
        dataset: Data that are split over the hospitals: built in, or ``mnist`` and ``breastmnist`` from files on this
            machine. A study without them runs at real hospitals only.
        data: Folder that holds the files of ``mnist`` or ``breastmnist``; relative to the working directory.
        num_sites: Virtual hospitals.
        alpha: Concentration of the Dirichlet split by class; smaller means more unequal sizes and prevalences.
        test_fraction: Share of each hospital's patients that is held out, of data that do not say which are.
        trainers: ``all`` hospitals, the name of one, or ``pooled``: one site that holds every hospital's patients.
        epsilon_budget: Each virtual hospital's own budget over its whole life.
        require_privacy: Each virtual hospital refuses a study without differential privacy.
        measurements: How each virtual hospital sends measurements of held-out patients in a private run: ``noised``,
            ``exact`` or ``none``; without privacy they are exact. A real hospital's own policy says it.
    """

    dataset: (
        Literal["breast-cancer", "diabetes", "digits", "mnist", "breastmnist", "heart-disease", "tcga-brca"] | None
    ) = None
    data: str = ""
    num_sites: int = Field(ge=1, le=1000)
    alpha: float = Field(gt=0)
    test_fraction: float = Field(gt=0, lt=1)
    trainers: str = "all"
    epsilon_budget: float = Field(ge=0)
    require_privacy: bool = False
    measurements: Literal["noised", "exact", "none"] = "noised"

    @property
    def needs_files(self) -> bool:
        """Whether the data are in files on this machine, which say what is held out."""
        return self.dataset in ("mnist", "breastmnist", *NUM_HOSPITALS)

    @property
    def has_hospitals(self) -> bool:
        """Whether the data's own hospitals take part, instead of a split of one."""
        return self.dataset in NUM_HOSPITALS

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the virtual hospitals."""
        return tuple(f"hospital-{number}" for number in range(1, self.num_sites + 1))

    @model_validator(mode="after")
    def _check_trainers(self) -> Self:
        if self.dataset in NUM_HOSPITALS and self.num_sites != NUM_HOSPITALS[self.dataset]:
            raise ValueError(
                f"num-sites={self.num_sites}; expected {NUM_HOSPITALS[self.dataset]}, the hospitals of {self.dataset}"
            )
        if self.trainers not in ("all", "pooled", *self.site_names):
            raise ValueError(f"trainers={self.trainers!r}; expected 'all', 'pooled' or one of {self.site_names}")
        return self


class Study(Settings):
    """What everybody agreed to. See each table's own type for its keys."""

    name: str
    title: str
    num_rounds: int = Field(ge=1)
    seed: int = Field(ge=0, lt=2**32)
    data_schema: Schema = Field(alias="schema")
    model: ModelSettings
    training: TrainingSettings
    strategy: StrategySettings
    federation: FederationSettings
    stopping: StoppingSettings
    privacy: PrivacySettings
    central_privacy: CentralPrivacySettings | None = None
    communication: CommunicationSettings = Field(default_factory=NoCodecSettings)
    simulation: SimulationSettings

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        if isinstance(strategy := raw.get("strategy"), Mapping):
            raw = {**raw, "strategy": {"name": "fedavg", **strategy}}
        return fill_private_defaults(raw)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("expected lower-case letters, digits and hyphens, at most 64")
        return name

    @model_validator(mode="after")
    def _check_model_fits(self) -> Self:
        self.model.check_schema(self.data_schema)
        if self.is_private and self.model.NOT_PRIVATE:
            raise ValueError(
                f"privacy.mechanism='dp-sgd' with model.kind={self.model.kind!r}; {self.model.NOT_PRIVATE}; or set "
                "privacy.mechanism = 'none'"
            )
        if self.is_private and (self.needs_statistics or self.data_schema.needs_own_statistics):
            raise ValueError(
                "privacy.mechanism='dp-sgd' with a schema that scales or fills in by statistics of patients; these "
                "statistics have no noise; scale by ranges ('linear', 'log') and refuse gaps, or set "
                "privacy.mechanism = 'none'"
            )
        self._check_local_steps()
        if self.is_private and (reason := self.task.NOT_PRIVATE):
            raise ValueError(
                f"privacy.mechanism='dp-sgd' with schema.task={self.data_schema.task!r}; {reason}; "
                "set privacy.mechanism = 'none'"
            )
        return self

    @model_validator(mode="after")
    def _check_personal(self) -> Self:
        name = self.strategy.name
        if self.is_private and self.strategy.NOISELESS:
            raise ValueError(
                f"strategy.name={name!r} with privacy.mechanism='dp-sgd'; each hospital's own model would be trained "
                "without noise, and its measurements leave; choose 'fedbn', 'fedper' or 'fedrep', whose own parts are "
                "trained by the noisy steps, or set privacy.mechanism = 'none'"
            )
        steps = self.privacy.steps_per_round if self.is_private else self.training.local_steps
        if self.strategy.TAKES_TURNS and steps == 1:
            raise ValueError(f"strategy.name={name!r} and one local step a round; expected 2 or more, to take turns")
        is_path = isinstance(self.model, OwnModelSettings)  # which is not imported unasked
        if self.strategy.PERSONAL and not is_path and self.fingerprint not in _looked_at:
            with torch.device("meta"):
                self.strategy.kept_names(self.build_model())
            _looked_at.add(self.fingerprint)
        return self

    def _check_local_steps(self) -> None:
        name, training = self.strategy.name, self.training
        if self.strategy.PLAIN_SGD and (
            training.optimizer != "SGD" or set(training.optimizer_options) - {"weight_decay"}
        ):
            raise ValueError(
                f"strategy.name={name!r}; its formula needs training.optimizer = 'SGD' without options but weight_decay"
            )
        if self.strategy.FULL_BATCH:
            self._check_full_batch()
        if self.strategy.IS_ENSEMBLE:
            self._check_ensemble()
        if self.strategy.SENDS_LOSS and self.is_private:
            raise ValueError(
                f"strategy.name={name!r} with privacy.mechanism='dp-sgd'; hospitals would send their exact training "
                "loss; choose another algorithm, or set privacy.mechanism = 'none'"
            )
        if self.strategy.FIXED_STEPS and not self.is_private and training.local_steps is None:
            raise ValueError(f"strategy.name={name!r}; its formula needs training.local-steps, alike at every hospital")
        if self.protects_hospitals and name not in LINEAR:
            raise ValueError(
                f"strategy.name={name!r} with central-privacy, which hands on one noised mean of all hospitals; "
                f"expected one of {list(LINEAR)}"
            )

    def _check_ensemble(self) -> None:
        name, task = self.strategy.name, self.data_schema.task
        if self.num_rounds != 1:
            raise ValueError(
                f"num-rounds={self.num_rounds}; expected 1 for strategy.name={name!r}, whose hospitals train once; set "
                "training.local-epochs instead"
            )
        if task not in ROW_TASKS:
            raise ValueError(
                f"strategy.name={name!r} with schema.task={task!r}; predictions are averaged for {sorted(ROW_TASKS)}"
            )

    def _check_full_batch(self) -> None:
        """One gradient a round: nothing may ask for several steps, or change what a gradient is."""
        name, training = self.strategy.name, self.training
        if training.optimizer_options:
            raise ValueError(
                f"strategy.name={name!r}; hospitals send gradients and take no step; expected no "
                f"training.optimizer-options, found {sorted(training.optimizer_options)}"
            )
        if self.is_private and self.privacy.steps_per_round != 1:
            raise ValueError(
                f"privacy.steps-per-round={self.privacy.steps_per_round}; expected 1 for strategy.name={name!r}, whose "
                "hospitals send one gradient a round"
            )
        if training.local_epochs != 1 or training.local_steps not in (None, 1):
            raise ValueError(
                f"training.local-epochs={training.local_epochs}, local-steps={training.local_steps}; expected neither "
                f"for strategy.name={name!r}, whose hospitals send one gradient a round"
            )

    @property
    def local_rate(self) -> float:
        """Learning rate of a hospital's steps."""
        training = self.training
        return (self.is_private and training.private_learning_rate) or training.learning_rate

    @model_validator(mode="after")
    def _check_what_travels(self) -> Self:
        name = self.strategy.name
        if self.model.trainable != "all" and (self.strategy.PERSONAL or self.strategy.IS_ENSEMBLE):
            raise ValueError(
                f"model.trainable={self.model.trainable!r} with strategy.name={name!r}, which says itself what of the "
                "model stays where; expected 'all'"
            )
        if self.communication.codec != "none" and self.strategy.FULL_BATCH:
            raise ValueError(
                f"communication.codec={self.communication.codec!r} with strategy.name={name!r}, whose hospitals send "
                "gradients; codecs are for updates; expected 'none'"
            )
        return self

    @model_validator(mode="after")
    def _check_participation(self) -> Self:
        name, federation = self.strategy.name, self.federation
        if federation.late_replies == "fold" and name not in LINEAR:
            raise ValueError(
                f"federation.late-replies='fold' with strategy.name={name!r}, which needs more of a round than the "
                f"mean of updates; expected one of {list(LINEAR)}, or late-replies = 'drop'"
            )
        if federation.regions and name == "cyclic":
            raise ValueError(
                "federation.min-per-region with strategy.name='cyclic', which asks one hospital a round; leave it out"
            )
        if federation.balance:
            self._check_balance()
        return self

    def _check_balance(self) -> None:
        training, name = self.training, self.strategy.name
        if name not in BALANCED:
            raise ValueError(f"federation.balance with strategy.name={name!r}; expected one of {list(BALANCED)}")
        if self.is_private:
            raise ValueError(
                "federation.balance with privacy.mechanism='dp-sgd', whose plan fixes the steps; leave it out"
            )
        if self.protects_hospitals:
            raise ValueError(
                "federation.balance with central-privacy, which hands on no hospital's steps; leave it out"
            )
        if training.optimizer != "SGD" or set(training.optimizer_options) - {"weight_decay"}:
            raise ValueError(
                "federation.balance counts updates by step (Wang 2020), which needs training.optimizer = 'SGD' without "
                "options but weight_decay"
            )

    @property
    def local_path(self) -> float:
        """Summed learning rates of a hospital's steps in a round, where all take the same number."""
        steps = self.privacy.steps_per_round if self.is_private else (self.training.local_steps or 0)
        return steps * self.local_rate

    @model_validator(mode="after")
    def _check_every_site_is_asked(self) -> Self:
        if self.protects_hospitals and self.federation.fraction_sites != 1:
            raise ValueError(
                f"federation.fraction-sites={self.federation.fraction_sites}; expected 1 with central-privacy, "
                "which asks every hospital in every round"
            )
        return self

    @model_validator(mode="after")
    def _check_buffer(self) -> Self:
        settings, federation = self.strategy, self.federation
        if not isinstance(settings, FedBuffSettings):
            return self
        if federation.fraction_sites != 1:
            raise ValueError(
                f"federation.fraction-sites={federation.fraction_sites}; expected 1 with strategy.name='fedbuff', "
                "which keeps every hospital busy"
            )
        if settings.buffer_size is not None and settings.buffer_size < federation.min_sites:
            raise ValueError(
                f"strategy.buffer-size={settings.buffer_size}; expected at least the quorum, "
                f"federation.min-sites={federation.min_sites}"
            )
        return self

    @property
    def is_private(self) -> bool:
        """Whether hospitals train with differential privacy."""
        return self.privacy.mechanism != "none"

    @property
    def protects_hospitals(self) -> bool:
        """Whether the coordinator adds differential privacy for whole hospitals."""
        return self.central_privacy is not None and self.central_privacy.mechanism != "none"

    @property
    def is_personal(self) -> bool:
        """Whether each hospital measures a model of its own; not where one alone trains, whose model all measure."""
        return self.strategy.PERSONAL and self.simulation.trainers == "all"

    @property
    def task(self) -> Task:
        """Its loss and its measurement."""
        return task_of(self.data_schema)

    @property
    def num_outputs(self) -> int:
        """Outputs of the model, see `fl_contract.tasks.task.Task.num_outputs`."""
        return self.task.num_outputs()

    @property
    def needs_statistics(self) -> bool:
        """Whether hospitals send statistics of their training records before round 1."""
        return self.data_schema.needs_statistics

    def build_model(self) -> nn.Module:
        """The model before the first round; the same weights everywhere.

        It takes what hospitals prepare: where the study has such, gaps are filled in and features scaled by all
        hospitals' statistics, and categories encoded, before the network.
        """
        network = build_model(self.model, self.data_schema, num_outputs=self.num_outputs, seed=self.seed)
        parts = OrderedDict[str, nn.Module]()
        if (first := self.standardise()) is not None:
            parts[STANDARDISE] = first
        num_categories = [column.num_categories for column in self.data_schema.columns]
        if any(num_categories):
            parts["encode"] = OneHot(num_categories)
        return nn.Sequential(parts | OrderedDict(network=network)) if parts else network

    def build_ensemble(self, num_members: int) -> Ensemble:
        """What a study of an ensemble measures, and its result: members as `build_model` gives them."""
        return Ensemble([self.build_model() for _ in range(num_members)], self.task.combine)

    def standardise(self) -> Standardise | None:
        """The model's first layer, without statistics yet; None where the study needs none."""
        return Standardise(self.data_schema.columns) if self.needs_statistics else None

    @property
    def num_measurements(self) -> int:
        """Rounds after which the model is measured."""
        return -(-self.num_rounds // self.federation.measure_every)

    def measurement_number(self, server_round: int) -> int | None:
        """Which measurement a round ends with, from 1; None for a round that ends with none."""
        until_last, rest = divmod(self.num_rounds - server_round, self.federation.measure_every)
        return None if rest else self.num_measurements - until_last

    def to_table(self) -> dict[str, Any]:
        """All settings with their values, as TOML would hold them."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all settings; equal at the coordinator and at every hospital, or the request is refused."""
        return hashlib.sha256(json.dumps(self.to_table(), sort_keys=True).encode()).hexdigest()


_AGREED_KEYS = ("name", "title", "model.path", "schema.", "model.weights.")
"""Keys, or how they begin, that no run may set: who it is, what it is about, which code and which files it loads."""

OVERRIDABLE_KEYS = tuple(key for key in scalar_keys(Study) if not key.startswith(_AGREED_KEYS))
"""Dotted keys that a run may set; ``[tool.flwr.app.config]`` lists the same (a test compares them)."""


def load_study(name: str, *, directory: Path = STUDIES, overrides: Mapping[str, Scalar] | None = None) -> Study:
    """Read a study by its name.

    Args:
        name: Of the file without ``.toml``; never a path.
        directory: That holds the studies.
        overrides: Values by dotted key, such as ``{"privacy.epsilon": 4.0}``.

    Raises:
        SettingError: There is no such study, or a key breaks a rule.
    """
    available = sorted(path.stem for path in directory.glob("*.toml"))
    if not _NAME.fullmatch(name) or name not in available:
        raise SettingError(f"study={name!r}; expected one of {available} in {directory.name}/")
    raw = read_toml(directory / f"{name}.toml")
    if raw.get("name") != name:
        raise SettingError(f"{name}.toml: name={raw.get('name')!r}; expected the name of the file, {name!r}")
    for key, value in (overrides or {}).items():
        _override(raw, key, value)
    return Study.parse(raw, origin=f"{name}.toml")


def _override(raw: dict[str, Any], key: str, value: Scalar) -> None:
    if key not in OVERRIDABLE_KEYS:
        hint = suggest_key(key, OVERRIDABLE_KEYS)
        rule = f"expected one of the {len(OVERRIDABLE_KEYS)} keys listed in pyproject.toml"
        raise SettingError(f"{key}={value!r} is not a known key{hint}; {rule}")
    *tables, last = key.split(".")
    for table in tables:
        raw = raw.setdefault(table, {})
        if not isinstance(raw, dict):
            return  # parsing refuses what is not a table
    raw[last] = value


def study_from_run_config(run_config: Mapping[str, Scalar], *, directory: Path = STUDIES) -> Study:
    """The study that a Flower run names, with its overrides; an empty text means "as the study says"."""
    overrides = {key: run_config[key] for key in OVERRIDABLE_KEYS if run_config.get(key, "") != ""}
    return load_study(str(run_config.get("study", "")), directory=directory, overrides=overrides)


def parse_assignment(assignment: str) -> tuple[str, Scalar]:
    """Read ``key=value`` of a command line; the value as TOML, a bare word as a text.

    >>> parse_assignment("privacy.epsilon=4.0"), parse_assignment("strategy.name=fedavgm")
    (('privacy.epsilon', 4.0), ('strategy.name', 'fedavgm'))
    """
    key, separator, text = assignment.partition("=")
    if not separator or not key.strip() or not text.strip():
        raise SettingError(f"{assignment!r}; expected key=value, such as num-rounds=20")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {"value": text}
    value = parsed["value"]
    if len(parsed) > 1 or not isinstance(value, Scalar):
        raise SettingError(f"{assignment!r}; expected one number, text or truth value")
    return key.strip(), value
