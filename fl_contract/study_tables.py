"""The tables of a study beside its schema, model and strategy: what each key means, and its range."""

import inspect
import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from fl_contract.settings import Settings

UNUSABLE_OPTIMIZERS = {
    "LBFGS": "it evaluates the loss several times a step, which neither mini-batches nor DP-SGD allow",
    "Muon": "it trains matrices only, and every model here has biases",
    "SparseAdam": "it takes sparse gradients only, which our models do not give",
}
"""Classes of ``torch.optim`` that cannot run a study's steps, and why."""


LEAST_SHARE_OF_STEPS = 4
"""A balanced round takes at least a whole round's steps divided by this."""


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
