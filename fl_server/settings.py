"""The only place that reads Flower's config maps at the coordinator."""

from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context

from fl_contract.run_folder import run_folder
from fl_contract.study import STUDIES, Study, study_from_run_config

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
    """

    study: Study
    folder: Path
    resume: bool
    weights: Path


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
    )


def variant_of(study: Study) -> str:
    """What a run is compared as, and its folder's name: ``private``, ``federated``, ``pooled`` or ``local-<site>``."""
    trainers = study.simulation.trainers
    if trainers == "all":
        return "private" if study.is_private else "federated"
    return "pooled" if trainers == "pooled" else f"local-{trainers}"
