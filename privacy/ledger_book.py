"""The only place that knows what the rows of a ledger say, and the state that they add up to.

    ledger      first row: whose it is, at which delta, and the secret salt of its fingerprints
    plan        a run's plan for one cohort
    reserve     one round of a run, charged before it is trained
    take-over   an open round went to another process
    settle      the steps of a round that really ran
    charge      a spend that was made elsewhere

A row that contradicts the rows before it stops the reading: rows are written by `privacy.ledger` alone, so it was put
there by something else.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from privacy.accounting import AnySpend, ExternalSpend, Spend
from privacy.bounds import require_count
from privacy.errors import LedgerError, PrivacySettingError
from privacy.ledger_chain import Row
from privacy.plan import PrivacyPlan


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One round's charge as the ledger holds it, for display.

    Attributes:
        number: Of the row that charged it.
        cohort: The patients whose privacy was spent.
        run: The run that was charged for.
        server_round: The round of that run.
        attempt: How often that round had been settled before, plus one.
        study: The study's name.
        unit: What one unit of privacy protects.
        mechanism: ``subsampled-gaussian``, or ``gaussian`` where every unit was in every batch.
        noise_multiplier: Standard deviation of the noise over the clip norm.
        sampling_rate: Probability with which each unit was in a batch.
        clip_norm: In gradient units.
        steps_reserved: Steps that were charged at first.
        steps_run: Steps that really ran; None while the round is open.
        policy: Version of the hospital's policy at that moment.
        fingerprint: Of the records at that moment; evidence only.
        reserved_at: UTC, ISO 8601; for display, the order is that of the numbers.
        settled_at: The same; None while the round is open.
    """

    number: int
    cohort: str
    run: str
    server_round: int
    attempt: int
    study: str
    unit: str
    mechanism: str
    noise_multiplier: float
    sampling_rate: float
    clip_norm: float
    steps_reserved: int
    steps_run: int | None = None
    policy: str
    fingerprint: str
    reserved_at: str
    settled_at: str | None = None

    @property
    def spend(self) -> Spend:
        """What is charged now: the steps run, or all that were reserved while that is not known."""
        steps = self.steps_reserved if self.steps_run is None else self.steps_run
        return Spend(noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=steps)


@dataclass(frozen=True, kw_only=True)
class OutsideCharge:
    """A spend that was made elsewhere and entered by hand.

    Attributes:
        number: Of its row.
        cohort: The patients whose privacy was spent.
        study: What for.
        reason: Why it is entered, in a person's words.
        spend: What was spent.
        policy: Version of the hospital's policy at that moment.
        charged_at: UTC, ISO 8601; for display.
    """

    number: int
    cohort: str
    study: str
    reason: str
    spend: AnySpend
    policy: str
    charged_at: str


@dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """A run's plan for one cohort.

    Attributes:
        number: Of its row.
        study: The run's study.
        text: The plan as `PrivacyPlan.to_json` gives it.
    """

    number: int
    study: str
    text: str

    @property
    def plan(self) -> PrivacyPlan:
        """The plan itself, checked again."""
        return PrivacyPlan.from_json(self.text)


