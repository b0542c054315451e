"""An asynchronous run does not wait for a slow hospital, says who was folded with which staleness, and resumes."""

import io
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation_harness import PLAIN, PRIVATE, Federation, Handler, Outcome
from flwr.app import Context, Message
from rich.console import Console

import fl_server.round_loop as round_loop
from fl_client.settings import read_site_settings
from fl_client.site import open_ledger, training_cohort
from fl_contract.array_record import from_array_record, to_array_record
from fl_contract.errors import QuorumError, SettingError
from fl_contract.messages import ARRAYS, TRAIN, site_of_reply
from fl_contract.study_file import Scalar
from fl_server.checkpoint import Checkpoint, write_checkpoint
from fl_server.live import render_run
from fl_server.local_grid import LocalGrid
from fl_server.report import write_report

BUFFERED: dict[str, Scalar] = {
    **PLAIN,
    "strategy.name": "fedbuff",
    "strategy.buffer-size": 2,
    "federation.min-sites": 2,
    "training.learning-rate": 0.5,
    "num-rounds": 6,
}
SLOW = "hospital-4"


class SlowGrid(LocalGrid):
    """Hands on each training reply of one hospital only after seven more of the others.

    That is a hospital which takes some times as long as the others, without a clock.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._held: dict[str, tuple[Message, int]] = {}
        self._handed_on = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = []
        for reply in super().pull_messages(message_ids):
            is_training = reply.metadata.message_type == TRAIN
            if is_training and site_of_reply(reply) == SLOW:
                self._held[reply.metadata.reply_to_message_id] = (reply, self._handed_on + 7)
            else:
                self._handed_on += is_training
                ready.append(reply)
        for identity, (reply, due) in list(self._held.items()):
            if self._handed_on >= due:
                ready.append(reply)
                del self._held[identity]
        return ready


def staleness_of(outcome: Outcome) -> list[dict[str, int]]:
    return [
        {name: site["staleness"] for name, site in line["sites"].items() if site["staleness"] is not None}
        for line in outcome.rounds
    ]


def test_hospitals_are_folded_as_they_come_and_the_run_learns(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides=BUFFERED)

    # The local engine answers in turn: 1 and 2, then 3 and 4 of the first request, then 1 and 2 of the second.
    assert staleness_of(outcome) == [
        {"hospital-1": 0, "hospital-2": 0},
        *[{"hospital-3": 1, "hospital-4": 1}, {"hospital-1": 1, "hospital-2": 1}] * 2,
        {"hospital-3": 1, "hospital-4": 1},
    ]
    assert outcome.header["status"] == "completed"
    assert outcome.rounds[-1]["pooled"]["loss"] < 0.9 * outcome.rounds[0]["pooled"]["loss"]


def test_fast_hospitals_go_on_while_a_slow_one_trains(tmp_path: Path) -> None:
    overrides = BUFFERED | {"num-rounds": 8, "federation.measure-every": 8}

    outcome = Federation(tmp_path).run(overrides=overrides, grid=SlowGrid)

    folded = staleness_of(outcome)
    when = [number for number, sites in enumerate(folded) if SLOW in sites]
    assert [len(sites) for sites in folded] == [2] * 8
    assert folded[when[0]][SLOW] >= 3
    assert sum(SLOW not in sites for sites in folded) >= 5
    waiting = [line["missing"] for line in outcome.rounds[: when[0]]]
    assert {missing[SLOW]["code"] for missing in waiting} == {"outstanding"}


def test_the_live_table_and_the_report_show_who_is_still_to_come(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides=BUFFERED)
    console = Console(width=200, record=True, file=io.StringIO())

    console.print(render_run(outcome.header, outcome.rounds))

    assert "outstanding" in console.export_text()
    assert "It still trains; its update counts once it comes." in write_report(tmp_path).read_text()


def test_an_update_that_is_too_old_is_recorded_and_not_folded(tmp_path: Path) -> None:
    overrides = BUFFERED | {"num-rounds": 8, "federation.measure-every": 8, "strategy.max-staleness": 1}

    outcome = Federation(tmp_path).run(overrides=overrides, grid=SlowGrid)

    codes = [line["missing"].get(SLOW, {}).get("code") for line in outcome.rounds]
    assert "too-stale" in codes
    assert all(SLOW not in sites for sites in staleness_of(outcome)[: codes.index("too-stale") + 1])


def _with_nan_from(*sites: str) -> Any:
    def wrap(app: Handler) -> Handler:
        def answer(message: Message, context: Context) -> Message:
            reply = app(message, context)
            if message.metadata.message_type == TRAIN and site_of_reply(reply) in sites:
                arrays = from_array_record(reply.content.array_records[ARRAYS])
                broken = {name: np.full_like(array, np.nan) for name, array in arrays.items()}
                reply.content[ARRAYS] = to_array_record(broken)
            return reply

        return answer

    return wrap


def test_a_nan_update_is_left_out_by_name_and_the_run_goes_on(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides=BUFFERED, wrap=_with_nan_from("hospital-2"))

    left_out = [line["missing"]["hospital-2"]["code"] for line in outcome.rounds if "hospital-2" in line["missing"]]
    assert "unusable-reply" in left_out
    assert all("hospital-2" not in sites for sites in staleness_of(outcome))
    assert outcome.header["status"] == "completed"


def test_fewer_usable_hospitals_than_the_buffer_holds_are_an_error_that_names_the_others(tmp_path: Path) -> None:
    broken = ("hospital-1", "hospital-2", "hospital-3")

    with pytest.raises(QuorumError) as caught:
        Federation(tmp_path).run(overrides=BUFFERED, wrap=_with_nan_from(*broken))

    assert "1 usable replies; expected at least 2 (strategy.buffer-size)" in str(caught.value)
    assert all(f"{site}: unusable-reply" in str(caught.value) for site in broken)


def test_a_buffer_larger_than_the_federation_is_refused_before_round_1(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"strategy\.buffer-size=5; expected at most 4, the hospitals that train"):
        Federation(tmp_path).run(overrides=BUFFERED | {"strategy.buffer-size": 5})


class DeafGrid(LocalGrid):
    """Loses the first training reply of one hospital."""

    lost = False

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = []
        for reply in super().pull_messages(message_ids):
            if not self.lost and reply.metadata.message_type == TRAIN and site_of_reply(reply) == "hospital-1":
                self.lost = True
            else:
                ready.append(reply)
        return ready


class DeafAndTiredGrid(DeafGrid):
    """Takes its time from then on."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        time.sleep(0.8 * self.lost)
        return super().push_messages(messages)


