"""Link prediction: which entity completes a fact of a knowledge graph.

Shape legend: B = facts in a batch, E = entities.
"""

import torch.nn.functional as F
from torch import Tensor

from fl_contract.metrics.link_prediction import LinkEvaluation
from fl_contract.tasks.task import Task


class LinkPrediction(Task):
    """A score for each entity as the tail, [B, E]. Labels are the true ones' positions, int64 [B]."""

    MEASUREMENT = LinkEvaluation

    def num_outputs(self) -> int:
        """One an entity."""
        return len(self._schema.classes)

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the true tail among all entities, in nats (Lacroix et al., ICML 35, 2018, section 3.2)."""
        return F.cross_entropy(outputs, labels, reduction="none")

    def measure(self, outputs: Tensor, labels: Tensor) -> LinkEvaluation:
        """Loss and ranks."""
        return LinkEvaluation.of(
            ranks_of(outputs, labels).numpy(),
            loss_sum=float(self.losses(outputs.double(), labels).sum()),
        )


def ranks_of(outputs: Tensor, labels: Tensor) -> Tensor:
    """The true tail's rank among all entities, float64 [B], 1 being the best.

    Entities with the same score share the mean of their ranks: a model that scores all alike would have every fact at
    rank 1 otherwise (Berrendorf et al., arXiv 2002.06914).

    >>> import torch
    >>> ranks_of(torch.tensor([[0.5, 2.0, 0.5, 0.1]]), torch.tensor([2])).tolist()
    [2.5]
    """
    true = outputs.gather(1, labels.unsqueeze(1))
    better, same = (outputs > true).sum(dim=1), (outputs == true).sum(dim=1)
    return better.double() + (same.double() + 1) / 2
