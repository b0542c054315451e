"""The only place that says which arrays of a study's model travel between the coordinator and hospitals."""

from torch import nn

from fl_contract.study import Study


def exchanged_names(study: Study, model: nn.Module) -> tuple[str, ...]:
    """Names of the arrays that requests and replies hold, in the model's order.

    All others stay where they are: at the coordinator as in `Study.build_model`, at a hospital as it keeps them.
    """
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    stays = frozen if study.model.trainable != "all" else set()
    return tuple(name for name in model.state_dict() if name not in stays)
