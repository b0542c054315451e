"""A study: what everybody agreed to, as one frozen object, and what follows from its settings together."""

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from fl_contract.codecs import CommunicationSettings, NoCodecSettings
from fl_contract.models import ModelSettings, build_model
from fl_contract.models.architecture import ROW_TASKS
from fl_contract.models.encode import OneHot
from fl_contract.models.ensemble import Ensemble
from fl_contract.models.own_model import OwnModelSettings
from fl_contract.models.standardise import Standardise
from fl_contract.private_defaults import fill_private_defaults
from fl_contract.schema import Schema
from fl_contract.settings import Settings
from fl_contract.strategy_settings import FedBuffSettings, StrategySettings
from fl_contract.study_tables import (
    CentralPrivacySettings,
    FederationSettings,
    PrivacySettings,
    SimulationSettings,
    StoppingSettings,
    TrainingSettings,
)
from fl_contract.tasks import task_of
from fl_contract.tasks.task import Task

STUDY_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")

STANDARDISE = "standardise"
"""Name in the model of the layer that holds statistics of all hospitals."""


_looked_at: set[str] = set()
"""Fingerprints of personalised studies whose model has what stays; a hospital reads its study for every request."""

LINEAR = ("fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi", "fedadagrad")
"""Algorithms that need no more of a round than the weighted mean of all hospitals."""

BALANCED = ("fedavg", "fedprox", "fednova")
"""Algorithms whose mean can count each hospital's update by step, so that hospitals may take different numbers."""


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
        if not STUDY_NAME.fullmatch(name):
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
