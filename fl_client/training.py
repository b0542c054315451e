"""The only place where a hospital trains a model on its patients."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fl_client.preprocessing import Examples
from fl_contract.study import TrainingSettings
from fl_contract.tasks.task import Task
from privacy.dp_sgd import train_privately
from privacy.plan import PrivacyPlan
from privacy.units import Units


def make_optimizer(model: nn.Module, settings: TrainingSettings, learning_rate: float) -> torch.optim.Optimizer:
    """The study's optimiser over the model's trainable parameters, with a fresh state."""
    optimizer_class = getattr(torch.optim, settings.optimizer)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = optimizer_class(parameters, lr=learning_rate, **settings.optimizer_options)
    return optimizer


def round_generator(seed: int, site: str, server_round: int) -> torch.Generator:
    """Draws the batches of one hospital's round without privacy; needs no state between rounds.

    Never used for privacy: noise and sampling under differential privacy come from the operating system.
    """
    digest = hashlib.sha256(f"{seed}/{site}/{server_round}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def train(
    model: nn.Module, examples: Examples, task: Task, settings: TrainingSettings, generator: torch.Generator
) -> None:
    """Train in place by mini-batches, each record once an epoch, without differential privacy."""
    optimizer = make_optimizer(model, settings, settings.learning_rate)
    model.train()
    for rows in _batches(len(examples), settings, generator):
        optimizer.zero_grad()
        task.batch_loss(model(examples.inputs[rows]), examples.labels[rows]).backward()
        optimizer.step()


def _batches(num_examples: int, settings: TrainingSettings, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of each step: whole epochs, or as many steps as the study says, over as many epochs as they need."""
    steps_an_epoch = -(-num_examples // settings.batch_size)
    steps = settings.local_steps or settings.local_epochs * steps_an_epoch
    for epoch in range(-(-steps // steps_an_epoch)):
        rows = torch.randperm(num_examples, generator=generator).split(settings.batch_size)
        yield from rows[: steps - epoch * steps_an_epoch]


def train_with_privacy(
    model: nn.Module,
    examples: Examples,
    task: Task,
    units: Units,
    settings: TrainingSettings,
    plan: PrivacyPlan,
    steps: int,
) -> int:
    """Train in place by the plan's noisy steps, as many as the ledger granted.

    Args:
        model: With the weights to start from.
        examples: In the order that ``units`` counts records in.
        task: Of the study.
        units: What the plan protects.
        settings: Optimiser and its rate.
        plan: Of the run.
        steps: Granted for this round.

    Returns:
        Steps run; the only thing said about the training.
    """

    def fetch(rows: Tensor) -> tuple[Tensor, Tensor]:
        return examples.inputs[rows], examples.labels[rows]

    result = train_privately(
        model,
        make_optimizer(model, settings, settings.private_learning_rate or settings.learning_rate),
        plan,
        units,
        fetch,
        task.losses,
        steps,
    )
    return result.steps_run
