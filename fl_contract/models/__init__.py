"""The registry of models: one architecture a file, each a settings type that builds it."""

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from fl_contract.models.cox import CoxSettings
from fl_contract.models.logistic import LogisticSettings
from fl_contract.models.mlp import MlpSettings
from fl_contract.models.resnet18 import Resnet18Settings
from fl_contract.models.small_cnn import SmallCnnSettings
from fl_contract.schema import Schema

ModelSettings = Annotated[
    LogisticSettings | MlpSettings | SmallCnnSettings | Resnet18Settings | CoxSettings, Field(discriminator="kind")
]


def build_model(settings: ModelSettings, schema: Schema, *, num_outputs: int, seed: int) -> nn.Module:
    """Build the study's model; the same arguments give the same weights everywhere.

    Guarantees:
        - The process's random state is the same afterwards as before.

    Args:
        settings: Which architecture.
        schema: Of the records that it takes.
        num_outputs: See `fl_contract.tasks.num_outputs`.
        seed: Of the initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed accelerators too
        return settings.build(schema, num_outputs)


def buffer_names(model: nn.Module) -> frozenset[str]:
    """Names in the model's state that are not trained, such as BatchNorm's statistics."""
    return frozenset(model.state_dict()) - {name for name, _ in model.named_parameters()}
