"""A multi-layer perceptron with bounded activations, which suit clipped gradients."""

import math
from typing import Literal

from pydantic import Field
from torch import nn

from fl_contract.models.architecture import Architecture
from fl_contract.models.encode import CategoryEmbedding
from fl_contract.schema import Schema


class MlpSettings(Architecture):
    """A multi-layer perceptron.

    Attributes:
        hidden_size: Units of each hidden layer.
        num_hidden_layers: Hidden layers.
        norm: ``layer`` after each hidden linear layer, or ``none``.
        embedding_size: Learned numbers for each category feature of a table; 0 gives the network one for each category.
    """

    TAKES = frozenset({"table", "image", "series"})

    kind: Literal["mlp"]
    hidden_size: int = Field(default=32, ge=1, le=4096)
    num_hidden_layers: int = Field(default=1, ge=1, le=8)
    norm: Literal["none", "layer"] = "none"
    embedding_size: int = Field(default=0, ge=0, le=256)

    def check_schema(self, schema: Schema) -> None:
        """Refuse also embeddings where there is nothing to embed."""
        super().check_schema(schema)
        if self.embedding_size and not any(column.num_categories for column in schema.columns):
            raise ValueError(
                f"model.embedding-size={self.embedding_size}; expected 0 for a schema without a feature of categories"
            )

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """Embeddings if there are some; then linear, normalisation and tanh layers in turn, ended by a linear one."""
        size = math.prod(schema.encoded_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        if self.embedding_size:
            num_categories = [column.num_categories for column in schema.columns]
            layers = [CategoryEmbedding(num_categories, self.embedding_size)]
            size = sum(self.embedding_size if num else 1 for num in num_categories)
        for _ in range(self.num_hidden_layers):
            layers += [nn.Linear(size, self.hidden_size)]
            if self.norm == "layer":
                layers += [nn.LayerNorm(self.hidden_size)]
            layers += [nn.Tanh()]
            size = self.hidden_size
        return nn.Sequential(*layers, nn.Linear(size, num_outputs))
