"""The only place where a hospital measures a model on its held-out patients."""

import numpy as np
import torch
from torch import nn

from fl_client.preprocessing import Examples
from fl_contract.metrics import Evaluation, ScoreHistogram
from fl_contract.tasks import class_logits, loss_per_example, predict_classes

BATCH_SIZE = 1024


def evaluate(model: nn.Module, examples: Examples) -> Evaluation:
    """Measure a model.

    Args:
        model: Is left in evaluation mode.
        examples: At least one.

    Returns:
        Sums over the examples, in nats and counts; no score of a single patient.

    Raises:
        ValueError: The model gives a NaN or an infinite output.
    """
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(batch) for batch in examples.inputs.split(BATCH_SIZE)])
        if not outputs.isfinite().all():
            raise ValueError("the model's outputs are NaN or infinite; expected finite numbers")
        losses = loss_per_example(outputs, examples.labels)
        return Evaluation(
            num_examples=len(examples),
            loss_sum=float(losses.sum(dtype=torch.float64)),
            num_correct=int((predict_classes(outputs) == examples.labels).sum()),
            scores=ScoreHistogram.from_logits(
                class_logits(outputs).numpy().astype(np.float64), examples.labels.numpy()
            ),
        )
