"""The only place that says which arrays of a study's model travel between the coordinator and hospitals."""

from torch import nn

from fl_contract.study import Study


def exchanged_names(study: Study, model: nn.Module) -> tuple[str, ...]:
    """Names of the arrays that requests and replies hold, in the model's order.

    All others stay where they are: at the coordinator as in `Study.build_model`, at a hospital as it keeps them. Where
    the result is an ensemble, a request to measure holds these of every member, as in `Study.build_ensemble`.
    """
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    stays = kept_names(study, model) | (frozen if study.model.trainable != "all" else set())
    return tuple(name for name in model.state_dict() if name not in stays)


def kept_names(study: Study, model: nn.Module) -> frozenset[str]:
    """Names of the arrays that every hospital has for itself, none where all measure one model.

    Raises:
        SettingError: The model has none of those that the algorithm is about.
    """
    return study.strategy.kept_names(model) if study.is_personal else frozenset()
