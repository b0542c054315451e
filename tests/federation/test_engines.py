"""Both engines run the same apps: the same seed gives the same model where no privacy noise is drawn."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from federation_harness import Outcome

FL_SERVER = Path(sys.executable).parent / "fl-server"
SETTINGS = ["--set", "privacy.mechanism=none", "--set", "num-rounds=3", "--set", "stopping.patience=0"]


def _without_a_network() -> list[str]:
    """A command that runs another in a network namespace with nothing but loopback, where the system allows it.

    Ray asks for a cloud's metadata at an address outside this machine and has no switch for it.
    """
    shell = shutil.which("unshare") and shutil.which("ip") and shutil.which("sh")
    isolated = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "isolated"]
    allowed = shell and subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode == 0
    return isolated if allowed else []


def _simulate(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(FL_SERVER), "simulate", "--no-baselines", "--out", str(out), *arguments]
    return subprocess.run([*_without_a_network(), *command], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_flower_s_simulation_and_the_local_engine_give_the_same_result(tmp_path: Path) -> None:
    local = _simulate(tmp_path / "local", *SETTINGS)
    flower = _simulate(tmp_path / "flower", *SETTINGS, "--engine", "flower")

    assert (local.returncode, flower.returncode) == (0, 0), local.stderr + flower.stderr
    expected, outcome = Outcome(tmp_path / "local" / "federated"), Outcome(tmp_path / "flower" / "federated")
    assert (expected.header["engine"], outcome.header["engine"]) == ("local", "flower")
    assert {name: array.tobytes() for name, array in outcome.model.items()} == {
        name: array.tobytes() for name, array in expected.model.items()
    }
    assert [line["pooled"] for line in outcome.rounds] == [line["pooled"] for line in expected.rounds]


@pytest.mark.slow
def test_a_run_that_fails_on_flower_exits_with_1_and_names_the_reason(tmp_path: Path) -> None:
    failing = ["--set", "simulation.require-privacy=true"]  # and the run asks for none

    result = _simulate(tmp_path, *SETTINGS, *failing, "--engine", "flower")

    assert result.returncode == 1
    assert "hospital-1: policy" in result.stderr
    assert json.loads((tmp_path / "federated" / "run.json").read_text())["status"] == "failed"
