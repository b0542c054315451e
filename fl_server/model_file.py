"""The only place that writes and reads a run's model as a file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fl_contract.array_record import Arrays
from fl_contract.errors import SettingError
from fl_server.run_record import write_atomically


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model that was read.

    Attributes:
        arrays: By name.
        sha256: Of the file, in hexadecimal.
    """

    arrays: Arrays
    sha256: str


def write_model(path: Path, model: Arrays) -> None:
    """Replace a model's file in one step; durable when this returns."""
    write_atomically(path, save({name: np.asarray(array, order="C") for name, array in model.items()}))


def read_model(path: Path, like: Arrays) -> ModelFile:
    """Read a model that has exactly the names, shapes and types of another, in its order, and is finite.

    Raises:
        SettingError: The file cannot be read, or an array of it does not fit; names the first.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror}); expected a run's model.safetensors") from error
    try:
        arrays = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise SettingError(f"{path}: is no safetensors file ({type(error).__name__})") from error
    for name, expected in like.items():
        if name not in arrays:
            raise SettingError(f"{path}: array {name!r} is missing; expected the arrays of the study's model")
        found = arrays[name]
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise SettingError(
                f"{path}: array {name!r} has shape {list(found.shape)} and type {found.dtype}; expected "
                f"{list(expected.shape)} and {expected.dtype}, as in the study's model"
            )
        if not np.isfinite(found).all():
            raise SettingError(f"{path}: array {name!r} holds NaN or infinity; expected finite numbers")
    if unknown := sorted(set(arrays) - set(like)):
        raise SettingError(f"{path}: array {unknown[0]!r} is not in the study's model; expected its arrays only")
    return ModelFile(arrays={name: arrays[name] for name in like}, sha256=hashlib.sha256(content).hexdigest())
