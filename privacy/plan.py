"""The only place where unit, clip norm, sampling, noise and epsilon come together, as one consistent plan."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from privacy.accounting import Spend, calibrate_noise_multiplier, compute_epsilon, compute_epsilon_rdp
from privacy.bounds import (
    require_clip_norm,
    require_count,
    require_delta,
    require_positive,
    require_rate,
    require_total_steps,
)
from privacy.errors import PrivacySettingError


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """What privacy was agreed for one run at one site, every public number of it and nothing private.

    The promise: over all rounds together, everything the run releases from private training is
    (``epsilon``, ``delta``)-differentially private for one ``unit`` added to or removed from the site's data
    (replacing one counts as removing and adding, and costs more). A plan whose noise is too small for its epsilon
    cannot be built. `calibrate` is the usual way to build one.

    Attributes:
        unit: What is protected: one record, or one patient with all the records of that patient.
        neighbouring: The neighbouring relation of every number here.
        epsilon: Target for all rounds together; above 0.
        delta: At least 1e-10 and below 1 / ``nominal_units``.
        clip_norm: Largest L2 norm of one unit's gradient over all parameters; 1e-6 to 1e6, in gradient units.
        sampling_rate: Probability with which each unit is in a batch; above 0, at most 1.
        steps_per_round: Optimizer steps of a round; at least 1; at most 100,000 over all rounds.
        num_rounds: Rounds of the run; at least 1.
        noise_multiplier: Standard deviation of the noise over ``clip_norm``; above 0.
        nominal_units: The site's declared number of units, public; not the true count, which is private.
    """

    unit: Literal["record", "patient"] = "record"
    neighbouring: Literal["add-or-remove-one"] = "add-or-remove-one"
    epsilon: float
    delta: float
    clip_norm: float
    sampling_rate: float
    steps_per_round: int
    num_rounds: int
    noise_multiplier: float
    nominal_units: int

    def __post_init__(self) -> None:
        """Check every number, then that the noise keeps the promised epsilon."""
        if self.unit not in ("record", "patient"):
            raise PrivacySettingError(f"unit={self.unit!r}; expected 'record' or 'patient'")
        if self.neighbouring != "add-or-remove-one":
            raise PrivacySettingError(f"neighbouring={self.neighbouring!r}; expected 'add-or-remove-one'")
        for name in ("epsilon", "noise_multiplier"):
            object.__setattr__(self, name, require_positive(name, getattr(self, name)))
        object.__setattr__(self, "clip_norm", require_clip_norm("clip_norm", self.clip_norm))
        object.__setattr__(self, "delta", require_delta("delta", self.delta))
        object.__setattr__(self, "sampling_rate", require_rate("sampling_rate", self.sampling_rate))
        require_total_steps(self.steps_per_round, self.num_rounds)
        require_count("nominal_units", self.nominal_units, at_least=1)
        _refuse_large_delta(self.delta, self.nominal_units)
        if compute_epsilon_rdp([self.total_spend], self.delta) > self.epsilon:
            self._refuse_little_noise()

    def _refuse_little_noise(self) -> None:
        reached = compute_epsilon([self.total_spend], self.delta)
        if reached > self.epsilon:
            raise PrivacySettingError(
                f"noise_multiplier={self.noise_multiplier!r}; {self.total_spend.steps} steps with it reach "
                f"epsilon {reached:.4f}; expected at most {self.epsilon!r}; build the plan with PrivacyPlan.calibrate"
            )

    @classmethod
    def calibrate(  # noqa: PLR0913  the plan's own fields
        cls,
        *,
        unit: Literal["record", "patient"] = "record",
        epsilon: float,
        delta: float,
        clip_norm: float,
        sampling_rate: float,
        steps_per_round: int,
        num_rounds: int,
        nominal_units: int,
    ) -> "PrivacyPlan":
        """Build the plan with the least noise that keeps ``epsilon`` over all rounds; about a second.

        The same arguments give the same plan in every process.

        >>> plan = PrivacyPlan.calibrate(
        ...     epsilon=8,
        ...     delta=1e-3,
        ...     clip_norm=1,
        ...     sampling_rate=0.25,
        ...     steps_per_round=4,
        ...     num_rounds=20,
        ...     nominal_units=400,
        ... )
        >>> round(plan.noise_multiplier, 2), plan.expected_batch_size
        (1.27, 100.0)
        """
        total_steps = require_total_steps(steps_per_round, num_rounds)
        noise_multiplier = calibrate_noise_multiplier(
            epsilon=epsilon, delta=delta, sampling_rate=sampling_rate, steps=total_steps
        )
        return cls(
            unit=unit,
            epsilon=epsilon,
            delta=delta,
            clip_norm=clip_norm,
            sampling_rate=sampling_rate,
            steps_per_round=steps_per_round,
            num_rounds=num_rounds,
            noise_multiplier=noise_multiplier,
            nominal_units=nominal_units,
        )

    @property
    def round_spend(self) -> Spend:
        """What one full round costs."""
        return self._spend(self.steps_per_round)

    @property
    def total_spend(self) -> Spend:
        """What all rounds together cost."""
        return self._spend(self.steps_per_round * self.num_rounds)

    def _spend(self, steps: int) -> Spend:
        return Spend(noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=steps)

    @property
    def expected_batch_size(self) -> float:
        """Mean batch size of a site of nominal size, the public divisor of every summed gradient."""
        return self.sampling_rate * self.nominal_units

    def to_json(self) -> str:
        """Return the plan as one JSON object, keys sorted; `from_json` gives back an equal plan."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "PrivacyPlan":
        """Read `to_json`'s text; an unknown, missing, repeated or mistyped key is an error, and so is a weak plan."""
        try:
            values = json.loads(text, object_pairs_hook=_refuse_repeated_keys)
        except json.JSONDecodeError as error:
            raise PrivacySettingError(f"plan={text[:40]!r}; expected one JSON object") from error
        if not isinstance(values, dict):
            raise PrivacySettingError(f"plan={text[:40]!r}; expected one JSON object")
        names = {field.name for field in fields(cls)}
        for problem, keys in (("unknown", values.keys() - names), ("missing", names - values.keys())):
            if keys:
                raise PrivacySettingError(f"plan has {problem} keys {sorted(keys)}; expected exactly {sorted(names)}")
        return cls(**values)


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise PrivacySettingError(f"plan has keys {[key for key, _ in pairs]}; expected each key once")
    return values


def _refuse_large_delta(delta: float, nominal_units: int) -> None:
    if delta >= 1 / nominal_units:
        raise PrivacySettingError(
            f"delta={delta!r}; expected below 1/nominal_units={1 / nominal_units:.3g}, "
            "or publishing one whole unit at random would count as private"
        )
