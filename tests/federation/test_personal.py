"""Whole runs of personalised algorithms: what stays never travels, and every hospital ends with a model of its own.

Where hospitals contradict each other, those models are the better ones.
"""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from federation_harness import PRIVATE, Federation, Handler, Outcome
from flwr.app import Context, Message
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import load_file
from table_hospitals import run_at_hospitals

import fl_server.round_loop as round_loop
from fl_client.evaluation import evaluate
from fl_client.inputs import held_out_examples
from fl_client.settings import read_site_settings
from fl_client.site import Site
from fl_contract.array_record import Arrays
from fl_contract.messages import ARRAYS
from fl_contract.study_file import STUDIES, Scalar, load_study
from fl_server.checkpoint import Checkpoint, write_checkpoint
from fl_server.comparison import print_comparison
from fl_server.report import write_report
from fl_server.summary import summarise

PLAIN: dict[str, Scalar] = {
    **{"privacy.mechanism": "none", "stopping.patience": 0, "num-rounds": 3, "model.kind": "mlp"},
    **{"training.learning-rate": 0.5, "simulation.alpha": 0.8},
}
SETTINGS: dict[str, dict[str, Scalar]] = {
    "fedper": {},
    "fedrep": {"strategy.head-share": 0.3},
    "ditto": {},
    "apfl": {"strategy.adaptive-mixture": True},
    "fine-tuning": {},
}
HEAD = {"3.weight", "3.bias"}


def overrides_of(name: str, **further: Scalar) -> dict[str, Scalar]:
    return {**PLAIN, "strategy.name": name, **SETTINGS.get(name, {}), **further}


def own_models(out: Path) -> dict[str, Arrays]:
    """The file that each hospital has in the end."""
    return {path.parts[-3]: load_file(path) for path in sorted(out.glob("sites/*/personal/*.safetensors"))}


def recorder(seen: list[tuple[str, str]]) -> Callable[[Handler], Handler]:
    """Note the record and the name of every array in every message either way."""

    def note(message: Message) -> None:
        if message.has_content():
            seen.extend((record, name) for record, arrays in message.content.array_records.items() for name in arrays)

    def wrap(app: Handler) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            note(message)
            reply = app(message, context)
            note(reply)
            return reply

        return handle

    return wrap


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_the_head_is_in_no_message_and_hospitals_end_with_different_ones(tmp_path: Path, name: str) -> None:
    seen: list[tuple[str, str]] = []

    outcome = Federation(tmp_path).run(overrides=overrides_of(name), wrap=recorder(seen))

    assert set(seen) == {(ARRAYS, "1.weight"), (ARRAYS, "1.bias")}
    models = own_models(tmp_path)
    assert len(models) == 4
    assert len({model["3.weight"].tobytes() for model in models.values()}) == 4
    assert {model["1.weight"].tobytes() for model in models.values()} == {outcome.model["1.weight"].tobytes()}
    first = load_study("breast-cancer", overrides=overrides_of(name)).build_model().state_dict()
    assert outcome.model["3.weight"].tobytes() == first["3.weight"].numpy().tobytes()


@pytest.mark.parametrize("name", ["ditto", "apfl", "fine-tuning"])
def test_a_second_model_is_in_no_message(tmp_path: Path, name: str) -> None:
    seen: list[tuple[str, str]] = []

    Federation(tmp_path).run(overrides=overrides_of(name), wrap=recorder(seen))

    assert set(seen) == {(ARRAYS, array) for array in ("1.weight", "1.bias", *HEAD)}
    own = {model["3.weight"].tobytes() for model in own_models(tmp_path).values()}
    assert len(own) > 1


