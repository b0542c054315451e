"""What ``docs/own-model.md`` tells a person to write runs as it stands."""

import importlib
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fl_client.settings import PolicySettings
from fl_contract.study_file import STUDIES
from fl_server.cli import app

TEXT = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text(encoding="utf-8")


def block(language: str, start: str = "") -> str:
    (found,) = re.findall(rf"```{language}\n({re.escape(start)}.*?)```", TEXT, flags=re.DOTALL)
    return str(found)


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tutorial's package, where Python finds it."""
    package = tmp_path / "packages" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "my_model.py").write_text(block("python"))
    monkeypatch.syspath_prepend(str(package.parent))
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


def study_text() -> str:
    """The breast-cancer study with the tutorial's ``[model]``, and few rounds."""
    text = (STUDIES / "breast-cancer.toml").read_text().replace('name = "breast-cancer"', 'name = "gated"')
    text = re.sub(r"(?m)^num-rounds = \d+$", "num-rounds = 2", text)
    return re.sub(r"\[model\]\n.*?\n\n", lambda _: block("toml", "[model]") + "\n", text, flags=re.DOTALL)


@pytest.mark.slow
def test_the_tutorials_model_trains_in_a_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-studies").mkdir()
    (tmp_path / "my-studies" / "gated.toml").write_text(study_text())
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"(?m)^fl-server (simulate .*)$", TEXT)

    result = CliRunner().invoke(app, [*command.split(), "--out", "out"])

    assert result.exit_code == 0, result.output
    header = json.loads((tmp_path / "out" / "private" / "run.json").read_text())
    assert header["status"] == "completed"
    assert header["clipping"] == "book-keeping"
    assert header["num_parameters"] == 2 * (30 * 8 + 8) + 8 + 1


def test_the_tutorials_policy_is_valid_and_names_the_model_of_the_study() -> None:
    policy = PolicySettings.parse(tomllib.loads(block("toml", "[policy]"))["policy"], origin="site.toml")

    assert policy.python_models == (tomllib.loads(block("toml", "[model]"))["model"]["path"],)
