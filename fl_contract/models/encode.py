"""Layers that turn categories, which come as positions, into numbers that a network can use."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class OneHot(nn.Module):
    """Gives each category of a feature a column, 1 where the record has it; numbers stay as they are, in their places.

    Args:
        num_categories: Of each feature; 0 for a number.
    """

    def __init__(self, num_categories: Sequence[int]) -> None:
        super().__init__()
        source = [feature for feature, num in enumerate(num_categories) for _ in range(num or 1)]
        category = [each for num in num_categories for each in (range(num) if num else [-1])]
        self.register_buffer("source", torch.tensor(source), persistent=False)
        self.register_buffer("category", torch.tensor(category), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, features] to [B, numbers + categories of all category features]."""
        category = self.get_buffer("category")
        spread = inputs[:, self.get_buffer("source")]
        return torch.where(category < 0, spread, (spread == category).to(inputs.dtype))


class CategoryEmbedding(nn.Module):
    """Gives each category feature a few learned numbers in place of its one-hot columns; numbers come first.

    A linear layer without bias on one-hot columns is an embedding, and is a layer that private training knows.

    Args:
        num_categories: Of each feature; 0 for a number.
        size: Numbers for each category feature.
    """

    def __init__(self, num_categories: Sequence[int], size: int) -> None:
        super().__init__()
        self.widths = [num or 1 for num in num_categories]
        self.is_category = [num > 0 for num in num_categories]
        self.embeddings = nn.ModuleList(nn.Linear(num, size, bias=False) for num in num_categories if num)

    def forward(self, encoded: Tensor) -> Tensor:
        """`OneHot`'s columns [B, ...] to [B, numbers + size * category features]."""
        blocks = list(zip(encoded.split(self.widths, dim=1), self.is_category, strict=True))
        numbers = [block for block, is_category in blocks if not is_category]
        one_hot = [block for block, is_category in blocks if is_category]
        embedded = [embed(block) for embed, block in zip(self.embeddings, one_hot, strict=True)]
        return torch.cat([*numbers, *embedded], dim=1)
