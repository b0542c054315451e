"""The only place where a hospital measures a model on its held-out patients."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_client.preprocessing import Examples
from fl_contract.metrics import Evaluation, Measurement, ScoreHistogram, cells_of_patients
from fl_contract.survival import SurvivalEvaluation
from fl_contract.tasks import class_logits, loss_per_example, predict_classes

BATCH_SIZE = 1024


def evaluate(model: nn.Module, examples: Examples) -> Measurement:
    """Measure a model.

    Args:
        model: Is left in evaluation mode.
        examples: At least one.

    Returns:
        Sums over the examples, in nats and counts; no score of a single patient. For times of follow-up those of
        survival.

    Raises:
        ValueError: The model gives a NaN or an infinite output.
    """
    outputs = _outputs(model, examples)
    if not outputs.isfinite().all():
        raise ValueError("the model's outputs are NaN or infinite; expected finite numbers")
    if examples.labels.dim() == 2:
        return SurvivalEvaluation.of(outputs.squeeze(1), examples.labels)
    losses = loss_per_example(outputs, examples.labels)
    return Evaluation(
        num_examples=len(examples),
        loss_sum=float(losses.sum(dtype=torch.float64)),
        num_correct=int((predict_classes(outputs) == examples.labels).sum()),
        scores=ScoreHistogram.from_logits(_logits(outputs), examples.labels.numpy()),
    )


def contributions(model: nn.Module, examples: Examples) -> NDArray[np.float64]:
    """Each record's part in a measurement that will be summed with noise, see `cells_of_patients`; private.

    Guarantees:
        - Never fails for what the records hold: a coordinator could ask, uncharged and without end, which models'
          outputs overflow for somebody.

    Args:
        model: Is left in evaluation mode.
        examples: At least one.

    Returns:
        [N, cells]; a score that is NaN counts as undecided, an infinite one as certain.
    """
    logits = np.nan_to_num(_logits(_outputs(model, examples)))
    return cells_of_patients(logits, examples.labels.numpy())


def _outputs(model: nn.Module, examples: Examples) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(batch) for batch in examples.inputs.split(BATCH_SIZE)])


def _logits(outputs: Tensor) -> NDArray[np.float64]:
    return class_logits(outputs).numpy().astype(np.float64)
