"""A run that was stopped anywhere goes on at the next round with the result of one that never was."""

import subprocess
import sys
from pathlib import Path

import pytest
from federation_harness import PLAIN, PRIVATE, Federation, Outcome
from stopped_runs import StopError, stop_after

from fl_client.settings import read_site_settings
from fl_client.site import open_ledger, training_cohort
from fl_contract.errors import CheckpointError
from fl_contract.strategy_settings import strategy_names
from fl_contract.study_file import Scalar
from privacy.ledger_book import LedgerEntry

MOMENTUM: dict[str, Scalar] = {
    **PLAIN,
    "num-rounds": 4,
    "strategy.name": "fedavgm",
    "strategy.server-momentum": 0.7,
    "federation.fraction-sites": 0.75,
    "stopping.patience": 3,
}

KILLED_IN_ROUND_2 = """
import os, signal, sys
sys.path.insert(0, {support!r})
from federation_harness import Federation
import fl_client.app
import fl_client.private_round

owner, _, name = {function!r}.rpartition(".")
owner = eval(owner)
original = getattr(owner, name)
calls = []

def killed(*arguments, **named):
    calls.append(1)
    if len(calls) == 4 + 3:  # the third hospital of the second round
        if {after!r}:
            original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **named)

setattr(owner, name, killed)
Federation({out!r}).run(overrides={overrides!r})
"""


def _assert_same_result(outcome: Outcome, expected: Outcome) -> None:
    assert {name: array.tobytes() for name, array in outcome.model.items()} == {
        name: array.tobytes() for name, array in expected.model.items()
    }
    assert [line["pooled"] for line in outcome.rounds] == [line["pooled"] for line in expected.rounds]
    assert outcome.header["status"] == expected.header["status"]


def _ledger_entries(site_folder: Path) -> list[LedgerEntry]:
    settings = read_site_settings(site_folder / "site.toml")
    with open_ledger(settings, site_folder, cohort=training_cohort(settings)) as ledger:
        return ledger.entries()


