"""The registry of models: one architecture a file, each a settings type that builds it."""

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from fl_contract.models.cnn1d import Cnn1dSettings
from fl_contract.models.cox import CoxSettings
from fl_contract.models.densenet import DensenetSettings
from fl_contract.models.efficientnet import EfficientnetSettings
from fl_contract.models.gru import GruSettings
from fl_contract.models.linear import LinearSettings, LogisticSettings
from fl_contract.models.mlp import MlpSettings
from fl_contract.models.multimodal import MultimodalSettings
from fl_contract.models.own_model import OwnModelSettings
from fl_contract.models.partial_training import train_part
from fl_contract.models.resnet import ResnetSettings
from fl_contract.models.small_cnn import SmallCnnSettings
from fl_contract.models.transe import TransESettings
from fl_contract.models.unet import UnetSettings
from fl_contract.models.vit import VitSettings
from fl_contract.schema import Schema

PretrainableSettings = ResnetSettings | DensenetSettings | EfficientnetSettings | VitSettings
"""Architectures that can start from a file of weights."""

ModelSettings = Annotated[
    LogisticSettings
    | LinearSettings
    | MlpSettings
    | CoxSettings
    | MultimodalSettings
    | SmallCnnSettings
    | PretrainableSettings
    | UnetSettings
    | Cnn1dSettings
    | GruSettings
    | TransESettings
    | OwnModelSettings,
    Field(discriminator="kind"),
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
        network = settings.build(schema, num_outputs)
        train_part(network, settings.trainable, rank=settings.lora_rank, alpha=settings.lora_alpha)
        return network


def buffer_names(model: nn.Module) -> frozenset[str]:
    """Names in the model's state that are not trained, such as BatchNorm's statistics."""
    return frozenset(model.state_dict()) - {name for name, _ in model.named_parameters()}
