"""Whole runs whose hospitals send coded updates: every strategy sees models, and no promise of a run is lost."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from federation_harness import PLAIN, PRIVATE, Federation, Handler, Outcome
from flwr.app import Array, Context, Message

import fl_server.round_loop as round_loop
from fl_contract.array_record import to_array_record
from fl_contract.coded_update import SERIALISATION, UPDATE
from fl_contract.messages import ARRAYS, Request
from fl_contract.study_file import Scalar, load_study
from fl_server.checkpoint import Checkpoint, write_checkpoint
from fl_server.traffic import expect_traffic

CODECS: dict[str, dict[str, Scalar]] = {
    "float16": {},
    "bfloat16": {},
    "int8": {},
    "int8-zstd": {"communication.zstd": True},
    "rotation": {},
    "rotation-4": {"communication.bits": 4},
    "top-k": {"communication.fraction": 0.3},
    "powersgd": {"communication.rank": 2, "model.kind": "mlp", "model.hidden-size": 16},
}


def coded(name: str) -> dict[str, Scalar]:
    codec = name.removesuffix("-zstd").removesuffix("-4")
    return {**PLAIN, "num-rounds": 4, "communication.codec": codec, **CODECS[name]}


class _StopError(Exception):
    pass


def _stop_after(server_round: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a round, keep its state at the hospitals, and lose it at the coordinator."""

    def write_then_stop(folder: Path, checkpoint: Checkpoint) -> None:
        if checkpoint.server_round == server_round:
            raise _StopError
        write_checkpoint(folder, checkpoint)

    monkeypatch.setattr(round_loop, "write_checkpoint", write_then_stop)


def _bytes(outcome: Outcome) -> dict[str, list[tuple[float, ...]]]:
    return {name: [tuple(array.ravel().tolist())] for name, array in outcome.model.items()}


@pytest.mark.parametrize("name", CODECS)
def test_a_coded_run_learns_and_repeats_a_round_that_was_cut_off_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = Federation(tmp_path / "whole").run(overrides=coded(name))
    federation = Federation(tmp_path / "stopped")
    with monkeypatch.context() as patched:
        _stop_after(3, patched)
        with pytest.raises(_StopError):
            federation.run(overrides=coded(name))

    outcome = federation.run(overrides=coded(name), resume=True)

    assert _bytes(outcome) == _bytes(expected)
    assert outcome.rounds[-1]["missing"] == {}
    assert outcome.rounds[-1]["pooled"]["loss"] < 0.9 * outcome.rounds[0]["pooled"]["loss"]


@pytest.mark.parametrize("name", ["none", "rotation", "int8"])
def test_the_record_counts_the_bytes_that_were_expected(tmp_path: Path, name: str) -> None:
    overrides: dict[str, Scalar] = {**PLAIN, "num-rounds": 2, "communication.codec": name}
    study = load_study("breast-cancer", overrides=overrides)

    outcome = Federation(tmp_path).run(overrides=overrides)

    traffic = expect_traffic(study, study.build_model())
    for line in outcome.rounds:
        for site in line["sites"].values():
            assert (site["bytes_down"], site["bytes_up"]) == (traffic.down + traffic.measured, traffic.up)
    # A weight of 30 numbers and a bias, each with NumPy's 128 bytes and its name; or scale and code of 31 numbers.
    sizes = {"none": 31 * 4 + 2 * 128 + 14, "rotation": 4 + 4 + len(UPDATE), "int8": 4 + 31 + len(UPDATE)}
    assert traffic.up == sizes[name]


def test_a_simulation_says_first_what_will_travel() -> None:
    study = load_study("breast-cancer", overrides={**PLAIN, "num-rounds": 2, "communication.codec": "int8"})

    said = expect_traffic(study, study.build_model()).in_words(study)

    # 394 bytes to train and to measure in each of two rounds, 42 bytes up: 42 / 394 = 10.7 %.
    assert re.fullmatch(
        r"for each hospital at most 1.58 kB down and 84 B up "
        r"\(394 B down to train, 394 B to measure, 42 B up a round, 10.7% of the model\)",
        said,
    )


