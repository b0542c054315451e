"""The only place that says how many local steps a hospital is asked for, so that a round's hospitals finish together.

A hospital that took s seconds for its last a steps needs s / a a step, and n s / a for the study's own n steps. All are
asked to finish when the middle one of the round would, with its own steps: a slower hospital gets fewer steps, never
fewer than the study's least share, and nobody gets more than the study's own.

Fewer steps do not make a hospital count less: updates are counted by step, as in FedNova (Wang et al. 2020, section 4;
arXiv 2007.07481).
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from fl_contract.messages import SitePlan
from fl_contract.study_tables import TrainingSettings


class StepBalance:
    """Remembers how quick each hospital was, and asks for steps by it.

    Before anything was measured, a hospital's seconds a step are taken to be as 1 to the cores that it told of; one
    with a GPU, or that told nothing, is asked for its own steps.

    Args:
        training: Says each hospital's own steps.
        plans: Of the hospitals: declared records, and what they told of their machines.
        proximal_mu: Pull of the local loss, as in FedProx; 0 without.
    """

    def __init__(self, training: TrainingSettings, plans: Mapping[str, SitePlan], *, proximal_mu: float = 0.0) -> None:
        self._own = {site: training.steps_for(plan.num_examples) for site, plan in plans.items()}
        self._least = {site: training.least_steps_for(plan.num_examples) for site, plan in plans.items()}
        self._told = {
            site: 1 / plan.capacity.num_cores
            for site, plan in plans.items()
            if plan.capacity is not None and not plan.capacity.has_gpu
        }
        self._shrink = abs(1.0 - training.learning_rate * proximal_mu)
        self._seconds: dict[str, float] = {}
        self._asked: dict[str, int] = {}

    def ask(self, sites: Iterable[str]) -> dict[str, int]:
        """Steps for each hospital of a round."""
        chosen = sorted(sites)
        measured = {site: self._seconds[site] for site in chosen if site in self._seconds}
        seconds_a_step = measured or {site: self._told[site] for site in chosen if site in self._told}
        whole = {site: self._own[site] * each for site, each in seconds_a_step.items()}
        target = statistics.median_low(whole.values()) if whole else 0.0
        steps = {site: self._own[site] for site in chosen}
        for site, seconds in whole.items():
            if seconds > target:
                steps[site] = max(self._least[site], int(target / seconds_a_step[site]))
        self._asked |= steps
        return steps

    def observe(self, site: str, seconds: float) -> None:
        """Take in how long a hospital took for what it was asked last."""
        self._seconds[site] = seconds / self._asked[site]

    def effective_steps(self, site: str) -> float:
        """By how much of a gradient the last asked steps moved the hospital's model; FedProx's pull makes it less.

        The pull shrinks what earlier steps did by 1 - learning rate * mu at every step (section 4 of the paper).
        """
        return math.fsum(self._shrink**step for step in range(self._asked[site]))

    def state(self) -> dict[str, Any]:
        """For a checkpoint: a round that is repeated asks for the same steps."""
        return {"seconds": dict(self._seconds), "asked": dict(self._asked)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._seconds, self._asked = dict(state["seconds"]), dict(state["asked"])
