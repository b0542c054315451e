"""The only place that reads a file of weights that a run starts from, at either end."""

import hashlib
import io
import pickle
from logging import INFO
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from flwr.supercore import log
from torch import Tensor, nn

from fl_contract.errors import SettingError
from fl_contract.models import PretrainableSettings
from fl_contract.models.pretrained import WeightsFile, fit_weights
from fl_contract.study import Study


def load_initial_weights(model: nn.Module, study: Study, folder: Path) -> None:
    """Put the weights that the study starts from into its model; nothing if it names none.

    Args:
        model: Of the study, as `Study.build_model` made it; changed in place.
        study: Which file, if any.
        folder: That holds it.

    Raises:
        SettingError: The file is absent or another one, or its arrays do not fit.
    """
    if not isinstance(study.model, PretrainableSettings) or study.model.weights is None:
        return
    file = study.model.weights
    left_out = fit_weights(model, _read(folder / file.file, file), study.model.LAYOUT)
    log(INFO, "The model starts from %s; left out of it: %s", file.file, ", ".join(left_out) or "nothing")


def _read(path: Path, file: WeightsFile) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingError(
            f"model.weights.file={file.file!r}: {path} cannot be read ({error.strerror}); put the file there, or name "
            "its folder as weights-folder in the run's settings, at a hospital in its site.toml"
        ) from error
    if (sha256 := hashlib.sha256(content).hexdigest()) != file.sha256:
        raise SettingError(f"{path}: its SHA-256 is {sha256}; expected model.weights.sha256={file.sha256!r}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(content)
        arrays = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise SettingError(f"{path}: cannot be read as weights ({type(error).__name__})") from error
    if not isinstance(arrays, dict) or not all(isinstance(array, Tensor) for array in arrays.values()):
        raise SettingError(f"{path}: expected arrays by name, as torch.save(model.state_dict()) writes them")
    return arrays