@dataclass
class Book:
    """What the rows read so far say; only `add` changes it.

    Attributes:
        site: The hospital whose ledger it is.
        delta: Of every epsilon in it.
        salt: Hexadecimal key of its fingerprints.
        plans: By cohort and run, in the order they came.
        entries: Charges of rounds, in the order they came.
        charges: Spends made elsewhere, in the order they came.
        holders: Process that reserved or took over the latest attempt, by cohort, run and round.
        transaction: Row with which the last transaction began.
    """

    site: str = ""
    delta: float = 0.0
    salt: str = ""
    plans: dict[tuple[str, str], StoredPlan] = field(default_factory=dict)
    entries: list[LedgerEntry] = field(default_factory=list)
    charges: list[OutsideCharge] = field(default_factory=list)
    holders: dict[tuple[str, str, int], str] = field(default_factory=dict)
    transaction: int = 1
    _latest: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Take in the next row.

        Raises:
            LedgerError: The row contradicts those before it, or says nothing known.
        """
        readers = {
            "ledger": self._add_identity,
            "plan": self._add_plan,
            "reserve": self._add_entry,
            "take-over": self._add_holder,
            "settle": self._add_steps,
            "charge": self._add_charge,
        }
        try:
            readers[row.content["kind"]](row.number, row.content)
            self.transaction = row.content["transaction"]
        except (KeyError, TypeError, PrivacySettingError) as error:
            raise LedgerError(f"row {row.number} says what no ledger says: {error!r}") from error

    def latest(self, cohort: str, run: str, server_round: int) -> LedgerEntry | None:
        """The latest attempt of a round; None if it was never charged."""
        position = self._latest.get((cohort, run, server_round))
        return None if position is None else self.entries[position]

    def cohort_with(self, fingerprint: str, *, other_than: str) -> str | None:
        """Another cohort that was charged with the same records; None if there is none."""
        found = (entry.cohort for entry in self.entries if entry.fingerprint == fingerprint)
        return next((cohort for cohort in found if cohort != other_than), None)

    def history(self, cohort: str) -> list[AnySpend]:
        """Everything charged to a cohort."""
        rounds: list[AnySpend] = [entry.spend for entry in self.entries if entry.cohort == cohort]
        return rounds + [charge.spend for charge in self.charges if charge.cohort == cohort]

    def study_history(self, cohort: str, study: str) -> list[AnySpend]:
        """Every spend of a cohort for one study, by all its runs and by hand."""
        charged = [entry.spend for entry in self.entries if (entry.cohort, entry.study) == (cohort, study)]
        outside = [charge.spend for charge in self.charges if (charge.cohort, charge.study) == (cohort, study)]
        return [*charged, *outside]

    def run_history(self, cohort: str, run: str) -> list[Spend]:
        """What one run was charged for a cohort."""
        return [entry.spend for entry in self.entries if (entry.cohort, entry.run) == (cohort, run)]

    def cohorts(self) -> list[str]:
        """Every cohort with a plan or a charge, in the order they came."""
        seen = [(stored.number, cohort) for (cohort, _), stored in self.plans.items()]
        seen += [(charge.number, charge.cohort) for charge in self.charges]
        return list(dict.fromkeys(cohort for _, cohort in sorted(seen)))

    def _add_identity(self, number: int, content: dict[str, Any]) -> None:
        _require(number == 1, number, "repeats whose ledger it is")
        self.site, self.delta, self.salt = content["site"], content["delta"], content["salt"]

    def _add_plan(self, number: int, content: dict[str, Any]) -> None:
        key = (content["cohort"], content["run"])
        _require(key not in self.plans, number, f"gives run {content['run']!r} a second plan")
        self.plans[key] = StoredPlan(number=number, study=content["study"], text=content["plan"])

    def _add_entry(self, number: int, content: dict[str, Any]) -> None:
        names = LedgerEntry.__dataclass_fields__.keys() - {"number", "steps_run", "settled_at", "reserved_at"}
        entry = LedgerEntry(number=number, reserved_at=content["time"], **{name: content[name] for name in names})
        _require((entry.cohort, entry.run) in self.plans, number, f"charges run {entry.run!r}, which has no plan")
        require_count("steps_reserved", entry.steps_reserved, at_least=1)
        _require(entry.spend.mechanism == entry.mechanism, number, f"calls its mechanism {entry.mechanism!r}")
        key = (entry.cohort, entry.run, entry.server_round)
        latest = self.latest(*key)
        attempts = 0 if latest is None else latest.attempt
        _require(latest is None or latest.steps_run is not None, number, "charges a round that is open")
        _require(entry.attempt == attempts + 1, number, f"is attempt {entry.attempt} after {attempts}")
        self._latest[key] = len(self.entries)
        self.holders[key] = content["holder"]
        self.entries.append(entry)

    def _add_holder(self, number: int, content: dict[str, Any]) -> None:
        self.holders[self._open_round(number, content)] = content["holder"]

    def _add_steps(self, number: int, content: dict[str, Any]) -> None:
        key = self._open_round(number, content)
        position = self._latest[key]
        entry = self.entries[position]
        steps = require_count("steps_run", content["steps_run"], at_least=0)
        _require(steps <= entry.steps_reserved, number, f"settles {steps} steps of {entry.steps_reserved} charged")
        self.entries[position] = replace(entry, steps_run=steps, settled_at=content["time"])

    def _open_round(self, number: int, content: dict[str, Any]) -> tuple[str, str, int]:
        key = (content["cohort"], content["run"], content["server_round"])
        entry = self.latest(*key)
        _require(entry is not None and entry.steps_run is None, number, f"is about round {key}, which is not open")
        return key

    def _add_charge(self, number: int, content: dict[str, Any]) -> None:
        charge = OutsideCharge(
            number=number,
            cohort=content["cohort"],
            study=content["study"],
            reason=content["reason"],
            spend=spend_from(content["mechanism"], content["parameters"]),
            policy=content["policy"],
            charged_at=content["time"],
        )
        self.charges.append(charge)


def spend_from(mechanism: str, parameters: dict[str, Any]) -> AnySpend:
    """Build a spend from what `spend_content` made of it.

    >>> spend_from("pure", {"epsilon": 0.5, "delta": 0.0})
    ExternalSpend(epsilon=0.5, delta=0.0)
    """
    kind = Spend if mechanism in ("gaussian", "subsampled-gaussian") else ExternalSpend
    spend: AnySpend = kind(**parameters)
    if spend.mechanism != mechanism:
        raise PrivacySettingError(f"mechanism={mechanism!r}; its parameters are those of {spend.mechanism!r}")
    return spend


def spend_content(spend: AnySpend) -> dict[str, Any]:
    """Return a spend's mechanism and its parameters, as a row holds them.

    >>> spend_content(ExternalSpend(epsilon=0.5))
    {'mechanism': 'pure', 'parameters': {'epsilon': 0.5, 'delta': 0.0}}
    """
    return {"mechanism": spend.mechanism, "parameters": asdict(spend)}


def _require(is_so: bool, number: int, otherwise: str) -> None:
    if not is_so:
        raise LedgerError(f"row {number} {otherwise}")
