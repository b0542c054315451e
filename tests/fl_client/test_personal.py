"""What a hospital keeps for itself never leaves through its real app, whatever the coordinator or its own code asks."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from safetensors.numpy import load_file

from fl_client.site_files import SITE_LOG
from fl_contract.array_record import Arrays, from_array_record
from fl_contract.errors import RefusalCode
from fl_contract.messages import ARRAYS, EVALUATE, PLAN
from fl_contract.study import Study
from fl_contract.study_file import Scalar

Ask = Callable[..., Message]

BODY = ("1.weight", "1.bias")
HEAD = ("3.weight", "3.bias")


def named(name: str) -> dict[str, Scalar]:
    return {"strategy.name": name, "model.kind": "mlp", "privacy.mechanism": "none"}


def refusal(reply: Message) -> str | None:
    return RefusalCode(reply.error.code).label if reply.has_error() else None


def received(reply: Message) -> Arrays:
    return from_array_record(reply.content.array_records[ARRAYS])


@pytest.fixture
def whole(study_of: Callable[..., Study], model_of: Callable[[Study], Arrays]) -> Arrays:
    """All arrays of the first model."""
    return model_of(study_of(overrides=named("fedavg")))


@pytest.fixture
def body(whole: Arrays) -> Arrays:
    return {name: whole[name] for name in BODY}


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_a_reply_holds_the_body_only(
    name: str, ask: Ask, train: Callable[..., Message], body: Arrays, folder: Path
) -> None:
    ask(PLAN, overrides=named(name))

    reply = train(1, arrays=body, overrides=named(name))

    assert tuple(received(reply)) == BODY
    (kept,) = folder.glob("strategy/*/1.safetensors")
    assert set(load_file(kept)) == set(HEAD)


def test_a_request_for_the_head_is_refused(ask: Ask, train: Callable[..., Message], whole: Arrays) -> None:
    ask(PLAN, overrides=named("fedper"))

    assert refusal(train(1, arrays=whole, overrides=named("fedper"))) == "invalid-request"


def test_the_gate_stops_a_reply_that_holds_the_head(
    ask: Ask, train: Callable[..., Message], body: Arrays, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(PLAN, overrides=named("fedper"))
    monkeypatch.setattr("fl_client.app.outgoing_arrays", lambda site, model, half: half.outgoing())

    assert refusal(train(1, arrays=body, overrides=named("fedper"))) == "disclosure"
    assert "are not the model's; allowed are its own names" in (folder / SITE_LOG).read_text()


@pytest.mark.parametrize("name", ["ditto", "apfl", "fine-tuning"])
def test_the_own_model_is_not_what_a_reply_holds(
    name: str, ask: Ask, train: Callable[..., Message], whole: Arrays, folder: Path
) -> None:
    ask(PLAN, overrides=named(name))

    reply = train(1, arrays=whole, overrides=named(name))
    of_all = {key: array + np.float32(0.1) for key, array in received(reply).items()}
    again = train(2, arrays=of_all, overrides=named(name))

    (kept,) = folder.glob("strategy/*/2.safetensors")
    own = {key.removeprefix("personal/"): array for key, array in load_file(kept).items() if "personal/" in key}
    assert set(own) == set(received(again)) == {*BODY, *HEAD}
    assert not any(np.array_equal(own[key], array) for key, array in received(again).items())


@pytest.mark.parametrize("name", ["ditto", "apfl"])
def test_the_shared_model_is_trained_as_in_fedavg_to_the_bit(
    name: str, ask: Ask, train: Callable[..., Message], whole: Arrays
) -> None:
    replies = []
    for run, overrides in (("run-1", named("fedavg")), ("run-2", named(name))):
        ask(PLAN, run=run, overrides=overrides)
        replies.append(received(train(1, run=run, arrays=whole, overrides=overrides)))

    assert {key: array.tobytes() for key, array in replies[0].items()} == {
        key: array.tobytes() for key, array in replies[1].items()
    }


@pytest.mark.parametrize("name", ["fedper", "fedrep", "ditto", "apfl", "fine-tuning"])
def test_a_repeated_round_gives_the_same_reply_and_state_to_the_bit(
    name: str, ask: Ask, train: Callable[..., Message], whole: Arrays, body: Arrays, folder: Path
) -> None:
    arrays = body if name in ("fedper", "fedrep") else whole
    overrides = named(name) | ({"strategy.adaptive-mixture": True} if name == "apfl" else {})
    ask(PLAN, overrides=overrides)
    train(1, arrays=arrays, overrides=overrides)

    def second() -> tuple[dict[str, bytes], bytes]:
        sent = received(train(2, arrays=arrays, overrides=overrides))
        (kept,) = folder.glob("strategy/*/2.safetensors")
        return {key: array.tobytes() for key, array in sent.items()}, kept.read_bytes()

    assert second() == second()


class TestTheModelThatIsKept:
    @pytest.fixture
    def trained(self, ask: Ask, train: Callable[..., Message], body: Arrays) -> Arrays:
        """After a round of FedPer."""
        ask(PLAN, overrides=named("fedper"))
        return received(train(1, arrays=body, overrides=named("fedper")))

    @staticmethod
    def evaluate(ask: Ask, arrays: Arrays, **options: Any) -> Message:
        return ask(EVALUATE, server_round=1, arrays=arrays, **{"overrides": named("fedper"), **options})

    def test_it_is_the_shared_body_with_the_own_head(self, ask: Ask, trained: Arrays, folder: Path) -> None:
        shared = {name: array + 1 for name, array in trained.items()}

        reply = self.evaluate(ask, shared)

        assert not reply.has_error()
        (own,), (kept,) = folder.glob("personal/*.safetensors"), folder.glob("strategy/*/1.safetensors")
        found, head = load_file(own), load_file(kept)
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: array.tobytes() for name, array in {**shared, **head}.items()
        }
        assert own.parent.stat().st_mode & 0o077 == 0

    def test_its_place_is_in_the_log_once(self, ask: Ask, trained: Arrays, folder: Path) -> None:
        self.evaluate(ask, trained)
        self.evaluate(ask, trained)

        (own,) = folder.glob("personal/*.safetensors")
        assert (folder / SITE_LOG).read_text().count(f"personal/{own.name}") == 1

    def test_it_is_there_though_no_measurement_leaves(
        self, ask: Ask, train: Callable[..., Message], body: Arrays, folder: Path
    ) -> None:
        overrides = named("fedper") | {"privacy.steps-per-round": 2, "privacy.mechanism": "dp-sgd"}
        overrides["simulation.measurements"] = "none"
        ask(PLAN, overrides=overrides)
        train(1, arrays=body, overrides=overrides)

        assert refusal(self.evaluate(ask, body, overrides=overrides)) == "policy"

        assert len(list(folder.glob("personal/*.safetensors"))) == 1

    def test_a_hospital_that_never_trained_measures_with_the_first_head_and_keeps_nothing(
        self, ask: Ask, body: Arrays, folder: Path
    ) -> None:
        ask(PLAN, overrides=named("fedper"))

        assert not self.evaluate(ask, body).has_error()
        assert not (folder / "personal").exists()

    def test_another_algorithm_keeps_none(
        self, ask: Ask, train: Callable[..., Message], whole: Arrays, folder: Path
    ) -> None:
        ask(PLAN, overrides=named("fedavg"))
        train(1, arrays=whole, overrides=named("fedavg"))

        assert not self.evaluate(ask, whole, overrides=named("fedavg")).has_error()
        assert not (folder / "personal").exists()
        assert not (folder / "strategy").exists()


@pytest.mark.parametrize("best", ["global", "personal", "alone"])
def test_a_hospital_keeps_the_model_that_is_best_for_its_validation_patients(
    best: str,
    ask: Ask,
    train: Callable[..., Message],
    whole: Arrays,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Models that are not the best are spoiled where they are kept, or where they come from."""
    overrides = named("fine-tuning")
    ask(PLAN, overrides=overrides)
    tuned = received(train(1, arrays=whole, overrides=overrides))
    (kept,) = folder.glob("strategy/*/1.safetensors")
    prefixes = {"personal": "tuned/", "alone": "personal/"}
    spoilt = {
        key: array if key.startswith(prefixes.get(best, "-")) else -9 * array for key, array in load_file(kept).items()
    }
    monkeypatch.setattr("fl_client.personal.StrategyState.before", lambda *_: spoilt)
    sent = tuned if best == "global" else {key: -9 * array for key, array in tuned.items()}

    reply = ask(EVALUATE, server_round=1, arrays=sent, overrides=overrides)

    assert not reply.has_error()
    (own,) = folder.glob("personal/*.safetensors")
    expected = sent if best == "global" else {key: spoilt[prefixes[best] + key] for key in sent}
    assert {key: array.tobytes() for key, array in load_file(own).items()} == {
        key: array.tobytes() for key, array in expected.items()
    }


def test_a_candidate_whose_outputs_are_not_finite_is_not_chosen(
    ask: Ask, train: Callable[..., Message], whole: Arrays, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    overrides = named("fine-tuning")
    ask(PLAN, overrides=overrides)
    tuned = received(train(1, arrays=whole, overrides=overrides))
    broken = {key: np.full_like(array, 3e38) for key, array in tuned.items()}

    reply = ask(EVALUATE, server_round=1, arrays=broken, overrides=overrides)

    assert not reply.has_error()
    (own,) = folder.glob("personal/*.safetensors")
    assert all(np.abs(array).max() < 1e3 for array in load_file(own).values())
