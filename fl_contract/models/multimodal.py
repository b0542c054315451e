"""An encoder for each modality, one joint vector, and a decoder: for tables of several modalities.

Source: Ngiam et al., "Multimodal deep learning", ICML 2011, with networks that are trained from end to end.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fl_contract.models.architecture import Architecture
from fl_contract.schema import Schema, TableSchema


class MultimodalSettings(Architecture):
    """Joins the modalities that ``modality`` of the features names, such as genomic, clinical and medication.

    A hospital without a modality leaves its columns empty. Features with another ``missing`` than ``refuse`` are then
    filled in before this network sees them, so the modality is encoded as that of an average patient. Those with
    ``missing = "refuse"`` keep such a hospital out.

    Attributes:
        hidden_size: Units of the hidden layer of each encoder and of the decoder.
        latent_size: Numbers into which each modality is encoded; the joint vector has as many for each.
    """

    TAKES = frozenset({"table"})

    kind: Literal["multimodal"]
    hidden_size: int = Field(default=32, ge=1, le=4096)
    latent_size: int = Field(default=8, ge=1, le=1024)

    def check_schema(self, schema: Schema) -> None:
        """Refuse a table of one modality, besides what no architecture of its kind takes."""
        super().check_schema(schema)
        if len(modalities := _columns(schema)) < 2:
            raise ValueError(
                f"model.kind={self.kind!r} and features of {sorted(modalities)} only; expected two modalities or more "
                "(schema.features, modality); for one, model.kind = 'mlp'"
            )

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """Encoders in the order in which the features name their modalities, and the decoder."""
        return Multimodal(self, columns=list(_columns(schema).values()), num_outputs=num_outputs)


def _columns(schema: Schema) -> dict[str, list[int]]:
    """Positions of each modality's features in what the network sees of a record."""
    columns: dict[str, list[int]] = {}
    position = 0
    for feature in schema.features if isinstance(schema, TableSchema) else ():
        width = feature.column.num_categories or 1
        columns.setdefault(feature.modality, []).extend(range(position, position + width))
        position += width
    return columns


class Multimodal(nn.Module):
    """The network.

    Args:
        settings: Sizes.
        columns: Of each modality.
        num_outputs: Of the decoder.
    """

    def __init__(self, settings: MultimodalSettings, *, columns: list[list[int]], num_outputs: int) -> None:
        super().__init__()
        self.columns = columns
        self.encoders = nn.ModuleList(
            nn.Sequential(_perceptron(len(each), settings.hidden_size, settings.latent_size), nn.Tanh())
            for each in columns
        )
        self.decoder = _perceptron(len(columns) * settings.latent_size, settings.hidden_size, num_outputs)

    def forward(self, inputs_BF: Tensor) -> Tensor:
        """One row of outputs for each patient."""
        latent = [encode(inputs_BF[:, each]) for encode, each in zip(self.encoders, self.columns, strict=True)]
        outputs: Tensor = self.decoder(torch.cat(latent, dim=1))
        return outputs


def _perceptron(num_inputs: int, hidden_size: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(num_inputs, hidden_size), nn.Tanh(), nn.Linear(hidden_size, num_outputs))
