"""The only place where a hospital measures a model on its held-out patients."""

from collections.abc import Iterator

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
"""Most records in a batch."""

BATCH_NUMBERS = 2**22
"""Most numbers of the records in a batch: an image has many, and a network keeps several times as many of each."""


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
    batches = _batches(model, examples)
    if task.IS_OF_PAIRS:
        batches = iter([(torch.cat([outputs for outputs, _ in batches]), examples.labels)])
    return task.MEASUREMENT.merge(_measure(task, outputs, labels) for outputs, labels in batches)


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
    logits = np.concatenate([class_logits(outputs).numpy() for outputs, _ in _batches(model, examples)])
    return cells_of_patients(np.nan_to_num(logits.astype(np.float64)), examples.labels.numpy())


def _measure(task: Task, outputs: Tensor, labels: Tensor) -> Measurement:
    if not outputs.isfinite().all():
        raise ValueError("the model's outputs are NaN or infinite; expected finite numbers")
    return task.measure(outputs, labels)


def _batches(model: nn.Module, examples: Examples) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs and labels, some records at a time."""
    size = min(BATCH_SIZE, max(1, BATCH_NUMBERS // examples.inputs[0].numel()))
    model.eval()
    with torch.no_grad():
        for inputs, labels in zip(examples.inputs.split(size), examples.labels.split(size), strict=True):
            yield model(inputs), labels
