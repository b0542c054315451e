"""`make help` tells every daily command, CI runs two of them, and a machine that cannot run them is told why."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE)


def _make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # A `make` around these tests must not hand its own options down.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_every_target_has_a_help_line() -> None:
    helped = re.findall(r"^make ([a-z-]+) +\S", _make().stdout, flags=re.MULTILINE)

    assert helped == TARGETS
    assert {"help", "setup", "check", "test", "test-all", "demo", "bundle", "clean"} <= set(TARGETS)


def test_every_target_is_phony() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE)

    assert phony is not None
    assert sorted(phony[1].split()) == sorted(TARGETS)


def test_ci_installs_host_tools_runs_check_and_test_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"

    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]

    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make host-tools", "make check", "make test"]
    assert os.access(script, os.X_OK)


def test_make_and_a_bare_pytest_switch_off_the_same_things() -> None:
    exported = dict(re.findall(r"^export (\w+) := (.+)$", MAKEFILE, flags=re.MULTILINE))

    assert len(exported) == 4
    assert {name: os.environ.get(name) for name in exported} == exported


@pytest.mark.parametrize(
    ("python", "advice"),
    [
        ("exit 1", "needs Python 3.11 or newer"),  # too old: the version check fails
        ('test "$1" = -c', "install its venv module"),  # new enough, but `-m venv` fails
    ],
)
def test_an_unfit_python_is_refused_with_advice(tmp_path: Path, python: str, advice: str) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    unfit = tmp_path / "python3"
    unfit.write_text(f"#!/bin/sh\n{python}\n")
    unfit.chmod(0o755)

    made = _make("demo", f"PYTHON={unfit}", folder=tmp_path)

    assert made.returncode != 0
    assert advice in made.stderr
    assert "make demo PYTHON=" in made.stderr
    assert not (tmp_path / ".venv").exists()
