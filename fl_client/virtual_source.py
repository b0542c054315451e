"""Which data a virtual hospital of a simulation holds: the only place that turns ``[simulation]`` into a source."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_client.source_settings import (
    MedMnistSourceSettings,
    MnistSourceSettings,
    PublicHospitalsSourceSettings,
    SourceSettings,
)
from fl_contract.errors import SettingError
from fl_contract.study import Study

VirtualSource = SourceSettings | MedMnistSourceSettings | MnistSourceSettings | PublicHospitalsSourceSettings

BREASTMNIST: Mapping[str, Any] = {"file": "breastmnist.npz", "classes": ["malignant", "benign"]}
"""The file's labels 0 and 1, as MedMNIST defines them; normal breasts count as benign."""


def virtual_source(name: str, study: Study) -> VirtualSource:
    """One virtual hospital's part of the study's data, or all parts for ``pooled``.

    Raises:
        SettingError: The study has no data for virtual hospitals, or does not say where their files are.
    """
    simulation = study.simulation
    if simulation.dataset is None:
        raise SettingError("simulation.dataset is missing; this study runs at hospitals with a site.toml of their own")
    if simulation.needs_files and not simulation.data:
        raise SettingError(f"simulation.data is missing; expected the folder of the files of {simulation.dataset}")
    parts = {
        "parts": list(range(simulation.num_sites)) if name == "pooled" else [simulation.site_names.index(name)],
        "num-parts": simulation.num_sites,
        "alpha": simulation.alpha,
        "seed": study.seed,
    }
    folder = Path(simulation.data).resolve()
    if simulation.has_hospitals:
        public = {"kind": "public-hospitals", "dataset": simulation.dataset, "folder": str(folder)}
        return PublicHospitalsSourceSettings.parse({**public, "parts": parts["parts"]}, origin=name)
    if simulation.dataset == "mnist":
        return MnistSourceSettings.parse({"kind": "mnist", "folder": str(folder), **parts}, origin=name)
    if simulation.dataset == "breastmnist":
        file = {**BREASTMNIST, "file": str(folder / BREASTMNIST["file"])}
        return MedMnistSourceSettings.parse({"kind": "medmnist", **file, **parts}, origin=name)
    built_in = {"kind": "built-in", "dataset": simulation.dataset, "test-fraction": simulation.test_fraction}
    return SourceSettings.parse({**built_in, **parts}, origin=name)
