"""The only place that reads Flower's config maps at the coordinator."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from flwr.app import Context

from fl_contract.errors import SettingError
from fl_contract.run_folder import run_folder
from fl_contract.study import Study
from fl_contract.study_file import STUDIES, Scalar, study_from_run_config
from fl_server.starting_point import EarlierModel, Kind

WEIGHTS = "weights"
"""Folder below the working directory, if a run names no other."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run was started with.

    Attributes:
        study: With the run's overrides.
        folder: Of this run's variant.
        resume: Go on from the folder's checkpoint.
        weights: Folder of the files that studies name as ``model.weights``.
        earlier: The earlier model that it starts from; None if it starts as the study says.
    """

    study: Study
    folder: Path
    resume: bool
    weights: Path
    earlier: EarlierModel | None


def read_run_settings(context: Context) -> RunSettings:
    """Read a run's settings.

    Raises:
        SettingError: The study is unknown, or a key breaks a rule.
    """
    study = study_from_run_config(context.run_config, directory=Path(str(context.node_config.get("studies", STUDIES))))
    return RunSettings(
        study=study,
        folder=run_folder(context.run_config, context.run_id) / variant_of(study),
        resume=bool(context.run_config.get("resume", False)),
        weights=Path(str(context.run_config.get("weights-folder") or WEIGHTS)),
        earlier=_read_earlier(context.run_config),
    )


def _read_earlier(run_config: Mapping[str, Scalar]) -> EarlierModel | None:
    named = {kind: str(run_config[kind]) for kind in get_args(Kind) if run_config.get(kind)}
    if len(named) > 1:
        raise SettingError(f"{' and '.join(f'{kind}={path!r}' for kind, path in named.items())}; expected one of them")
    return next((EarlierModel(kind=kind, path=Path(path)) for kind, path in named.items()), None)


def variant_of(study: Study) -> str:
    """What a run is compared as, and its folder's name: ``private``, ``federated``, ``pooled`` or ``local-<site>``."""
    trainers = study.simulation.trainers
    if trainers == "all":
        return "private" if study.is_private else "federated"
    return "pooled" if trainers == "pooled" else f"local-{trainers}"
