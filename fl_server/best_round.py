"""The only place that decides which round of a run was its best."""

from typing import Any

BEST_MODEL_FILE = "best-model.safetensors"


class BestRound:
    """Watches the pooled held-out loss; of rounds that are equally good the first is the best.

    The choice is made on the same held-out patients that the figures are of, so the best round's own figures are
    better than those of new patients would be. A private run's figures are those of its averaged model, with the
    measurements' noise: choosing by them costs no privacy, and is right only up to that noise.
    """

    def __init__(self) -> None:
        self.server_round = 0
        self.loss = float("inf")

    def observe(self, server_round: int, loss: float) -> None:
        """Take in the loss after one more round, in units of the task; one that is not a number is never the best."""
        if loss < self.loss:
            self.server_round, self.loss = server_round, loss

    def to_json(self) -> dict[str, Any]:
        """For the record, once a round was measured."""
        return {"round": self.server_round, "loss": self.loss}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"server_round": self.server_round, "loss": self.loss}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.server_round, self.loss = int(state["server_round"]), float(state["loss"])