DEADLINE: dict[str, Scalar] = {"federation.round-timeout-seconds": 2.0, "num-rounds": 3, "federation.measure-every": 3}


def test_a_round_that_waits_for_a_lost_reply_ends_at_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match=r"hospital-1: deadline \(No reply within 2 s\.\)"):
        Federation(tmp_path).run(overrides=BUFFERED | DEADLINE | {"strategy.buffer-size": 4}, grid=DeafGrid)


def test_a_request_without_a_reply_is_given_up_at_the_deadline_and_the_hospital_asked_again(tmp_path: Path) -> None:
    overrides = BUFFERED | DEADLINE | {"strategy.buffer-size": 3}

    outcome = Federation(tmp_path).run(overrides=overrides, grid=DeafAndTiredGrid)

    codes = [line["missing"].get("hospital-1", {}).get("code") for line in outcome.rounds]
    assert codes == ["outstanding", "deadline", None]
    assert staleness_of(outcome)[2]["hospital-1"] == 0


class _StopError(Exception):
    pass


def _run_and_stop(
    out: Path, after: int, monkeypatch: pytest.MonkeyPatch, overrides: Mapping[str, Scalar], *, is_written: bool = True
) -> None:
    def write_then_stop(folder: Path, checkpoint: Checkpoint) -> None:
        if is_written or checkpoint.server_round < after:
            write_checkpoint(folder, checkpoint)
        if checkpoint.server_round == after:
            raise _StopError

    with monkeypatch.context() as patched:
        patched.setattr(round_loop, "write_checkpoint", write_then_stop)
        with pytest.raises(_StopError):
            Federation(out).run(overrides=overrides)


@pytest.mark.parametrize("stopped_after", [0, 1, 2, 5])
def test_a_resumed_run_asks_again_for_what_was_open_and_equals_an_uninterrupted_one_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    overrides = BUFFERED | {"strategy.buffer-size": 3}
    expected = Federation(tmp_path / "whole").run(overrides=overrides)
    _run_and_stop(tmp_path / "stopped", stopped_after, monkeypatch, overrides)

    outcome = Federation(tmp_path / "stopped").run(overrides=overrides, resume=True)

    assert {name: array.tobytes() for name, array in outcome.model.items()} == {
        name: array.tobytes() for name, array in expected.model.items()
    }
    assert staleness_of(outcome) == staleness_of(expected)
    assert [line["pooled"] for line in outcome.rounds] == [line["pooled"] for line in expected.rounds]


@pytest.mark.parametrize("is_written", [True, False], ids=["between rounds", "in a round"])
def test_a_private_hospital_is_charged_once_for_each_version_it_trained_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    named = {key: value for key, value in BUFFERED.items() if key.startswith(("strategy", "federation"))}
    overrides = PRIVATE | named | {"num-rounds": 5}
    _run_and_stop(tmp_path, 3, monkeypatch, overrides, is_written=is_written)

    outcome = Federation(tmp_path).run(overrides=overrides, resume=True)

    assert outcome.header["status"] == "completed"
    for number in range(1, 5):
        folder = tmp_path / "sites" / f"hospital-{number}"
        settings = read_site_settings(folder / "site.toml")
        with open_ledger(settings, folder, cohort=training_cohort(settings)) as ledger:
            entries = ledger.entries()
        rounds = [entry.server_round for entry in entries]
        assert rounds == sorted(set(rounds))
        assert set(rounds) <= set(range(1, 6))
        assert {entry.attempt for entry in entries} == {1}
