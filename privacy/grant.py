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
        epsilon_budget: For the history; 0 allows nothing.
        delta: Of the budget; the run's target has its plan's own.
    """

    history: Sequence[AnySpend]
    run: str
    run_history: Sequence[Spend]
    epsilon_budget: float
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
        raise self._budget_exceeded(plan.round_spend)

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
        """Whether the budget allows the history and what is requested."""
        history = [*self.history, *requested]
        return self.epsilon_budget > 0 and _is_within(self.epsilon_budget, history, self.delta)

    def require_budget(self) -> None:
        """Raise `BudgetExceededError` if the history alone is above the budget."""
        if not self.allow():
            raise self._budget_exceeded()

    def _budget_exceeded(self, *requested: Spend) -> BudgetExceededError:
        return BudgetExceededError(
            epsilon_spent=compute_epsilon_adaptive(self.history, self.delta),
            epsilon_budget=self.epsilon_budget,
            epsilon_requested=compute_epsilon_adaptive([*self.history, *requested], self.delta),
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
