"""How the coordinator makes one model of the hospitals' models: the settings of each algorithm, by its name.

Source and formula of each stand in ``strategies/<name>.py``.
"""

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator
from torch import nn

from fl_contract.models.layers import head_names, norm_names
from fl_contract.settings import Settings


class Algorithm(Settings):
    """What all algorithms have.

    Attributes:
        PLAIN_SGD: Whether its formula needs local training by plain SGD.
        FIXED_STEPS: Whether its formula needs the same number of local steps at every hospital.
        DECLARED_STEPS: Whether a hospital takes the steps that follow from the number of records it declares.
        SENDS_CONTROL: Whether the coordinator sends an array for each trained one beside the model.
        COUNTS_HOSPITALS: Whether every hospital counts the same, whatever it declares.
        FULL_BATCH: Whether a hospital computes one gradient over all its records in a round.
        IS_ENSEMBLE: Whether the result is all hospitals' models, whose predictions are averaged.
        SENDS_LOSS: Whether a hospital sends its exact training loss of the model that it received.
        PERSONAL: Whether each hospital ends with a model of its own, which is what it measures.
        NOISELESS: Whether a hospital's own model follows from gradients that differential privacy would not cover.
        TAKES_TURNS: Whether a round's steps are divided, so that it needs two or more.
        weighting: A hospital counts by its ``examples``, the same as any other (``equal``), or by ``institution``.
        institution_weights: For ``institution``: a positive weight for every hospital by name.
        server_learning_rate: Share of the mean update that is applied; 1 replaces the model by the mean.
    """

    PLAIN_SGD: ClassVar[bool] = False
    FIXED_STEPS: ClassVar[bool] = False
    DECLARED_STEPS: ClassVar[bool] = False
    SENDS_CONTROL: ClassVar[bool] = False
    COUNTS_HOSPITALS: ClassVar[bool] = False
    FULL_BATCH: ClassVar[bool] = False
    IS_ENSEMBLE: ClassVar[bool] = False
    SENDS_LOSS: ClassVar[bool] = False
    PERSONAL: ClassVar[bool] = False
    NOISELESS: ClassVar[bool] = False
    TAKES_TURNS: ClassVar[bool] = False

    name: str
    weighting: Literal["examples", "equal", "institution"] = "examples"
    institution_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    server_learning_rate: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if (self.weighting == "institution") != bool(self.institution_weights):
            raise ValueError("institution-weights go with weighting = 'institution', and only with it")
        if self.COUNTS_HOSPITALS and self.weighting != "equal":
            raise ValueError(f"weighting={self.weighting!r}; {self.name!r} counts hospitals; expected 'equal'")
        return self

    def kept_names(self, model: nn.Module) -> frozenset[str]:
        """Names of the model's arrays that every hospital keeps for itself; most algorithms share all.

        Raises:
            SettingError: The model has none of those that the algorithm is about.
        """
        del model
        return frozenset()


class FedAvgSettings(Algorithm):
    """FedAvg (McMahan 2017)."""

    name: Literal["fedavg"]


class FedAvgMSettings(Algorithm):
    """FedAvg with momentum at the server (Hsu 2019).

    Attributes:
        server_momentum: Share of the last step that is kept, in [0, 1).
        server_dampening: Share of the new update that is left out, in [0, 1]. Equal to the momentum it makes the step a
            running mean of updates.
        server_nesterov: Whether the step looks ahead along the momentum (Sutskever 2013); goes with no dampening.
    """

    name: Literal["fedavgm"]
    server_momentum: float = Field(default=0.9, ge=0, lt=1)
    server_dampening: float = Field(default=0.0, ge=0, le=1)
    server_nesterov: bool = False

    @model_validator(mode="after")
    def _check_nesterov(self) -> Self:
        if self.server_nesterov and self.server_dampening:
            raise ValueError(f"server-dampening={self.server_dampening} with server-nesterov; expected 0")
        return self


class FedSGDSettings(Algorithm):
    """FedSGD (McMahan 2017): hospitals send the gradient over all their records, and take no step of their own.

    The model moves by ``server_learning_rate`` times the study's own learning rate times the mean gradient.
    """

    PLAIN_SGD = True
    FULL_BATCH = True

    name: Literal["fedsgd"]


