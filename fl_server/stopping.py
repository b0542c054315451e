"""The only place that decides that a run has converged."""

from typing import Any

from fl_contract.study import StoppingSettings


class Stopping:
    """Watches the pooled held-out loss.

    Args:
        settings: Patience in rounds, smallest improvement in nats.
    """

    def __init__(self, settings: StoppingSettings) -> None:
        self._settings = settings
        self._best_loss = float("inf")
        self._rounds_without_gain = 0

    @property
    def has_converged(self) -> bool:
        """Whether none of the last ``patience`` rounds was better."""
        return 0 < self._settings.patience <= self._rounds_without_gain

    def observe(self, loss: float) -> None:
        """Take in the loss after one more round, in nats."""
        if loss < self._best_loss - self._settings.min_improvement:
            self._best_loss, self._rounds_without_gain = loss, 0
        else:
            self._rounds_without_gain += 1

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best_loss": self._best_loss, "rounds_without_gain": self._rounds_without_gain}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._best_loss = float(state["best_loss"])
        self._rounds_without_gain = int(state["rounds_without_gain"])
