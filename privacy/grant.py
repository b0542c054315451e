"""The only place that decides how many steps of a round the hospital's budget and the run's own target allow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from privacy.accounting import (
    AnySpend,
    ExternalSpend,
    Spend,
    compute_epsilon,
    compute_epsilon_adaptive,
    compute_epsilon_rdp,
)
from privacy.errors import BudgetExceededError
from privacy.plan import PrivacyPlan


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a further round has to fit into.

    Attributes:
        history: Everything charged to the cohort.
        run: The run that asks.
        run_history: The part of the history that this run was charged.
        study_history: The part of the history that all runs of this study were charged.
        epsilon_budget: For the history; 0 allows nothing.
        epsilon_per_study: For the study's part; no limit of its own if None.
        delta: Of the budget and of the study's; the run's target has its plan's own.
    """

    history: Sequence[AnySpend]
    run: str
    run_history: Sequence[Spend]
    study_history: Sequence[AnySpend]
    epsilon_budget: float
    epsilon_per_study: float | None
    delta: float

    def grant(self, plan: PrivacyPlan) -> Spend:
        """Return the largest part of a round of ``plan`` that fits, of at least one step.

        Raises:
            BudgetExceededError: Not even one step fits.
        """
        steps = self.largest_fit(plan)
        if steps:
            return replace(plan.round_spend, steps=steps)
        if not keeps_target(plan, [*self.run_history, replace(plan.round_spend, steps=1)]):
            raise BudgetExceededError(
                epsilon_spent=compute_epsilon(self.run_history, plan.delta),
                epsilon_budget=plan.epsilon,
                epsilon_requested=compute_epsilon([*self.run_history, plan.round_spend], plan.delta),
                run=self.run,
            )
        if self.epsilon_per_study is not None and not self._allows_study(replace(plan.round_spend, steps=1)):
            raise self._exceeded(self.study_history, self.epsilon_per_study, plan.round_spend)
        raise self._exceeded(self.history, self.epsilon_budget, plan.round_spend)

    def largest_fit(self, plan: PrivacyPlan) -> int:
        """Return how many steps of a round of ``plan`` fit; 0 if none does.

        Epsilon grows with the steps, so the largest number is found by bisection; each answer is one that was checked.
        """
        fits, too_many = 0, plan.steps_per_round + 1
        asked = plan.steps_per_round
        while too_many - fits > 1:
            spend = replace(plan.round_spend, steps=asked)
            if keeps_target(plan, [*self.run_history, spend]) and self.allow(spend):
                fits = asked
            else:
                too_many = asked
            asked = (fits + too_many) // 2
        return fits

    def allow(self, *requested: Spend) -> bool:
        """Whether the budget allows the history and what is requested, and so does the study's own limit."""
        history = [*self.history, *requested]
        return (
            self.epsilon_budget > 0
            and _is_within(self.epsilon_budget, history, self.delta)
            and self._allows_study(*requested)
        )

    def _allows_study(self, *requested: Spend) -> bool:
        # A study's only run has a target of its own, which is no higher: see `keeps_target` for why it is not computed.
        if self.epsilon_per_study is None or len(self.study_history) == len(self.run_history):
            return True
        return _is_within(self.epsilon_per_study, [*self.study_history, *requested], self.delta)

    def require_budget(self) -> None:
        """Raise `BudgetExceededError` if the history alone is above the budget."""
        if not self.allow():
            raise self._exceeded(self.history, self.epsilon_budget)

    def _exceeded(self, history: Sequence[AnySpend], limit: float, *requested: Spend) -> BudgetExceededError:
        return BudgetExceededError(
            epsilon_spent=compute_epsilon_adaptive(history, self.delta),
            epsilon_budget=limit,
            epsilon_requested=compute_epsilon_adaptive([*history, *requested], self.delta),
        )


def keeps_target(plan: PrivacyPlan, history: Sequence[Spend]) -> bool:
    """Whether what a run was charged keeps its plan's own epsilon, at the plan's delta."""
    # No plan can be built unless its total keeps its epsilon, and fewer of the same steps cost no more. Computed, they
    # might: the accountant's numerical error can exceed the cost of a round, and would refuse an honest one.
    if sum(charged.steps for charged in history) <= plan.total_spend.steps:
        return True
    return _is_within(plan.epsilon, history, plan.delta)


def _is_within(limit: float, history: Sequence[AnySpend], delta: float) -> bool:
    """Whether the history's epsilon is at most ``limit``; the fast bound first, it often suffices.

    With several noises or rates the fast bound would allow too much, see `compute_epsilon_adaptive`.
    """
    kinds = {
        None if isinstance(spend, ExternalSpend) else (spend.noise_multiplier, spend.sampling_rate) for spend in history
    }
    if len(kinds) == 1 and compute_epsilon_rdp(history, delta) <= limit:
        return True
    return compute_epsilon_adaptive(history, delta) <= limit
