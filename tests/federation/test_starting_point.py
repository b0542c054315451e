"""Runs that start from an earlier model, and the best round's model that a run leaves beside its last."""

import re
from pathlib import Path

import numpy as np
import pytest
from federation_harness import PLAIN, PRIVATE, Federation, Handler
from flwr.app import Context, Message
from safetensors.numpy import load_file

import fl_server.round_loop as round_loop
from fl_client.settings import read_site_settings
from fl_client.site import open_ledger, training_cohort
from fl_contract.array_record import Arrays
from fl_contract.errors import SettingError
from fl_contract.study_file import STUDIES, Scalar
from fl_server.checkpoint import Checkpoint, write_checkpoint

STEEP: dict[str, Scalar] = {**PLAIN, "training.learning-rate": 60.0, "num-rounds": 5}
"""Steps so large that the loss goes up and down."""


def bits(model: Arrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.items()}


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> dict[int, Arrays]:
    """The model after each round."""
    models: dict[int, Arrays] = {}

    def keep(folder: Path, checkpoint: Checkpoint) -> None:
        models[checkpoint.server_round] = checkpoint.model
        write_checkpoint(folder, checkpoint)

    monkeypatch.setattr(round_loop, "write_checkpoint", keep)
    return models


@pytest.mark.parametrize("kind", ["warm-start", "continue-from"])
def test_the_first_round_begins_with_the_earlier_model_and_the_record_links_to_it(
    tmp_path: Path, kind: str, checkpoints: dict[int, Arrays]
) -> None:
    earlier = Federation(tmp_path / "earlier").run()

    outcome = Federation(tmp_path / "later").run(overrides={**PLAIN, kind: str(tmp_path / "earlier")})

    assert bits(checkpoints[0]) == bits(earlier.model)
    assert outcome.header["starts_from"]["run"] == earlier.header["run"] != outcome.header["run"]
    assert outcome.rounds[-1]["pooled"]["loss"] < earlier.rounds[-1]["pooled"]["loss"]


def test_statistics_in_the_model_are_those_of_the_earlier_run_and_none_are_asked_for(tmp_path: Path) -> None:
    overrides: dict[str, Scalar] = {**PLAIN, "num-rounds": 1}
    studies = _study_with_statistics(tmp_path)
    earlier = Federation(tmp_path / "earlier").run("digits", overrides=overrides, studies=studies)
    asked: list[str] = []

    def count(app: Handler) -> Handler:
        def answer(message: Message, context: Context) -> Message:
            asked.append(message.metadata.message_type)
            return app(message, context)

        return answer

    later = Federation(tmp_path / "later").run(
        "digits", overrides={**overrides, "continue-from": str(tmp_path / "earlier")}, studies=studies, wrap=count
    )

    kept = [name for name in earlier.model if name.startswith("standardise.")]
    assert kept
    assert all(np.array_equal(later.model[name], earlier.model[name]) for name in kept)
    assert "query.statistics" not in asked


def _study_with_statistics(folder: Path) -> Path:
    text = (STUDIES / "digits.toml").read_text().replace('kind = "image"', 'kind = "image"\nscale = "standard"')
    (folder / "studies").mkdir()
    (folder / "studies" / "digits.toml").write_text(text)
    return folder / "studies"


def test_a_hospital_s_budget_goes_on_from_the_earlier_run(tmp_path: Path) -> None:
    Federation(tmp_path / "settings").run(overrides={**PLAIN, "num-rounds": 1})
    site_file = tmp_path / "hospital-2" / "site.toml"
    site_file.parent.mkdir()
    site_file.write_text((tmp_path / "settings" / "sites" / "hospital-2" / "site.toml").read_text())
    overrides: dict[str, Scalar] = {**PRIVATE, "num-rounds": 2}  # twice epsilon 8, of a budget of 10

    first = Federation(tmp_path / "first").run(overrides=overrides, site_files={1: site_file})
    continued = {**overrides, "continue-from": str(tmp_path / "first")}
    second = Federation(tmp_path / "second").run(overrides=continued, site_files={1: site_file})

    settings = read_site_settings(site_file)
    with open_ledger(settings, site_file.parent, cohort=training_cohort(settings)) as ledger:
        entries = ledger.entries()
    steps = [
        sum(entry.spend.steps for entry in entries if entry.run == outcome.header["run"]) for outcome in (first, second)
    ]
    assert steps[0] == 2 * 2
    assert 0 < steps[1] < 2 * 2  # what the first run left
    assert sum(second.rounds[number]["sites"]["hospital-3"]["steps"] for number in (0, 1)) == 2 * 2


