"""A hospital imports code for a study only if its own policy names that code, whatever a coordinator asks for."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fl_client.audit import attack_model
from fl_client.settings import read_site_settings
from fl_client.site import open_sites
from fl_contract.errors import RefusalCode, RefusalError, SettingError
from fl_contract.messages import PLAN, ROSTER, STATISTICS, TRAIN
from fl_contract.study import Study
from fl_contract.study_file import OVERRIDABLE_KEYS, STUDIES, Scalar, study_from_run_config

MODULE = "somebodys_network"
PATH = f"{MODULE}:build"
CODE = """
import math
from torch import nn

def build(schema, num_outputs, *, size=4):
    return nn.Sequential(nn.Linear(math.prod(schema.input_shape), size), nn.Tanh(), nn.Linear(size, num_outputs))
"""


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """The breast-cancer study with somebody's own network."""
    text = (STUDIES / "breast-cancer.toml").read_text()
    kind, rest = text.split("[model]\n")[0], text.split("[model]\n")[1].split("\n\n", 1)[1]
    folder = tmp_path / "studies"
    folder.mkdir()
    model = f'[model]\nkind = "python"\npath = "{PATH}"\noptions = {{ size = 3 }}\n\n'
    (folder / "breast-cancer.toml").write_text(kind + model + rest)
    return folder


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody's package is there, and has not been imported."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / f"{MODULE}.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(packages))
    importlib.invalidate_caches()
    sys.modules.pop(MODULE, None)
    yield
    sys.modules.pop(MODULE, None)


@pytest.fixture
def ask_about_it(
    ask: Callable[..., Message],
    study_of: Callable[..., Study],
    write_site_file: Callable[..., Path],
    studies: Path,
) -> Callable[..., Message]:
    """Asks a real hospital about the study."""

    def send(kind: str, policy: dict[str, Any], **options: Any) -> Message:
        path = write_site_file("st-anna", **policy)
        study = study_of(directory=studies)
        node_config = {"site-file": str(path), "studies": str(studies)}
        return ask(kind, site="st-anna", node_config=node_config, fingerprint=study.fingerprint, **options)

    return send


@pytest.mark.parametrize("allowed", [None, "[]", '["another:build"]', f'["{MODULE}"]', f'["{MODULE}:other"]'])
@pytest.mark.parametrize("kind", [PLAN, TRAIN, STATISTICS, "evaluate"])
def test_code_that_the_policy_does_not_name_is_refused_before_it_is_imported(
    ask_about_it: Callable[..., Message], kind: str, allowed: str | None
) -> None:
    policy = {} if allowed is None else {"python-models": allowed}

    reply = ask_about_it(kind, policy, server_round=1)

    assert RefusalCode(reply.error.code) is RefusalCode.POLICY
    assert MODULE not in sys.modules


def test_the_names_of_hospitals_are_told_without_importing_anything(ask_about_it: Callable[..., Message]) -> None:
    reply = ask_about_it(ROSTER, {})

    assert not reply.has_error()
    assert MODULE not in sys.modules


def test_code_that_the_policy_names_is_built_and_checked_for_privacy(ask_about_it: Callable[..., Message]) -> None:
    reply = ask_about_it(PLAN, {"python-models": f'["another:build", "{PATH}"]'})

    assert not reply.has_error()
    assert MODULE in sys.modules


def test_an_audit_at_the_hospital_follows_the_same_policy(
    write_site_file: Callable[..., Path], study_of: Callable[..., Study], studies: Path, tmp_path: Path
) -> None:
    study = study_of(directory=studies)

    with pytest.raises(RefusalError, match=r"policy.python-models allows"):
        attack_model(study, write_site_file(), tmp_path / "model.safetensors")

    assert MODULE not in sys.modules


@pytest.mark.parametrize("key", ["model.path", "model.weights", "model.weights.file", "model.weights.sha256"])
def test_no_run_can_set_which_code_or_file_is_loaded(key: str, studies: Path) -> None:
    assert key not in OVERRIDABLE_KEYS
    study = study_from_run_config({"study": "breast-cancer", key: "os:system"}, directory=studies)

    assert study.model.path == PATH  # type: ignore[union-attr]


def test_a_run_cannot_make_another_study_import_code() -> None:
    with pytest.raises(SettingError, match=r"model\.path is missing"):
        study_from_run_config({"study": "breast-cancer", "model.kind": "python", "model.path": "os:system"})


def test_a_virtual_hospital_allows_what_its_study_says(studies: Path, tmp_path: Path) -> None:
    run_config: dict[str, Scalar] = {"study": "breast-cancer", "out": str(tmp_path / "out")}
    node_config: dict[str, Scalar] = {"partition-id": 0, "num-partitions": 4, "studies": str(studies)}

    (site,) = open_sites(Context(1, 1, node_config, RecordDict(), run_config)).values()

    assert site.settings.policy.python_models == (PATH,)
    assert read_site_settings(site.folder / "site.toml") == site.settings
    assert MODULE not in sys.modules
