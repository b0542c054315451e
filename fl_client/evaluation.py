"""The only place where a hospital measures a model on its held-out patients."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_client.preprocessing import Examples
from fl_contract.metrics.measurement import Measurement
from fl_contract.metrics.noised import cells_of_patients
from fl_contract.tasks.classification import class_logits
from fl_contract.tasks.task import Task

BATCH_SIZE = 1024


def evaluate(model: nn.Module, examples: Examples, task: Task) -> Measurement:
    """Measure a model.

    Args:
        model: Is left in evaluation mode.
        examples: At least one.
        task: Of the study.

    Returns:
        Sums over the examples, in nats and counts; no score of a single patient.

    Raises:
        ValueError: The model gives a NaN or an infinite output.
    """
    outputs = _outputs(model, examples)
    if not outputs.isfinite().all():
        raise ValueError("the model's outputs are NaN or infinite; expected finite numbers")
    return task.measure(outputs, examples.labels)


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
    logits = np.nan_to_num(class_logits(_outputs(model, examples)).numpy().astype(np.float64))
    return cells_of_patients(logits, examples.labels.numpy())


def _outputs(model: nn.Module, examples: Examples) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(batch) for batch in examples.inputs.split(BATCH_SIZE)])
