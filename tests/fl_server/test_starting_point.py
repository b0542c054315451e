"""A run starts from an earlier model only if it fits exactly, and the record says which it was."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_contract.array_record import Arrays
from fl_contract.errors import SettingError
from fl_contract.study_file import load_study
from fl_server.model_file import read_model, write_model
from fl_server.starting_point import EarlierModel

STUDY = load_study("breast-cancer", overrides={"privacy.mechanism": "none"})
LIKE: Arrays = {"weight": np.zeros((2, 3), np.float32), "steps": np.array(0)}
OTHER: Arrays = {"weight": np.full((2, 3), 0.5, np.float32), "steps": np.array(7)}


def write_run(out: Path, *, model: Arrays = OTHER, **header: Any) -> Path:
    folder = out / "federated"
    folder.mkdir(parents=True)
    settings = STUDY.to_table()
    content = {"run": "ab", "study": STUDY.name, "status": "completed", "settings": settings} | header
    (folder / "run.json").write_text(json.dumps(content))
    write_model(folder / "model.safetensors", model)
    return folder


def read(kind: Any, path: Path) -> tuple[Arrays, dict[str, Any]]:
    return EarlierModel(kind=kind, path=path).read(STUDY, variant="federated", like=LIKE)


@pytest.mark.parametrize("kind", ["warm-start", "continue-from"])
@pytest.mark.parametrize("place", ["", "federated"], ids=["of the whole", "of the variant"])
def test_a_run_s_folder_gives_its_model_and_the_record_names_both(tmp_path: Path, kind: str, place: str) -> None:
    folder = write_run(tmp_path)

    arrays, origin = read(kind, tmp_path / place)

    file = folder / "model.safetensors"
    assert list(arrays) == list(LIKE)
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in OTHER.items()
    }
    assert origin == {
        "kind": kind,
        "file": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "run": "ab",
        "study": "breast-cancer",
    }


def test_a_file_alone_is_enough_for_a_warm_start(tmp_path: Path) -> None:
    write_model(tmp_path / "theirs.safetensors", OTHER)

    arrays, origin = read("warm-start", tmp_path / "theirs.safetensors")

    assert arrays["steps"] == 7
    assert (origin["run"], origin["study"]) == (None, None)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"weight": None}, "array 'weight' is missing; expected the arrays of the study's model"),
        (
            {"weight": np.zeros((3, 2), np.float32)},
            "array 'weight' has shape [3, 2] and type float32; expected [2, 3] and float32, as in the study's model",
        ),
        (
            {"weight": np.zeros((2, 3), np.float64)},
            "array 'weight' has shape [2, 3] and type float64; expected [2, 3] and float32, as in the study's model",
        ),
        (
            {"weight": np.full((2, 3), np.nan, np.float32)},
            "array 'weight' holds NaN or infinity; expected finite numbers",
        ),
        ({"bias": np.zeros(1)}, "array 'bias' is not in the study's model; expected its arrays only"),
    ],
    ids=["missing", "shape", "type", "not finite", "unknown"],
)
def test_a_model_that_does_not_fit_is_refused_by_its_first_array(
    tmp_path: Path, changed: dict[str, Any], rule: str
) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, {name: array for name, array in (OTHER | changed).items() if array is not None})

    with pytest.raises(SettingError) as caught:
        read_model(path, LIKE)

    assert str(caught.value) == f"{path}: {rule}"


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\xff" * 64])
def test_a_file_that_is_absent_or_damaged_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingError, match=r"cannot be read|is no safetensors file"):
        read_model(path, LIKE)


@pytest.mark.parametrize(
    ("header", "rule"),
    [
        ({"status": "running"}, "its status is 'running'; expected a run that has ended"),
        ({"status": "failed"}, "its status is 'failed'; expected a run that has ended"),
        ({"study": "digits"}, "is a run of study 'digits'; expected one of 'breast-cancer'"),
        (
            {"settings": STUDY.to_table() | {"model": {"kind": "mlp"}}},
            "its study has another [model]; expected the same",
        ),
        ({"settings": STUDY.to_table() | {"schema": {}}}, "its study has another [schema]; expected the same"),
    ],
    ids=["running", "failed", "study", "model", "schema"],
)
def test_only_an_ended_run_of_the_same_study_is_continued(tmp_path: Path, header: dict[str, Any], rule: str) -> None:
    write_run(tmp_path, **header)

    with pytest.raises(SettingError) as caught:
        read("continue-from", tmp_path)
    assert rule in str(caught.value)
    read("warm-start", tmp_path)  # the coordinator may all the same, as long as the arrays fit


@pytest.mark.parametrize("kind", ["warm-start", "continue-from"])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SettingError, match=rf"{kind}='.*'; expected the folder of a run, with federated/run\.json"):
        read(kind, tmp_path)


def test_a_model_file_alone_is_no_run_to_continue(tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors", OTHER)

    with pytest.raises(SettingError, match="expected the folder of a run"):
        read("continue-from", tmp_path / "model.safetensors")
