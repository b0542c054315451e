"""A study's own network, by the dotted path of the function that builds it.

The path comes from the study's file; no run can override it, and a hospital refuses a path that its own policy does not
name before anything is imported.
"""

import importlib
from typing import Literal, get_args

from pydantic import Field
from torch import nn

from fl_contract.errors import SettingError
from fl_contract.models.architecture import Architecture
from fl_contract.schema import Schema, Task


class OwnModelSettings(Architecture):
    """Code of one's own; see ``docs/own-model.md``.

    Attributes:
        path: ``package.module:function``, installed where the model is built: at the coordinator and every hospital.
            Called with the schema, the number of outputs and the options, it gives a `torch.nn.Module`.
        options: Further arguments of the function, by name.
    """

    TAKES = frozenset({"table", "image", "series", "triples"})
    TASKS = frozenset(get_args(Task))

    kind: Literal["python"]
    path: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    options: dict[str, str | int | float | bool | list[str | int | float | bool]] = Field(default_factory=dict)

    def build(self, schema: Schema, num_outputs: int) -> nn.Module:
        """What the function gives.

        Raises:
            SettingError: It cannot be imported, or gives something else.
        """
        module, _, name = self.path.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise SettingError(
                f"model.path={self.path!r}; cannot be imported ({error}); install the package that has it beside "
                "Consilium, at the coordinator and at every hospital"
            ) from error
        model = function(schema, num_outputs, **self.options)
        if not isinstance(model, nn.Module):
            raise SettingError(f"model.path={self.path!r}; gave a {type(model).__name__}; expected a torch.nn.Module")
        return model