def test_a_model_of_another_study_is_refused_and_the_record_says_why(tmp_path: Path) -> None:
    Federation(tmp_path / "earlier").run(overrides={**PLAIN, "num-rounds": 1, "model.kind": "mlp"})
    later, rule = (
        Federation(tmp_path / "later"),
        "array '1.weight' has shape [32, 30] and type float32; expected [1, 30]",
    )

    with pytest.raises(SettingError, match=re.escape(rule)):
        later.run(overrides={**PLAIN, "warm-start": str(tmp_path / "earlier")})

    assert later.outcome().header["status"] == "failed"
    assert rule in later.outcome().header["reason"]


def test_a_run_has_one_starting_point(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="warm-start='a' and continue-from='b'; expected one of them"):
        Federation(tmp_path).run(overrides={**PLAIN, "warm-start": "a", "continue-from": "b"})


def test_a_resumed_run_still_links_to_the_earlier_one_which_it_no_longer_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = Federation(tmp_path / "earlier").run()
    overrides: dict[str, Scalar] = {**PLAIN, "continue-from": str(tmp_path / "earlier")}
    expected = Federation(tmp_path / "whole").run(overrides=overrides)
    _stop_after(1, tmp_path / "stopped", overrides, monkeypatch)
    (earlier.folder / "model.safetensors").unlink()

    outcome = Federation(tmp_path / "stopped").run(overrides=overrides, resume=True)

    assert outcome.header["starts_from"] == expected.header["starts_from"]
    assert bits(outcome.model) == bits(expected.model)


class _StopError(Exception):
    pass


def _stop_after(
    number: int, out: Path, overrides: dict[str, Scalar], monkeypatch: pytest.MonkeyPatch, *, unwritten: int = 0
) -> None:
    """Stop once the checkpoint of a round is there, or is due; before anything that follows it."""

    def write_then_stop(folder: Path, checkpoint: Checkpoint) -> None:
        if checkpoint.server_round != unwritten:
            write_checkpoint(folder, checkpoint)
        if checkpoint.server_round == number:
            raise _StopError

    with monkeypatch.context() as patched:
        patched.setattr(round_loop, "write_checkpoint", write_then_stop)
        with pytest.raises(_StopError):
            Federation(out).run(overrides=overrides)


def test_the_best_round_s_model_lies_beside_the_last(tmp_path: Path, checkpoints: dict[int, Arrays]) -> None:
    outcome = Federation(tmp_path).run(overrides=STEEP)

    losses = {line["round"]: line["pooled"]["loss"] for line in outcome.rounds}
    best = min(losses, key=lambda number: losses[number])
    assert best != 5, "choose another learning rate: the test needs a best round before the last"
    assert outcome.header["best_round"] == {"round": best, "loss": losses[best]}
    assert bits(load_file(outcome.folder / "best-model.safetensors")) == bits(checkpoints[best])


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 4])
@pytest.mark.parametrize("is_written", [True, False], ids=["checkpoint written", "not written"])
def test_a_resumed_run_leaves_the_same_best_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int, is_written: bool
) -> None:
    expected = Federation(tmp_path / "whole").run(overrides=STEEP)
    _stop_after(stopped_after, tmp_path / "stopped", STEEP, monkeypatch, unwritten=0 if is_written else stopped_after)

    outcome = Federation(tmp_path / "stopped").run(overrides=STEEP, resume=True)

    assert outcome.header["best_round"] == expected.header["best_round"]
    best = [(each.folder / "best-model.safetensors").read_bytes() for each in (outcome, expected)]
    assert best[0] == best[1]


def test_the_best_model_of_a_private_run_is_the_average_that_was_measured(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides={**PRIVATE, "federation.measure-every": 3})

    assert outcome.header["best_round"]["round"] == 3
    assert bits(load_file(outcome.folder / "best-model.safetensors")) == bits(outcome.model)


def test_a_run_that_nobody_measures_has_no_best_round(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides={**PRIVATE, "num-rounds": 1, "simulation.measurements": "none"})

    assert outcome.header["best_round"] is None
    assert not (outcome.folder / "best-model.safetensors").exists()


def test_a_run_stops_once_its_steps_are_small(tmp_path: Path) -> None:
    overrides: dict[str, Scalar] = {
        **PLAIN,
        "num-rounds": 9,
        "stopping.min-relative-step": 0.5,
        "stopping.small-steps": 2,
    }

    outcome = Federation(tmp_path).run(overrides=overrides)

    assert outcome.header["status"] == "converged"
    assert outcome.header["reason"] == "2 steps in a row of at most 0.5 of the model."
    assert 3 <= len(outcome.rounds) < 9  # the model starts at zero, of which no step is a small share
