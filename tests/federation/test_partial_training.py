"""Runs that train a part of the model: the rest neither moves nor travels, whatever else the study asks for."""

from pathlib import Path

import numpy as np
import pytest
from federation_harness import PLAIN, PRIVATE, Federation, Handler, Outcome
from flwr.app import Context, Message

from fl_contract.messages import ARRAYS
from fl_contract.study_file import Scalar, load_study

MLP: dict[str, Scalar] = {"model.kind": "mlp", "model.hidden-size": 16, "training.learning-rate": 0.3}
HEAD: dict[str, Scalar] = {**MLP, "model.trainable": "head"}
LORA: dict[str, Scalar] = {**MLP, "model.trainable": "lora", "model.lora-rank": 2}

TRAVELS = {
    "head": {"3.weight", "3.bias"},
    "lora": {"3.weight", "3.bias", "1.lora_down.weight", "1.lora_up.weight"},
}


def run(out: Path, overrides: dict[str, Scalar]) -> tuple[Outcome, set[str]]:
    """A run, and the names of all arrays that were in any message."""
    seen: set[str] = set()

    def watch(app: Handler) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            reply = app(message, context)
            for each in (message, reply):
                if each.has_content():
                    seen.update(each.content.array_records.get(ARRAYS, {}))
            return reply

        return handle

    return Federation(out).run(overrides=overrides, wrap=watch), seen


def assert_frozen(outcome: Outcome, overrides: dict[str, Scalar], travels: set[str]) -> None:
    """All arrays but those that travel are as they were at the start, and of these all have moved."""
    start = load_study("breast-cancer", overrides=overrides).build_model().state_dict()
    assert set(outcome.model) == set(start)
    moved = {name for name in start if not np.array_equal(outcome.model[name], start[name].numpy())}
    assert moved == travels


@pytest.mark.parametrize(("name", "chosen"), [("head", HEAD), ("lora", LORA)])
@pytest.mark.parametrize("privacy", ["plain", "private"])
def test_only_the_trained_part_travels_and_moves(
    tmp_path: Path, name: str, chosen: dict[str, Scalar], privacy: str
) -> None:
    overrides = chosen | (PLAIN if privacy == "plain" else PRIVATE)

    outcome, seen = run(tmp_path, overrides)

    assert seen == TRAVELS[name]
    assert_frozen(outcome, overrides, TRAVELS[name])
    assert outcome.rounds[-1]["missing"] == {}
    if privacy == "plain":
        assert outcome.rounds[-1]["pooled"]["loss"] < outcome.rounds[0]["pooled"]["loss"]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"strategy.name": "scaffold", "training.local-steps": 3}, id="scaffold"),
        pytest.param({"strategy.name": "median", "strategy.weighting": "equal"}, id="median"),
        pytest.param({"communication.codec": "rotation", "communication.bits": 4}, id="a codec"),
        pytest.param(
            {
                "central-privacy.epsilon": 8.0,
                "central-privacy.delta": 1e-3,
                "central-privacy.clip-norm": 1.0,
                "strategy.weighting": "equal",
            },
            id="hospital-level privacy",
        ),
    ],
)
def test_it_goes_together_with(tmp_path: Path, more: dict[str, Scalar]) -> None:
    overrides = PLAIN | LORA | more

    outcome, _ = run(tmp_path, overrides)

    assert outcome.rounds[-1]["missing"] == {}
    start = load_study("breast-cancer", overrides=overrides).build_model().state_dict()
    for name, array in outcome.model.items():
        if name not in TRAVELS["lora"]:
            np.testing.assert_array_equal(array, start[name].numpy())
