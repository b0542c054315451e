"""The only place that decides that a run has converged."""

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from fl_contract.array_record import Arrays
from fl_contract.study_tables import StoppingSettings


class Stopping:
    """Watches the pooled held-out loss, and how far each round moves the model.

    A round's step is small when, with x the trained numbers before it and y after it, |y - x| is at most
    ``min-relative-step`` times |x| (L2 norms over all of them).

    Args:
        settings: What counts as better or small, and for how many rounds.
        trained: Names of the arrays that training moves.
    """

    def __init__(self, settings: StoppingSettings, trained: Collection[str] = ()) -> None:
        self._settings = settings
        self._trained = tuple(trained)
        self._best_loss = float("inf")
        self._rounds_without_gain = 0
        self._small_steps = 0

    @property
    def has_converged(self) -> bool:
        """Whether either criterion is met; a patience of 0 and a smallest step of 0 never are."""
        return self.reason != ""

    @property
    def reason(self) -> str:
        """Which criterion is met; empty if none is."""
        settings = self._settings
        if 0 < settings.patience <= self._rounds_without_gain:
            return f"No better loss in {settings.patience} rounds."
        if settings.min_relative_step > 0 and self._small_steps >= settings.small_steps:
            return f"{settings.small_steps} steps in a row of at most {settings.min_relative_step:g} of the model."
        return ""

    def observe(self, loss: float) -> None:
        """Take in the loss after one more round, in nats."""
        if loss < self._best_loss - self._settings.min_improvement:
            self._best_loss, self._rounds_without_gain = loss, 0
        else:
            self._rounds_without_gain += 1

    def observe_step(self, before: Arrays, after: Arrays) -> None:
        """Take in the models before and after one more round."""
        if self._settings.min_relative_step == 0:
            return
        step = _norm({name: after[name].astype(np.float64) - before[name] for name in self._trained})
        size = _norm({name: before[name].astype(np.float64) for name in self._trained})
        self._small_steps = self._small_steps + 1 if step <= self._settings.min_relative_step * size else 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "best_loss": self._best_loss,
            "rounds_without_gain": self._rounds_without_gain,
            "small_steps": self._small_steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._best_loss = float(state["best_loss"])
        self._rounds_without_gain = int(state["rounds_without_gain"])
        self._small_steps = int(state["small_steps"])


def _norm(arrays: Arrays) -> float:
    return math.sqrt(math.fsum(float(np.square(array).sum()) for array in arrays.values()))
