"""The only place where a hospital trains a model on its patients."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fl_client.preprocessing import Examples
from fl_contract.study_tables import TrainingSettings
from fl_contract.tasks.task import Task
from privacy.dp_sgd import train_privately
from privacy.plan import PrivacyPlan
from privacy.units import Units
from strategies.client_half import ClientHalf


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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a hospital trains.

    Attributes:
        task: Of the study.
        settings: Optimiser, batches and steps.
        half: The algorithm's client half; none trains as FedAvg.
        steps: Of a round, where the algorithm fixes them; else the study's epochs, or its own number. Under
            differential privacy the plan says it instead.
        is_full_batch: Whether a round without privacy is one step by the gradient over all records.
    """

    task: Task
    settings: TrainingSettings
    half: ClientHalf | None = None
    steps: int | None = None
    is_full_batch: bool = False

    def make_optimizer(self, model: nn.Module, learning_rate: float, num_steps: int) -> torch.optim.Optimizer:
        """The study's optimiser for so many steps, which the algorithm's term joins."""
        optimizer = make_optimizer(model, self.settings, learning_rate)
        if self.half is not None:
            self.half.attach(optimizer, num_steps=num_steps)
            if (personal := self.half.personal) is not None:
                self.half.attach_personal(make_optimizer(personal.train(), self.settings, learning_rate))
        return optimizer


def train(model: nn.Module, examples: Examples, recipe: Recipe, generator: torch.Generator) -> None:
    """Train in place by mini-batches, each record once an epoch, without differential privacy."""
    settings = recipe.settings
    steps = 1 if recipe.is_full_batch else recipe.steps or settings.steps_for(len(examples))
    optimizer = recipe.make_optimizer(model, settings.learning_rate, steps)
    model.train()
    if recipe.is_full_batch:
        _take_full_step(model, examples, recipe, optimizer)
        return
    for rows in _batches(len(examples), settings.batch_size, steps, generator):
        loss_of = partial(_loss_of, recipe.task, examples.inputs[rows], examples.labels[rows])
        if recipe.half is not None:
            recipe.half.step_beside(loss_of)
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def _take_full_step(model: nn.Module, examples: Examples, recipe: Recipe, optimizer: torch.optim.Optimizer) -> None:
    """One step by the mean gradient over all records; only a batch of them is in the model at a time.

    A loss that holds records against each other takes them all at once.
    """
    optimizer.zero_grad()
    size = len(examples) if recipe.task.IS_OF_PAIRS else recipe.settings.batch_size
    for rows in torch.arange(len(examples)).split(size):
        loss = recipe.task.batch_loss(model(examples.inputs[rows]), examples.labels[rows])
        (loss * (len(rows) / len(examples))).backward()
    optimizer.step()


def _loss_of(task: Task, inputs: Tensor, labels: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
    return task.batch_loss(network(inputs), labels)


def _batches(num_examples: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of each step, over as many passes as they need."""
    steps_an_epoch = -(-num_examples // batch_size)
    for epoch in range(-(-steps // steps_an_epoch)):
        rows = torch.randperm(num_examples, generator=generator).split(batch_size)
        yield from rows[: steps - epoch * steps_an_epoch]


def train_with_privacy(
    model: nn.Module, examples: Examples, units: Units, recipe: Recipe, plan: PrivacyPlan, steps: int
) -> int:
    """Train in place by the plan's noisy steps, as many as the ledger granted.

    Args:
        model: With the weights to start from.
        examples: In the order that ``units`` counts records in.
        units: What the plan protects.
        recipe: Task, optimiser and algorithm.
        plan: Of the run.
        steps: Granted for this round.

    Returns:
        Steps run; the only thing said about the training.
    """

    def fetch(rows: Tensor) -> tuple[Tensor, Tensor]:
        return examples.inputs[rows], examples.labels[rows]

    settings = recipe.settings
    optimizer = recipe.make_optimizer(model, settings.private_learning_rate or settings.learning_rate, steps)
    return train_privately(model, optimizer, plan, units, fetch, recipe.task.losses, steps).steps_run
