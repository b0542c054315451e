"""The only place that says which arrays of a network are its normalisation, and which its head."""

from torch import nn

from fl_contract.errors import SettingError

NORMALISATION = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
)


def norm_names(model: nn.Module) -> frozenset[str]:
    """Names of the weights and the statistics of all normalisation layers.

    Raises:
        SettingError: There are none.

    >>> sorted(norm_names(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))))
    ['1.bias', '1.weight']
    """
    layers = [name for name, each in model.named_modules(remove_duplicate=False) if isinstance(each, NORMALISATION)]
    names = frozenset(name for name in model.state_dict() if name.rpartition(".")[0] in layers)
    if not names:
        raise SettingError(
            "the model has no normalisation layer that could stay at a hospital; choose a model that has, such as one "
            "with model.norm = 'group', or another strategy.name"
        )
    return names


def head_names(model: nn.Module, head: str) -> frozenset[str]:
    """Names of the head's arrays.

    Args:
        model: As `fl_contract.study.Study.build_model` gives it.
        head: Name of the layer, or of the part of the network, that is the head; if it is empty the last layer with
            weights, in the order in which the network holds its layers.

    Raises:
        SettingError: The model has no such layer, or no weights besides those of the head.

    >>> sorted(head_names(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), ""))
    ['2.bias', '2.weight']
    """
    layers = [name for name, layer in model.named_modules() if any(True for _ in layer.parameters(recurse=False))]
    names = frozenset(name for name in model.state_dict() if name.startswith(f"{head or layers[-1]}."))
    if not names:
        raise SettingError(f"strategy.head={head!r} is no layer with weights of the model; expected one of {layers}")
    if names.issuperset(name for name, _ in model.named_parameters()):
        raise SettingError(
            f"strategy.head={head!r}; all weights of the model are in its head, so that hospitals would share nothing; "
            "choose a model of more layers, such as 'mlp', or another strategy.name"
        )
    return names
