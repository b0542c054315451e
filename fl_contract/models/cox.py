"""Cox proportional hazards: one risk for each patient, linear in the features or by a network.

Sources: Cox, J. R. Stat. Soc. B 34 (1972); with hidden layers Katzman et al., BMC Med. Res. Methodol. 18 (2018).
"""

import math
from typing import Literal

from pydantic import Field
from torch import nn

from fl_contract.models.architecture import Architecture
from fl_contract.schema import Schema


class CoxSettings(Architecture):
    """A model of the log hazard ratio.

    Attributes:
        hidden_size: Units of each hidden layer.
        num_hidden_layers: Hidden layers; none makes the classic linear model.
    """

    TAKES = frozenset({"table"})
    TASKS = frozenset({"survival"})

    kind: Literal["cox"]
    hidden_size: int = Field(default=32, ge=1, le=4096)
    num_hidden_layers: int = Field(default=0, ge=0, le=8)

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """Linear and tanh layers in turn, ended by a linear one without bias, which would cancel out of the loss.

        The last layer starts at zero, so that every patient starts at the same risk.
        """
        size = math.prod(schema.encoded_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(self.num_hidden_layers):
            layers += [nn.Linear(size, self.hidden_size), nn.Tanh()]
            size = self.hidden_size
        last = nn.Linear(size, num_outputs, bias=False)
        nn.init.zeros_(last.weight)
        return nn.Sequential(*layers, last)
