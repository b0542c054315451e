"""A hospital's own settings: the only place that reads ``site.toml`` and Flower's config maps at a hospital."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fl_client.node_settings import NodeSettings
from fl_client.source_settings import AnySourceSettings
from fl_contract.errors import SettingError
from fl_contract.settings import Settings, read_toml, suggest_key
from fl_contract.study import Study
from fl_contract.study_file import OVERRIDABLE_KEYS, STUDIES, Scalar, study_from_run_config


class PolicySettings(Settings):
    """What the hospital allows, whatever a study asks for.

    Attributes:
        epsilon_budget: For each cohort of patients, over the hospital's whole life and all studies, add-or-remove-one;
            0 allows no private round.
        delta: Of the same budget; a study's own may not be larger.
        epsilon_per_study: Most of it that all runs of one study may use; a run that asks for more gets more noise. The
            budget if it is not set.
        minimum_noise_multiplier: Least noise in units of the clip norm, whatever a study's epsilon would allow.
        unit: The weakest unit of privacy that the hospital accepts: ``record``, or ``patient``, which protects all
            records of a patient together. A study by record protects patients too where each has one record.
        ledger_receipt: File that says how the ledger ends, so that an older copy of it is noticed; best on another
            disk. ``receipts/ledger.receipt`` beside ``site.toml`` if it is not set.
        require_privacy: Refuse a study without differential privacy.
        allow_one_class: Take part also where all training records carry one label, as at a specialised hospital. A
            study with differential privacy never asks.
        min_examples: Fewest training records with which the hospital takes part, and fewest held-out ones with which it
            measures.
        statistics: What is said of the training records' features before round 1, where a study standardises or fills
            in by statistics of all hospitals: ``exact`` counts and sums, outside every epsilon, or nothing (``none``).
        min_count: Features with fewer values are left out of statistics, and no bin or category in them holds fewer.
        measurements: How held-out patients are measured for a coordinator, once a round of a run that was agreed:
            ``noised`` and charged to their own budget, ``exact`` and outside every epsilon, or not at all (``none``).
            Only with ``exact`` does a study without privacy get the exact training loss, where its algorithm needs it.
        share_capacity: Say before round 1, in a study that balances local steps, how many cores train here and whether
            there is a GPU. Not said if not set: a study needs it for its first round only.
        python_models: Code of others that a study may name as ``model.path`` and that is run here; none if not set.
        studies: Names of the studies that the hospital takes part in; all of an approved bundle if not set.
        run_settings: Settings of a study that a run may set beside its name, such as ``num-rounds``; none if not set.
            Nobody signs what a run sets, and the bundle that was approved does not hold it.
    """

    epsilon_budget: float = Field(ge=0)
    delta: float = Field(gt=0, lt=1)
    epsilon_per_study: float | None = Field(default=None, ge=0)
    minimum_noise_multiplier: float = Field(default=0.0, ge=0)
    unit: Literal["record", "patient"] = "patient"
    ledger_receipt: str | None = Field(default=None, min_length=1)
    require_privacy: bool = True
    allow_one_class: bool = False
    min_examples: int = Field(default=10, ge=1)
    statistics: Literal["exact", "none"] = "none"
    min_count: int = Field(default=10, ge=1)
    measurements: Literal["noised", "exact", "none"] = "noised"
    share_capacity: bool = False
    python_models: Annotated[tuple[str, ...], Field(strict=False)] = ()
    studies: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    run_settings: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @field_validator("run_settings")
    @classmethod
    def _check_run_settings(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in OVERRIDABLE_KEYS:
                raise ValueError(f"{name!r} is no setting that a run may set{suggest_key(name, OVERRIDABLE_KEYS)}")
        return names

    @property
    def largest_study_epsilon(self) -> float:
        """What one run may use at most."""
        return self.epsilon_budget if self.epsilon_per_study is None else self.epsilon_per_study

    @property
    def version(self) -> str:
        """SHA-256 over all of the policy; kept with every charge."""
        return hashlib.sha256(self.model_dump_json(by_alias=True).encode()).hexdigest()


class SiteSettings(Settings):
    """A hospital's own file, never sent anywhere.

    Attributes:
        name: As the federation knows the hospital.
        cohort: The hospital's own name for these patients, whose budget is spent; its ``name`` if it is not set. The
            same patients keep the same name for ever; other names are for other patients.
        declared_examples: Public, rounded number of training records: the hospital's weight, and the number that
            sampling and noise are scaled by instead of the true one.
        source: Where its records are.
        policy: What it allows.
        weights_folder: That holds the files that studies name as ``model.weights``; a relative one starts at the folder
            of ``site.toml``. Needed for studies that train a part of such a model only.
        node: Of the hospital's processes.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    cohort: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    declared_examples: int = Field(ge=1)
    source: Annotated[AnySourceSettings, Field(discriminator="kind")]
    policy: PolicySettings
    weights_folder: str = "weights"
    node: NodeSettings = NodeSettings()


def read_site_settings(path: Path) -> SiteSettings:
    """Read ``site.toml``.

    Raises:
        SettingError: The file is absent or breaks a rule.
    """
    return SiteSettings.parse(read_toml(path), origin=path.name)


def site_file(node_config: Mapping[str, Scalar]) -> Path | None:
    """The hospital's own file, which a SuperNode is started with; None on a simulated node."""
    value = node_config.get("site-file")
    return Path(str(value)) if value else None


def partition(node_config: Mapping[str, Scalar]) -> tuple[int, int]:
    """Number of a simulated node, from 0, and how many there are.

    Raises:
        SettingError: It is no simulated node.
    """
    if missing := sorted({"partition-id", "num-partitions"} - set(node_config)):
        raise SettingError(f"node config misses {missing}; a hospital's SuperNode needs site-file, its own file")
    return int(node_config["partition-id"]), int(node_config["num-partitions"])


def read_study(node_config: Mapping[str, Scalar], run_config: Mapping[str, Scalar]) -> Study:
    """The study that a run names, from this hospital's own copy of it."""
    return study_from_run_config(run_config, directory=Path(str(node_config.get("studies", STUDIES))))
