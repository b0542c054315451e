"""The only place that decides by its layers whether a model can be trained privately.

What a layer list cannot show, a loss or a hand-written layer that couples records, `privacy.dp_sgd` checks as it runs.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from privacy.errors import UnsupportedModelError


def check_dp_compatible(model: nn.Module) -> None:
    """Raise `UnsupportedModelError` if a layer breaks per-record clipping or stores exact data.

    Guarantees:
        - Refuses every BatchNorm: with or without trainable weights, frozen, in evaluation mode, and subclasses. Opacus
          itself looks at trainable layers only, and misses those that keep exact means of the data in buffers.
        - Refuses InstanceNorm with running statistics, embeddings that renormalise the rows a batch used, trainable
          layers with buffers, a model without trainable parameters, and what Opacus's validator refuses.
        - Does not depend on train or evaluation mode, and changes nothing.

    Args:
        model: The bare model, not wrapped by Opacus.

    >>> check_dp_compatible(nn.Sequential(nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.Linear(8, 2)))
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UnsupportedModelError(f"model {type(model).__name__} has no trainable parameter; expected at least one")
    for path, layer in model.named_modules():
        problem = _find_problem(layer)
        if problem:
            raise UnsupportedModelError(f"layer {path or '(the model itself)'!r} is {type(layer).__name__}: {problem}")


def _find_problem(layer: nn.Module) -> str | None:
    """Say which rule the layer breaks and what to use instead; None if it breaks none.

    Opacus takes seconds to import, and no run without privacy comes here.
    """
    if isinstance(layer, _BatchNorm):
        return (
            "it mixes the records of a batch and stores exact means of the data, also when frozen, in train mode; "
            "use GroupNorm or LayerNorm"
        )
    if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
        return "running statistics are exact means of the data; use track_running_stats=False or GroupNorm"
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
        return "max_norm rescales the rows that a batch used, without noise; use max_norm=None"
    if not any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
        return None
    if any(True for _ in layer.buffers(recurse=False)):
        return "a trainable layer's buffers could leave the site without noise; keep buffers in a layer of their own"
    from opacus.validators import ModuleValidator

    for refused_type in ModuleValidator.VALIDATORS:
        if isinstance(layer, refused_type) and ModuleValidator.VALIDATORS[refused_type](layer):
            return f"no per-record gradients; use {_ALTERNATIVES.get(refused_type, 'another layer')}"
    return None


_ALTERNATIVES = {
    nn.LSTM: "opacus.layers.DPLSTM",
    nn.GRU: "opacus.layers.DPGRU",
    nn.MultiheadAttention: "opacus.layers.DPMultiheadAttention",
}
