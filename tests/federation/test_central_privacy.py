"""A study with central privacy trains, says what a whole hospital's protection has cost, and never forgets a round."""

import json
from pathlib import Path

import pytest
from federation_harness import PLAIN, PRIVATE, Federation

import fl_server.round_loop as round_loop
from fl_contract.errors import RunError, SettingError
from fl_contract.study_file import Scalar, load_study
from fl_server.checkpoint import Checkpoint, write_checkpoint
from fl_server.report import write_report
from fl_server.simulation import baselines

CENTRAL: dict[str, Scalar] = {
    "central-privacy.epsilon": 8.0,
    "central-privacy.delta": 1e-3,
    "central-privacy.clip-norm": 1.0,
}


class _StopError(Exception):
    pass


def test_the_record_states_unit_relation_epsilon_delta_and_accountant(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides=PLAIN | CENTRAL)

    central = [line["central"] for line in outcome.rounds]
    assert outcome.header["status"] == "completed"
    assert [entry["rounds"] for entry in central] == [1, 2, 3]
    assert central[0]["epsilon"] < central[1]["epsilon"] < central[2]["epsilon"] <= 8.0
    assert central[2]["epsilon"] == pytest.approx(8.0, abs=1e-6)
    assert {(entry["unit"], entry["neighbouring"], entry["delta"], entry["accountant"]) for entry in central} == {
        ("hospital", "zero-out-one", 1e-3, "closed form of the Gaussian mechanism")
    }
    assert outcome.header["settings"]["central-privacy"] == {
        "mechanism": "discrete-gaussian",
        "epsilon": 8.0,
        "delta": 1e-3,
        "clip-norm": 1.0,
    }


def test_the_report_states_it_too(tmp_path: Path) -> None:
    Federation(tmp_path).run(overrides=PLAIN | CENTRAL)

    page = " ".join(write_report(tmp_path).read_text().split())

    assert "One hospital: the same run with that hospital's updates replaced by zeros (zero-out-one)." in page
    assert "Epsilon 8.000 of 8 at delta 0.001, in 3 noised rounds" in page
    assert "No differential privacy for single records." in page
    assert "Together, hospitals protected" in page
    assert "Together, without privacy" not in page


def test_a_study_without_it_says_nothing_of_it(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides=PLAIN)

    assert [line["central"] for line in outcome.rounds] == [None] * 3
    assert not (outcome.folder / "noised-rounds.json").exists()
    assert "A whole hospital" not in write_report(tmp_path).read_text()


def test_two_runs_of_the_same_seed_differ(tmp_path: Path) -> None:
    models = [Federation(tmp_path / name).run(overrides=PLAIN | CENTRAL).model for name in ("one", "two")]

    assert any((models[0][name] != models[1][name]).any() for name in models[0])


def test_what_a_simulation_compares_with_has_no_noise_of_the_coordinator() -> None:
    compared = dict(baselines(load_study("breast-cancer", overrides=CENTRAL)))

    assert {each["central-privacy.mechanism"] for each in compared.values()} == {"none"}


@pytest.mark.slow
def test_it_goes_with_privacy_of_records(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides=PRIVATE | CENTRAL)

    assert outcome.rounds[-1]["sites"]["hospital-1"]["epsilon"] <= 8.0
    assert outcome.rounds[-1]["central"]["rounds"] == 3


def test_a_round_that_no_checkpoint_holds_is_charged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = PLAIN | CENTRAL | {"strategy.name": "fedavgm"}

    def stop_instead(folder: Path, checkpoint: Checkpoint) -> None:
        if checkpoint.server_round == 2:  # noise of round 2 is drawn, and its model was measured at the hospitals
            raise _StopError
        write_checkpoint(folder, checkpoint)

    federation = Federation(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(round_loop, "write_checkpoint", stop_instead)
        with pytest.raises(_StopError):
            federation.run(overrides=overrides)

    with pytest.raises(RunError, match="all 3 rounds of central privacy are spent"):
        federation.run(overrides=overrides, resume=True)

    outcome = federation.outcome()
    assert [(line["round"], line["central"]["rounds"]) for line in outcome.rounds] == [(1, 1), (2, 3)]
    assert json.loads((outcome.folder / "noised-rounds.json").read_text()) == {"count": 3}


def test_a_run_that_stopped_after_its_checkpoint_goes_on_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_then_stop(folder: Path, checkpoint: Checkpoint) -> None:
        write_checkpoint(folder, checkpoint)
        if checkpoint.server_round == 2:
            raise _StopError

    federation = Federation(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(round_loop, "write_checkpoint", write_then_stop)
        with pytest.raises(_StopError):
            federation.run(overrides=PLAIN | CENTRAL)

    outcome = federation.run(overrides=PLAIN | CENTRAL, resume=True)

    assert [line["central"]["rounds"] for line in outcome.rounds] == [1, 2, 3]


def test_a_model_with_running_statistics_is_refused_before_round_1(tmp_path: Path) -> None:
    batch_norm: dict[str, Scalar] = {"model.norm": "batch"}

    with pytest.raises(SettingError, match="would leave without noise"):
        Federation(tmp_path).run(study="digits", overrides=PLAIN | CENTRAL | batch_norm)