class QFedAvgSettings(Algorithm):
    """q-FedAvg (Li 2020): hospitals where the model is worse count for more.

    Attributes:
        fairness: q, in [0, 20]; 0 is FedAvg.
    """

    PLAIN_SGD = True
    SENDS_LOSS = True

    name: Literal["q-fedavg"]
    fairness: float = Field(default=1.0, ge=0, le=20)


class AdaptiveSettings(Algorithm):
    """FedAdam, FedYogi and FedAdagrad (Reddi 2021).

    Attributes:
        server_learning_rate: About the size of a number's step, so well below 1.
        server_beta1: Share of the mean update that is kept, in [0, 1).
        server_beta2: Share of the mean squared update that is kept, in [0, 1); FedAdagrad keeps all and has none.
        server_tau: Updates much smaller than this move the model in proportion to their size.
    """

    name: Literal["fedadam", "fedyogi", "fedadagrad"]
    server_learning_rate: float = Field(default=0.1, gt=0)
    server_beta1: float = Field(default=0.9, ge=0, lt=1)
    server_beta2: float = Field(default=0.99, ge=0, lt=1)
    server_tau: float = Field(default=1e-3, gt=0)


class FedProxSettings(Algorithm):
    """FedProx (Li 2020).

    Attributes:
        proximal_mu: Pull towards the received model: mu / 2 times the squared distance is added to the local loss.
    """

    name: Literal["fedprox"]
    proximal_mu: float = Field(default=0.01, ge=0)


class ScaffoldSettings(Algorithm):
    """SCAFFOLD (Karimireddy 2020)."""

    PLAIN_SGD = True
    FIXED_STEPS = True
    SENDS_CONTROL = True

    name: Literal["scaffold"]


class FedDynSettings(Algorithm):
    """FedDyn (Acar 2021).

    Attributes:
        dynamic_alpha: Strength of the pull towards the received model, per hospital.
    """

    name: Literal["feddyn"]
    dynamic_alpha: float = Field(default=0.01, gt=0)


class FedNovaSettings(Algorithm):
    """FedNova (Wang 2020)."""

    PLAIN_SGD = True
    DECLARED_STEPS = True

    name: Literal["fednova"]


class CyclicSettings(Algorithm):
    """Cyclic weight transfer (Chang 2018): each round trains at one hospital, which takes the last one's model."""

    name: Literal["cyclic"]


class OneShotEnsembleSettings(Algorithm):
    """One-shot ensemble (Guha 2019): hospitals train once, and their models' predictions are averaged.

    Every member counts the same, and there is no mean to step to.
    """

    COUNTS_HOSPITALS = True
    IS_ENSEMBLE = True

    name: Literal["one-shot-ensemble"]

    @model_validator(mode="after")
    def _check_rate(self) -> Self:
        if self.server_learning_rate != 1:
            raise ValueError(f"server-learning-rate={self.server_learning_rate}; an ensemble takes no step; expected 1")
        return self


class FedBuffSettings(Algorithm):
    """FedBuff (Nguyen 2022): a step is taken as soon as some hospitals have replied; the others go on with theirs.

    Attributes:
        buffer_size: Hospitals whose updates make a step; ``federation.min-sites`` if it is not set.
        max_staleness: Steps since a hospital got its model after which its update is dropped.
    """

    name: Literal["fedbuff"]
    buffer_size: int | None = Field(default=None, ge=1)
    max_staleness: int = Field(default=10, ge=0)


class RobustSettings(Algorithm):
    """Rules without settings: coordinate-wise ``median`` (Yin 2018), ``geometric-median`` (Pillutla 2022)."""

    COUNTS_HOSPITALS = True

    name: Literal["median", "geometric-median"]


class TrimmedMeanSettings(Algorithm):
    """Coordinate-wise trimmed mean (Yin 2018).

    Attributes:
        trim_fraction: Share of the hospitals that is left out at either end of each number, rounded down.
    """

    COUNTS_HOSPITALS = True

    name: Literal["trimmed-mean"]
    trim_fraction: float = Field(default=0.2, ge=0, lt=0.5)


class KrumSettings(Algorithm):
    """Krum and Multi-Krum (Blanchard 2017).

    Attributes:
        num_hostile: Hospitals that may send anything.
        num_chosen: Models that are averaged; 1 is Krum.
    """

    COUNTS_HOSPITALS = True

    name: Literal["krum"]
    num_hostile: int = Field(default=1, ge=0)
    num_chosen: int = Field(default=1, ge=1)


