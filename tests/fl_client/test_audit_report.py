"""``fl-client audit`` says in words and by its exit code whether anything contradicts the privacy claim."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import save_file
from typer.testing import CliRunner

from fl_client.audit import ModelAudit
from fl_client.audit_report import contradicts_claim
from fl_client.cli import app
from fl_client.data.builtin import BuiltInSource
from fl_contract.array_record import Arrays
from fl_contract.study import Study
from privacy.membership import measure_attack
from privacy.noise import NormalSource

SMALL = [
    word
    for setting in ("num-rounds=3", "privacy.sampling-rate=0.25", "privacy.steps-per-round=4")
    for word in ("--set", setting)
]
PLAIN = ["--set", "num-rounds=2", "--set", "privacy.mechanism=none"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs an audit on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *words: CliRunner().invoke(app, ["audit", *(str(word) for word in words)])


@pytest.fixture
def model_file(tmp_path: Path, model: Arrays) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(model, path)
    return path


def lines(result: Result) -> str:
    """What was printed, in words and single spaces."""
    return " ".join(result.stdout.replace("│", " ").split())


def test_correct_training_passes_without_reading_a_patient(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(BuiltInSource, "load")

    result = run("breast-cancer", *SMALL, "--canaries", 300)

    assert result.exit_code == 0, result.output
    assert "12 steps on 300 canaries" in result.stdout
    assert "Nothing contradicts the claim." in result.stdout
    assert "contradicts " not in lines(result).replace("Nothing contradicts", "")
    for check in ("epsilon at delta 1e-09 <=", "mu ", "noise per step ", "sampling rate 0.2500"):
        assert check in lines(result)
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_training_without_noise_fails_by_name(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NormalSource, "draw", lambda source: np.zeros(source._count))

    result = run(*SMALL, "--canaries", 300)

    assert result.exit_code == 1
    assert "This training does not do what its plan says: mu, noise per step" in lines(result)
    assert "Take part in no private round" in result.stdout
    assert "Nothing contradicts" not in result.stdout


def test_the_record_holds_plan_and_checks_and_is_for_its_owner_only(
    run: Callable[..., Result], tmp_path: Path, study_of: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NormalSource, "draw", lambda source: np.zeros(source._count))
    path = tmp_path / "audit.json"

    run(*SMALL, "--set", "seed=2026", "--canaries", 300, "--json", path)

    record: dict[str, Any] = json.loads(path.read_text())
    assert record["study"] == "breast-cancer"
    assert record["audit"]["plan"]["sampling_rate"] == 0.25
    assert record["contradictions"][:2] == ["mu", "noise per step"]
    (mu,) = (check for check in record["audit"]["checks"] if check["name"] == "mu")
    assert mu["measured"] is None  # without noise it is infinite, for which JSON has no number
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_model_is_attacked_with_a_hospitals_own_patients_and_nothing_is_kept(
    run: Callable[..., Result], model_file: Path, write_site_file: Callable[..., Path], tmp_path: Path
) -> None:
    site_file, record = write_site_file(), tmp_path / "attack.json"

    result = run("--membership", site_file, "--model", model_file, "--study", "breast-cancer", *PLAIN, "--json", record)

    assert result.exit_code == 0, result.output
    assert "loss 0.500 (0.500–0.500) 0.000" in lines(result)
    assert "likelihood ratio" in result.stdout
    assert "keep them inside the hospital" in lines(result)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert json.loads(record.read_text())["audit"]["loss"]["auc"] == 0.5
    assert [path.name for path in site_file.parent.iterdir()] == ["site.toml"]


def test_an_attack_contradicts_a_private_study_only_above_its_epsilon(study_of: Callable[..., Study]) -> None:
    # 1,000 of each told apart: missed are at most 1 - 0.025^(1/1000) = 0.0037, for an epsilon of at least 5.58.
    perfect = measure_attack(np.linspace(2, 3, 1000), np.linspace(0, 1, 1000), delta=0.0)
    audit = ModelAudit(loss=perfect, likelihood_ratio=perfect)

    verdicts = [
        contradicts_claim(study_of(overrides=overrides), audit)
        for overrides in ({"privacy.epsilon": 5.0}, {"privacy.epsilon": 6.0}, {"privacy.mechanism": "none"})
    ]

    assert verdicts == [True, False, False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "model.safetensors"], "--membership and --model go together"),
        (["--membership", "site.toml"], "--membership and --model go together"),
        (["no-such-study"], "study='no-such-study'; expected one of"),
        (["--set", "privacy.mechanism=none"], "privacy.mechanism='none'"),
        (["--set", "epsilon=3"], "did you mean 'privacy.epsilon'?"),
        ([*SMALL, "--canaries", "10"], "num_canaries=10; expected at least 100"),
        ([*SMALL, "--canaries", "100", "--json", "/no/such/folder/a.json"], "No such file or directory"),
        (["--membership", "nowhere.toml", "--model", "nothing"], "nowhere.toml: cannot be read"),
    ],
)
def test_what_cannot_be_audited_ends_with_one_and_says_why(
    run: Callable[..., Result], words: list[str], message: str
) -> None:
    result = run(*words)

    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_help_names_the_options(run: Callable[..., Result]) -> None:
    result = run("--help")

    assert result.exit_code == 0
    assert all(option in result.stdout for option in ("--set", "--canaries", "--membership", "--model", "--json"))