def test_a_private_run_codes_after_the_noise_and_a_repeated_round_sends_the_same_bytes(tmp_path: Path) -> None:
    sent: dict[tuple[str, int], list[bytes]] = {}

    def ask_twice(app: Handler) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            if message.metadata.message_type != "train":
                return app(message, context)
            request = Request.from_message(message)
            replies = [app(message, context) for _ in range(2)]
            sent[request.site, request.server_round] = [
                reply.content.array_records[ARRAYS][UPDATE].data for reply in replies
            ]
            return replies[1]

        return handle

    outcome = Federation(tmp_path).run(
        overrides={**PRIVATE, "communication.codec": "top-k", "communication.fraction": 0.2}, wrap=ask_twice
    )

    assert len(sent) == 4 * 3
    assert all(first == second for first, second in sent.values())
    assert outcome.rounds[-1]["sites"]["hospital-1"]["epsilon"] <= 8.0


def test_hospital_level_privacy_and_a_codec_go_together(tmp_path: Path) -> None:
    central: dict[str, Scalar] = {"epsilon": 8.0, "delta": 1e-3, "clip-norm": 1.0}
    overrides = {**PLAIN, "communication.codec": "rotation", "strategy.weighting": "equal"}

    outcome = Federation(tmp_path).run(
        overrides=overrides | {f"central-privacy.{key}": central[key] for key in central}
    )

    assert outcome.rounds[-1]["central"]["rounds"] == 3
    assert outcome.rounds[-1]["missing"] == {}


def _spoil(change: Callable[[Message], None]) -> Callable[[Handler], Handler]:
    def wrap(app: Handler) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            reply = app(message, context)
            if message.metadata.message_type == "train" and Request.from_message(message).site == "hospital-2":
                change(reply)
            return reply

        return handle

    return wrap


def _send(content: bytes, *, stype: str = SERIALISATION) -> Callable[[Message], None]:
    def change(reply: Message) -> None:
        array = Array(dtype="uint8", shape=(len(content),), stype=stype, data=content)
        reply.content.array_records[ARRAYS][UPDATE] = array

    return change


def _send_weights(reply: Message) -> None:
    reply.content[ARRAYS] = to_array_record({"1.weight": np.zeros((1, 30), dtype=np.float32)})


def _send_no_arrays(reply: Message) -> None:
    del reply.content[ARRAYS]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(_send(bytes(7)), r"arrays \['.update'\] are not of the form", id="too short"),
        pytest.param(_send(b"\xff" * 8), "holds NaN or infinity", id="NaN"),
        pytest.param(_send(np.float32(1e30).tobytes() + bytes(4)), "norm is", id="a scale of 1e30"),
        pytest.param(_send(bytes(8), stype="pickle"), r"arrays \['.update'\]", id="a pickle"),
        pytest.param(_send_weights, r"'.update', '1.weight'|'1.weight', '.update'", id="plain weights"),
        pytest.param(_send_no_arrays, "expected 'arrays'", id="no arrays"),
    ],
)
def test_a_hospital_that_sends_something_else_is_left_out_and_the_run_goes_on(
    tmp_path: Path, change: Callable[[Message], None], reason: str
) -> None:
    overrides: dict[str, Scalar] = {**PLAIN, "num-rounds": 1, "communication.codec": "rotation"}

    outcome = Federation(tmp_path).run(overrides=overrides, wrap=_spoil(change))

    absence = outcome.rounds[0]["missing"]["hospital-2"]
    assert absence["code"] == "unusable-reply"
    assert re.search(reason, absence["reason"])
    assert set(outcome.rounds[0]["missing"]) == {"hospital-2"}