class NormBoundingSettings(Algorithm):
    """Norm bounding (Sun 2019).

    Attributes:
        update_bound: Largest L2 norm with which an update counts, in weight units.
    """

    COUNTS_HOSPITALS = True

    name: Literal["norm-bounding"]
    update_bound: float = Field(gt=0)


class CentredClippingSettings(Algorithm):
    """Centred clipping (Karimireddy 2021).

    Attributes:
        clip_radius: Distance from the running guess beyond which an update is clipped, in weight units.
    """

    COUNTS_HOSPITALS = True

    name: Literal["centred-clipping"]
    clip_radius: float = Field(gt=0)


class FedBNSettings(Algorithm):
    """FedBN (Li 2021): normalisation layers stay at the hospital."""

    PERSONAL = True

    name: Literal["fedbn"]

    def kept_names(self, model: nn.Module) -> frozenset[str]:
        """Weights and statistics of normalisation layers."""
        return norm_names(model)


class FedPerSettings(Algorithm):
    """FedPer (Arivazhagan 2019): the head stays at the hospital.

    Attributes:
        head: The part of the model that is the head, by the name before the dot of its arrays; the last layer with
            weights if it is empty.
    """

    PERSONAL = True

    name: Literal["fedper"]
    head: str = ""

    def kept_names(self, model: nn.Module) -> frozenset[str]:
        """All arrays of the head."""
        return head_names(model, self.head)


class FedRepSettings(Algorithm):
    """FedRep (Collins 2021): as FedPer, but the head is trained first and the body after it.

    Attributes:
        head: As `FedPerSettings.head`.
        head_share: Share of a round's local steps, the first ones, that train the head, in (0, 1); at least one step
            is left for the body.
    """

    PERSONAL = True
    TAKES_TURNS = True

    name: Literal["fedrep"]
    head: str = ""
    head_share: float = Field(default=0.5, gt=0, lt=1)

    def kept_names(self, model: nn.Module) -> frozenset[str]:
        """All arrays of the head."""
        return head_names(model, self.head)


class DittoSettings(Algorithm):
    """Ditto (Li 2021).

    Attributes:
        personal_pull: lambda, the pull of a hospital's own model towards the received one: lambda / 2 times the squared
            distance is added to its loss; 0 trains it on its own.
    """

    PERSONAL = True
    NOISELESS = True

    name: Literal["ditto"]
    personal_pull: float = Field(default=0.1, ge=0)


class APFLSettings(Algorithm):
    """APFL (Deng 2020).

    Attributes:
        mixture: alpha, the share of the hospital's own model in the mixture with the shared one, in [0, 1].
        adaptive_mixture: Whether each hospital learns its alpha, from that value on, by one step a round.
    """

    PERSONAL = True
    NOISELESS = True

    name: Literal["apfl"]
    mixture: float = Field(default=0.5, ge=0, le=1)
    adaptive_mixture: bool = False


class FineTuningSettings(Algorithm):
    """Fine-tuning, after which each hospital chooses among the shared, the fine-tuned and a model trained alone.

    Attributes:
        validation_share: Share of a hospital's training patients, in (0, 1), that nothing is trained on and by which it
            chooses.
    """

    PERSONAL = True
    NOISELESS = True

    name: Literal["fine-tuning"]
    validation_share: float = Field(default=0.2, gt=0, lt=1)


StrategySettings = Annotated[
    FedAvgSettings
    | FedAvgMSettings
    | FedSGDSettings
    | QFedAvgSettings
    | AdaptiveSettings
    | FedProxSettings
    | ScaffoldSettings
    | FedDynSettings
    | FedNovaSettings
    | CyclicSettings
    | OneShotEnsembleSettings
    | FedBuffSettings
    | RobustSettings
    | TrimmedMeanSettings
    | KrumSettings
    | NormBoundingSettings
    | CentredClippingSettings
    | FedBNSettings
    | FedPerSettings
    | FedRepSettings
    | DittoSettings
    | APFLSettings
    | FineTuningSettings,
    Field(discriminator="name"),
]


def strategy_names() -> tuple[str, ...]:
    """Every algorithm that a study may name.

    >>> "fedavg" in strategy_names()
    True
    """
    settings, _ = get_args(StrategySettings)
    return tuple(name for kind in get_args(settings) for name in get_args(kind.model_fields["name"].annotation))