@pytest.mark.parametrize("name", SETTINGS)
def test_the_figures_of_a_run_are_those_of_the_models_that_hospitals_have(tmp_path: Path, name: str) -> None:
    outcome = Federation(tmp_path).run(overrides=overrides_of(name))

    study = load_study("breast-cancer", overrides=overrides_of(name))
    for site, arrays in own_models(tmp_path).items():
        folder = tmp_path / "sites" / site
        own = Site(settings=read_site_settings(folder / "site.toml"), folder=folder, study=study)
        model = study.build_model()
        model.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
        measured = evaluate(model, held_out_examples(own, own.load_records()), study.task)
        assert outcome.rounds[-1]["sites"][site]["loss"] == measured.loss


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_was_cut_off_gives_the_same_own_models_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Round 3 was trained and its state kept, when the coordinator stopped without a checkpoint."""
    overrides = overrides_of(name, **{"num-rounds": 4, "federation.measure-every": 2})
    expected = Federation(tmp_path / "whole").run(overrides=overrides)

    outcome = run_cut_off(Federation(tmp_path / "stopped"), monkeypatch, in_round=3, overrides=overrides)

    assert _bits(outcome.model) == _bits(expected.model)
    assert [line["pooled"] for line in outcome.rounds] == [line["pooled"] for line in expected.rounds]
    assert_same_models(tmp_path / "stopped", tmp_path / "whole")


class _StopError(Exception):
    pass


def run_cut_off(federation: Federation, monkeypatch: pytest.MonkeyPatch, *, in_round: int, **how: Any) -> Outcome:
    """Run until a round is over but for its checkpoint; then go on."""

    def write_or_stop(folder: Path, checkpoint: Checkpoint) -> None:
        if checkpoint.server_round == in_round:
            raise _StopError
        write_checkpoint(folder, checkpoint)

    with monkeypatch.context() as patched:
        patched.setattr(round_loop, "write_checkpoint", write_or_stop)
        with pytest.raises(_StopError):
            federation.run(**how)
    return federation.run(**how, resume=True)


def assert_same_models(stopped: Path, whole: Path) -> None:
    assert {site: _bits(model) for site, model in own_models(stopped).items()} == {
        site: _bits(model) for site, model in own_models(whole).items()
    }


def _bits(arrays: Arrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


# --- FedBN, on images ------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with the study of digits under FedBN, with BatchNorm and without privacy."""
    text = (STUDIES / "digits.toml").read_text()
    for old, new in (
        ('norm = "none"', 'norm = "batch"'),
        ("width = 16", "width = 4"),
        ('name = "fedavgm"', 'name = "fedbn"'),
        ("server-momentum = 0.5\n", ""),
        ('mechanism = "dp-sgd"', 'mechanism = "none"'),
        ("num-rounds = 20", "num-rounds = 2"),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "digits.toml").write_text(text)
    return tmp_path / "studies"


def test_normalisation_is_in_no_message_and_its_statistics_differ_between_hospitals(
    tmp_path: Path, images: Path
) -> None:
    seen: list[tuple[str, str]] = []

    outcome = Federation(tmp_path / "run").run("digits", overrides={}, studies=images, wrap=recorder(seen))

    travelled = {name for _, name in seen}
    kept = set(outcome.model) - travelled
    norms = {f"{layer}.{part}" for layer in (1, 5) for part in ("weight", "bias", "running_mean", "running_var")}
    assert kept == norms | {"1.num_batches_tracked", "5.num_batches_tracked"}
    models = own_models(tmp_path / "run")
    assert len({model["1.running_mean"].tobytes() for model in models.values()}) == 4
    assert all(model["1.num_batches_tracked"] > 0 for model in models.values())
    assert outcome.model["1.num_batches_tracked"] == 0
    assert {model["0.weight"].tobytes() for model in models.values()} == {outcome.model["0.weight"].tobytes()}


@pytest.mark.slow
def test_a_cut_off_run_of_fedbn_gives_the_same_own_models_to_the_bit(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"study": "digits", "overrides": {}, "studies": images}
    expected = Federation(tmp_path / "whole").run(**how)

    outcome = run_cut_off(Federation(tmp_path / "stopped"), monkeypatch, in_round=2, **how)

    assert _bits(outcome.model) == _bits(expected.model)
    assert outcome.rounds[-1]["pooled"] == expected.rounds[-1]["pooled"]
    assert_same_models(tmp_path / "stopped", tmp_path / "whole")


# --- differential privacy, comparisons and reports -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_a_private_run_keeps_the_head_at_home_and_spends_as_any_other(tmp_path: Path, name: str) -> None:
    seen: list[tuple[str, str]] = []
    overrides: dict[str, Scalar] = {**PRIVATE, "model.kind": "mlp", "strategy.name": name}

    outcome = Federation(tmp_path).run(overrides=overrides, wrap=recorder(seen))

    assert {array for _, array in seen} == {"1.weight", "1.bias"}
    assert len({model["3.weight"].tobytes() for model in own_models(tmp_path).values()}) == 4
    assert all(0 < line["epsilon"] <= 8.0 for line in outcome.rounds[-1]["sites"].values())
    assert outcome.header["averaged_from_round"] is None  # a head fits the last body, not a mean of bodies


@pytest.mark.parametrize("trainers", ["pooled", "hospital-2"])
def test_where_one_site_trains_it_shares_the_whole_model(tmp_path: Path, trainers: str) -> None:
    """As what a personalised run is compared with: all hospitals measure that one's model."""
    seen: list[tuple[str, str]] = []
    further: dict[str, Scalar] = {"simulation.trainers": trainers, "federation.min-sites": 1}

    outcome = Federation(tmp_path).run(overrides=overrides_of("fedper", **further), wrap=recorder(seen))

    assert {name for _, name in seen} >= HEAD
    assert outcome.header["personal"] is False
    assert own_models(tmp_path) == {}