@pytest.mark.parametrize("stopped_after", [0, 1, 2, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    expected = Federation(tmp_path / "whole").run(overrides=MOMENTUM)
    federation = Federation(tmp_path / "stopped")
    with monkeypatch.context() as patched:
        stop_after(stopped_after, patched)
        with pytest.raises(StopError):
            federation.run(overrides=MOMENTUM)

    outcome = federation.run(overrides=MOMENTUM, resume=True)

    _assert_same_result(outcome, expected)


EQUAL: dict[str, Scalar] = {"strategy.weighting": "equal"}

ALGORITHMS: dict[str, dict[str, Scalar]] = {
    "fedavg": {},
    "fedavgm": {"strategy.server-nesterov": True, "strategy.server-momentum": 0.5},
    "fedsgd": {"training.learning-rate": 4.0},
    "q-fedavg": {"strategy.fairness": 0.5},
    "fedprox": {"strategy.proximal-mu": 0.1},
    "scaffold": {"training.local-steps": 3},
    "feddyn": {"strategy.dynamic-alpha": 0.1},
    "fednova": {},
    "fedadam": {},
    "fedyogi": {},
    "fedadagrad": {},
    "cyclic": {},
    "median": EQUAL,
    "geometric-median": EQUAL,
    "trimmed-mean": EQUAL | {"strategy.trim-fraction": 0.25},
    "krum": EQUAL | {"strategy.num-chosen": 2},
    "norm-bounding": EQUAL | {"strategy.update-bound": 4.0},
    "centred-clipping": EQUAL | {"strategy.clip-radius": 4.0},
    "fedper": {"model.kind": "mlp"},
    "fedrep": {"model.kind": "mlp"},
    "ditto": {},
    "apfl": {"strategy.adaptive-mixture": True},
    "fine-tuning": {},
    "fedbuff": {"federation.min-sites": 2},
}


def test_every_algorithm_is_resumed_in_one_of_the_tests() -> None:
    assert {*ALGORITHMS, "fedbn", "one-shot-ensemble"} == set(strategy_names())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_learns_and_repeats_a_round_that_was_cut_off_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Round 3 was trained, and its state kept at the hospitals, when the coordinator stopped without a checkpoint."""
    overrides = PLAIN | {"num-rounds": 4, "training.learning-rate": 0.5, "strategy.name": name} | ALGORITHMS[name]
    expected = Federation(tmp_path / "whole").run(overrides=overrides)
    federation = Federation(tmp_path / "stopped")
    with monkeypatch.context() as patched:
        stop_after(3, patched, is_written=False)
        with pytest.raises(StopError):
            federation.run(overrides=overrides)

    outcome = federation.run(overrides=overrides, resume=True)

    _assert_same_result(outcome, expected)
    assert outcome.rounds[-1]["pooled"]["loss"] < 0.9 * outcome.rounds[0]["pooled"]["loss"]


@pytest.mark.parametrize("is_written", [True, False])
def test_a_resumed_ensemble_has_the_same_members_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    """The coordinator stopped after its one round, with or without a checkpoint of it."""
    overrides = PLAIN | EQUAL | {"num-rounds": 1, "strategy.name": "one-shot-ensemble"}
    expected = Federation(tmp_path / "whole").run(overrides=overrides)
    federation = Federation(tmp_path / "stopped")
    with monkeypatch.context() as patched:
        stop_after(1, patched, is_written=is_written)
        with pytest.raises(StopError):
            federation.run(overrides=overrides)

    outcome = federation.run(overrides=overrides, resume=True)

    _assert_same_result(outcome, expected)
    assert len(outcome.model) == 4 * 2


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_a_resumed_average_equals_an_uninterrupted_one_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    """Without noise, which is never the same twice: what is averaged is switched on for a plain study."""
    monkeypatch.setattr("fl_server.app.first_averaged_round", lambda study: 2)
    expected = Federation(tmp_path / "whole").run(overrides=MOMENTUM)
    federation = Federation(tmp_path / "stopped")
    with monkeypatch.context() as patched:
        stop_after(stopped_after, patched)
        with pytest.raises(StopError):
            federation.run(overrides=MOMENTUM)

    outcome = federation.run(overrides=MOMENTUM, resume=True)

    _assert_same_result(outcome, expected)


def test_a_resumed_run_keeps_its_identity_and_drops_rounds_that_no_checkpoint_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path)
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(StopError):
            federation.run(overrides=MOMENTUM)
    run = federation.outcome().header["run"]
    with (tmp_path / "federated" / "rounds.jsonl").open("a") as stream:
        stream.write('{"round": 3, "torn')

    outcome = federation.run(overrides=MOMENTUM, resume=True)

    assert outcome.header["run"] == run
    assert [line["round"] for line in outcome.rounds] == [1, 2, 3, 4]


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run()
    before = {path: path.read_bytes() for path in (tmp_path / "federated").iterdir()}

    federation.run(resume=True)

    assert {path: path.read_bytes() for path in (tmp_path / "federated").iterdir()} == before


def test_resuming_with_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path)
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        with pytest.raises(StopError):
            federation.run()

    with pytest.raises(CheckpointError, match="belongs to a study with other settings"):
        federation.run(overrides={**PLAIN, "num-rounds": 9}, resume=True)


def test_resuming_where_there_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        Federation(tmp_path).run(resume=True)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", b"\xff" * 64])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: bytes) -> None:
    federation = Federation(tmp_path)
    federation.run()
    (tmp_path / "federated" / "checkpoint.safetensors").write_bytes(damage)

    with pytest.raises(CheckpointError, match="is damaged"):
        federation.run(resume=True)


def _kill_in_round_2(out: Path, *, function: str, after: bool, overrides: dict[str, Scalar]) -> None:
    support = str(Path(__file__).parents[1] / "support")
    script = KILLED_IN_ROUND_2.format(
        support=support, function=function, after=after, out=str(out), overrides=overrides
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=120)
    assert result.returncode == -9, result.stderr.decode()


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_round_then_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    expected = Federation(tmp_path / "whole").run(overrides=MOMENTUM | {"federation.fraction-sites": 1.0})
    overrides = MOMENTUM | {"federation.fraction-sites": 1.0}
    _kill_in_round_2(tmp_path / "killed", function="fl_client.app.train", after=False, overrides=overrides)

    outcome = Federation(tmp_path / "killed").run(overrides=overrides, resume=True)

    _assert_same_result(outcome, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "after"),
    [
        pytest.param("fl_client.private_round.train_with_privacy", False, id="charged, not trained"),
        pytest.param("fl_client.private_round.train_with_privacy", True, id="trained, not stored"),
        pytest.param("fl_client.private_round.Outbox.put", True, id="stored, not sent"),
    ],
)
def test_kill_9_in_the_middle_of_a_private_round_then_resume_charges_every_round_once(
    tmp_path: Path, function: str, after: bool
) -> None:
    federation = Federation(tmp_path)
    _kill_in_round_2(tmp_path, function=function, after=after, overrides=PRIVATE)
    assert [entry.server_round for entry in _ledger_entries(tmp_path / "sites" / "hospital-3")] == [1, 2]
    assert [entry.server_round for entry in _ledger_entries(tmp_path / "sites" / "hospital-4")] == [1]

    outcome = federation.run(overrides=PRIVATE, resume=True)

    for number in range(1, 5):
        entries = _ledger_entries(tmp_path / "sites" / f"hospital-{number}")
        assert [(entry.server_round, entry.attempt) for entry in entries] == [(1, 1), (2, 1), (3, 1)]
        assert sum(entry.spend.steps for entry in entries) == 3 * 2
    assert outcome.rounds[-1]["sites"]["hospital-3"]["epsilon"] <= 8.0