def test_the_record_the_summary_and_the_report_say_that_figures_are_of_personal_models(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides=overrides_of("fedper"))

    page = write_report(tmp_path).read_text(encoding="utf-8")
    terminal = StringIO()
    print_comparison(tmp_path, Console(file=terminal, width=100))

    assert "together: each hospital's personal model, on its own patients" in " ".join(terminal.getvalue().split())
    assert outcome.header["personal"] is True
    assert summarise(tmp_path)["personal"] is True
    assert "Together, without privacy, personal models" in page
    assert "personal models, trained jointly and each measured at its own hospital, reach an AUROC" in page
    assert "Figures of personal models are of as many models as there are hospitals" in page
    Federation(tmp_path / "shared").run(overrides=overrides_of("fedavg"))
    assert summarise(tmp_path / "shared")["personal"] is False
    assert "personal model" not in write_report(tmp_path / "shared").read_text(encoding="utf-8")


# --- hospitals that contradict each other ----------------------------------------------------------------------------

CONTRADICTING = """
name = "tried"
title = "Tried"
num-rounds = 8
seed = 7
[schema]
kind = "table"
label = "ill"
classes = ["no", "yes"]
features = [{{ name = "marker", minimum = -3.0, maximum = 3.0 }}, {{ name = "noise", minimum = -3.0, maximum = 3.0 }}]
[model]
{model}
[training]
learning-rate = 0.5
batch-size = 16
local-epochs = 2
[strategy]
name = "{name}"
[federation]
min-sites = 2
[stopping]
[privacy]
mechanism = "none"
epsilon = 1.0
delta = 1e-3
[simulation]
num-sites = 2
alpha = 1.0
test-fraction = 0.3
epsilon-budget = 0.0
"""


def hospital(number: int, *, sign: int = 1, shift: float = 0.0, num_patients: int = 150) -> pd.DataFrame:
    """A negative sign makes the marker mean health instead of illness; a shift is another calibration of the device."""
    generator = np.random.default_rng(number)
    marker = generator.normal(size=num_patients) / (2 if shift else 1)
    return pd.DataFrame({
        "marker": marker + shift,
        "noise": generator.normal(size=num_patients),
        "ill": np.where(sign * marker + generator.normal(0, 0.2, num_patients) > 0, "yes", "no"),
        "fold": np.where(np.arange(num_patients) % 3 == 0, "test", "train"),
    })  # fmt: skip


def worst(folder: Path, figure: str) -> float:
    (last,) = (folder / "rounds.jsonl").read_text().splitlines()[-1:]
    return min(float(site["figures"][figure]) for site in json.loads(last)["sites"].values())


def run_contradicting(folder: Path, name: str) -> float:
    folder.mkdir()
    tables = [hospital(1, sign=1), hospital(2, sign=-1)]
    study = CONTRADICTING.format(name=name, model='kind = "mlp"\nhidden-size = 8')
    return worst(run_at_hospitals(folder, study, tables, source='label = "ill"', policy=""), "auroc")


def test_one_model_serves_no_two_hospitals_that_contradict_each_other(tmp_path: Path) -> None:
    assert run_contradicting(tmp_path / "fedavg", "fedavg") < 0.7


@pytest.mark.parametrize("name", ["fedper", "fedrep", "ditto", "apfl", "fine-tuning"])
def test_personal_models_serve_both(tmp_path: Path, name: str) -> None:
    assert run_contradicting(tmp_path / name, name) > 0.9


def test_a_hospital_that_contradicts_the_others_chooses_a_model_of_its_own(tmp_path: Path) -> None:
    run_contradicting(tmp_path / "run", "fine-tuning")

    for number in (0, 1):
        (path,) = (tmp_path / "run" / f"hospital-{number}" / "personal").iterdir()
        with safe_open(path, framework="numpy") as file:
            assert file.metadata()["model"] in ("personal", "alone")


@pytest.mark.parametrize(("name", "is_right"), [("fedavg", False), ("fedbn", True)])
def test_own_normalisation_takes_out_another_calibration(tmp_path: Path, name: str, is_right: bool) -> None:
    path = "own_models:build_normalised"
    study = CONTRADICTING.format(name=name, model=f'kind = "python"\npath = "{path}"')
    tables = [hospital(1, shift=-1.5), hospital(2, shift=1.5)]

    folder = run_at_hospitals(tmp_path, study, tables, source='label = "ill"', policy=f'python-models = ["{path}"]')

    assert (worst(folder, "accuracy") > 0.8) == is_right
