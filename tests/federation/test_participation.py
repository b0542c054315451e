"""Hospitals that answer late, never or wrongly do not stop a run, cost it no more than they must, and are named."""

import time
from pathlib import Path

import numpy as np
import pytest
from federation_harness import PLAIN, PRIVATE, Federation, Handler, Outcome
from flwr.app import Context, Error, Message
from stopped_runs import StopError, stop_after
from unreliable_grid import Network

from fl_client.settings import read_site_settings
from fl_client.site import open_ledger, training_cohort
from fl_contract.array_record import Arrays, from_array_record
from fl_contract.errors import QuorumError, RefusalCode
from fl_contract.messages import ARRAYS, Request
from fl_contract.study_file import STUDIES, Scalar
from fl_server.late_replies import MAX_STALENESS

ALL = [f"hospital-{number}" for number in range(1, 5)]
LAST = "hospital-4"
FOLD: dict[str, Scalar] = {**PLAIN, "num-rounds": 4, "federation.late-replies": "fold"}


def _codes(outcome: Outcome, site: str) -> dict[int, str]:
    return {line["round"]: line["missing"][site]["code"] for line in outcome.rounds if site in line["missing"]}


def _rounds_of(asked: dict[int, list[str]], site: str) -> list[int]:
    return [number for number, sites in sorted(asked.items()) if site in sites]


def _sent(network: Network, server_round: int) -> Arrays:
    return from_array_record(network.requests["hospital-1", server_round].content.array_records[ARRAYS])


def _resume_after(
    server_round: int, federation: Federation, overrides: dict[str, Scalar], monkeypatch: pytest.MonkeyPatch
) -> Outcome:
    with monkeypatch.context() as patched:
        stop_after(server_round, patched)
        with pytest.raises(StopError):
            federation.run(overrides=overrides)
    return federation.run(overrides=overrides, resume=True)


def _assert_same_result(outcome: Outcome, expected: Outcome) -> None:
    assert {name: array.tobytes() for name, array in outcome.model.items()} == {
        name: array.tobytes() for name, array in expected.model.items()
    }
    for ours, theirs in zip(outcome.rounds, expected.rounds, strict=True):
        assert (ours["pooled"], ours["missing"]) == (theirs["pooled"], theirs["missing"])


def test_a_late_reply_is_folded_into_the_next_round_as_an_update_of_the_model_that_it_began_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(hold=lambda site, number: (site, number) == (LAST, 2)).install(monkeypatch)

    outcome = Federation(tmp_path).run(overrides=FOLD)

    assert _rounds_of(network.asked, LAST) == [1, 2, 4]  # not while its reply is awaited
    assert _rounds_of(network.measured, LAST) == [1, 3, 4]
    assert _codes(outcome, LAST) == {2: "deadline"}
    assert [line["sites"].get(LAST, {}).get("staleness") for line in outcome.rounds] == [None, None, 1, None]
    weights = {site: outcome.header["sites"][site]["num_examples"] for site in ALL}
    old, new = _sent(network, 2), _sent(network, 3)
    for name, then in _sent(network, 4).items():
        moved = {site: network.models[site, 3][name] for site in ALL[:3]}
        moved[LAST] = new[name] + (network.models[LAST, 2][name] - old[name])
        expected = sum(weights[site] * array for site, array in moved.items()) / sum(weights.values())
        np.testing.assert_allclose(then, expected, atol=1e-5)


def test_a_late_reply_is_dropped_unless_the_study_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(hold=lambda site, number: (site, number) == (LAST, 2)).install(monkeypatch)

    outcome = Federation(tmp_path).run(overrides={**PLAIN, "num-rounds": 4})

    assert _rounds_of(network.asked, LAST) == [1, 2, 3, 4]
    assert outcome.rounds[1]["missing"][LAST] == {"code": "deadline", "reason": "No reply within 600 s."}
    assert all(site["staleness"] is None for line in outcome.rounds for site in line["sites"].values())


def test_a_reply_that_never_comes_is_given_up_and_its_hospital_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(lose=lambda site, number: (site, number) == (LAST, 2)).install(monkeypatch)

    outcome = Federation(tmp_path).run(overrides={**FOLD, "num-rounds": 8})

    assert MAX_STALENESS == 4
    assert _rounds_of(network.asked, LAST) == [1, 2, 7, 8]
    assert _codes(outcome, LAST) == {2: "deadline"} | dict.fromkeys(range(3, 7), "awaited")
    assert "Its reply to round 2 is awaited" in outcome.rounds[2]["missing"][LAST]["reason"]


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_a_run_resumed_while_a_reply_is_awaited_asks_for_it_again_and_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    network = Network(hold=lambda site, number: (site, number) == (LAST, 2)).install(monkeypatch)
    expected = Federation(tmp_path / "whole").run(overrides=FOLD)
    network.asked.clear()

    outcome = _resume_after(stopped_after, Federation(tmp_path / "stopped"), FOLD, monkeypatch)

    _assert_same_result(outcome, expected)
    assert outcome.rounds[2]["sites"][LAST]["staleness"] == 1


def test_a_late_reply_of_a_private_round_is_charged_once_also_where_the_run_was_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Network(hold=lambda site, number: (site, number) == (LAST, 1)).install(monkeypatch)
    overrides = {**PRIVATE, "federation.late-replies": "fold"}

    outcome = _resume_after(1, Federation(tmp_path), overrides, monkeypatch)

    settings = read_site_settings(tmp_path / "sites" / LAST / "site.toml")
    with open_ledger(settings, tmp_path / "sites" / LAST, cohort=training_cohort(settings)) as ledger:
        assert [(entry.server_round, entry.attempt) for entry in ledger.entries()] == [(1, 1), (3, 1)]
    assert outcome.rounds[1]["sites"][LAST]["staleness"] == 1
    assert outcome.rounds[1]["sites"][LAST]["steps"] == 2


def test_late_replies_count_for_the_quorum_and_the_round_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = ("hospital-3", LAST)
    Network(hold=lambda site, number: site in late and number == 2).install(monkeypatch)

    outcome = Federation(tmp_path).run(overrides={**FOLD, "num-rounds": 3, "federation.min-sites": 2})

    assert [outcome.rounds[2]["sites"][site]["staleness"] for site in late] == [1, 1]
    assert outcome.rounds[2]["missing"] == {}


def test_a_hospital_that_fails_again_and_again_is_set_aside_and_comes_back_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(lose=lambda site, number: site == LAST and 2 <= number <= 7).install(monkeypatch)

    outcome = Federation(tmp_path).run(overrides={**PLAIN, "num-rounds": 10, "federation.set-aside-after": 2})

    # Fails in 2 and 3; sits out 1 round, fails in 5; sits out 2 rounds, answers in 8.
    assert _rounds_of(network.asked, LAST) == [1, 2, 3, 5, 8, 9, 10]
    assert _codes(outcome, LAST) == {
        **{2: "deadline", 3: "deadline", 4: "set-aside", 5: "deadline"},
        **{6: "set-aside", 7: "set-aside"},
    }
    assert "no usable reply 2 times in a row or more (deadline)" in outcome.rounds[3]["missing"][LAST]["reason"]
    # While it is silent, no round waits for its measurement either.
    assert _rounds_of(network.measured, LAST) == [1, 2, 8, 9, 10]


@pytest.mark.parametrize("stopped_after", [3, 5])
def test_a_resumed_run_sets_the_same_hospitals_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    network = Network(lose=lambda site, number: site == LAST and 2 <= number <= 5).install(monkeypatch)
    overrides = {**PLAIN, "num-rounds": 8, "federation.set-aside-after": 2, "federation.fraction-sites": 0.9}
    expected = Federation(tmp_path / "whole").run(overrides=overrides)
    asked = dict(network.asked)
    network.asked.clear()

    outcome = _resume_after(stopped_after, Federation(tmp_path / "stopped"), overrides, monkeypatch)

    assert network.asked == asked
    _assert_same_result(outcome, expected)


def _answering(site: str, rounds: range, change: Error | None) -> "type[_Wrapper]":
    return type("Wrapped", (_Wrapper,), {"site": site, "rounds": rounds, "error": change})


class _Wrapper:
    """Stands in front of the hospitals' app and answers train requests of one of them otherwise."""

    site: str
    rounds: range
    error: Error | None

    def __init__(self, app: Handler) -> None:
        self._app = app

    def __call__(self, message: Message, context: Context) -> Message:
        request = Request.from_message(message)
        is_hit = message.metadata.message_type == "train" and request.site == self.site
        if not is_hit or request.server_round not in self.rounds:
            return self._app(message, context)
        if self.error is not None:
            return Message(self.error, reply_to=message)
        reply = self._app(message, context)
        del reply.content[ARRAYS]
        return reply


REFUSALS = {
    "unusable": (None, [1, 2, 3, 5, 6], "unusable-reply"),
    "internal": (RefusalCode.INTERNAL, [1, 2, 3, 5, 6], "internal"),
    "policy": (RefusalCode.POLICY, [1, 2], "policy"),
    "budget": (RefusalCode.BUDGET_EXHAUSTED, [1, 2], "budget-exhausted"),
}


@pytest.mark.parametrize(("code", "asked", "label"), REFUSALS.values(), ids=list(REFUSALS))
def test_what_goes_wrong_is_tried_again_but_what_a_hospital_refuses_for_the_run_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: RefusalCode | None, asked: list[int], label: str
) -> None:
    network = Network().install(monkeypatch)
    error = None if code is None else Error(code=int(code), reason=code.sentence)
    wrap = _answering(LAST, range(2, 4), error)

    outcome = Federation(tmp_path).run(
        overrides={**PLAIN, "num-rounds": 6, "federation.set-aside-after": 2}, wrap=lambda app: wrap(app)
    )

    assert _rounds_of(network.asked, LAST) == asked
    failed = {number: label for number in asked if number in (2, 3)}
    assert _codes(outcome, LAST) == failed | {number: "set-aside" for number in range(1, 7) if number not in asked}
    if len(asked) == 2:  # it refuses to train, and may still measure: held-out patients have a budget of their own
        assert _rounds_of(network.measured, LAST) == [1, 2, 3, 4, 5, 6]


def test_a_quorum_that_is_missed_names_every_hospital_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(site: str, number: int) -> bool:
        return site == LAST or (number == 3 and site in ("hospital-2", "hospital-3"))

    Network(lose=lose).install(monkeypatch)
    overrides = {**PLAIN, "num-rounds": 3, "federation.min-sites": 2, "federation.set-aside-after": 2}

    with pytest.raises(QuorumError) as caught:
        Federation(tmp_path).run(overrides=overrides)

    text = str(caught.value)
    assert text.startswith("round 3: 1 usable replies; expected at least 2 (federation.min-sites).")
    assert "hospital-2: deadline (No reply within 600 s.); hospital-3: deadline" in text
    assert "hospital-4: set-aside (It gave no usable reply 2 times in a row" in text


def test_late_replies_go_with_privacy_for_whole_hospitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Network(hold=lambda site, number: (site, number) == (LAST, 1)).install(monkeypatch)
    central = {f"central-privacy.{key}": value for key, value in (("epsilon", 8.0), ("delta", 0.1), ("clip-norm", 1.0))}

    outcome = Federation(tmp_path).run(overrides={**FOLD, "num-rounds": 3, **central})

    assert outcome.rounds[1]["sites"][LAST]["staleness"] == 1
    assert [line["central"]["rounds"] for line in outcome.rounds] == [1, 2, 3]


def test_every_round_asks_the_minimum_of_each_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network().install(monkeypatch)
    studies = tmp_path / "studies"
    studies.mkdir()
    text = (STUDIES / "breast-cancer.toml").read_text()
    regions = 'regions = {hospital-1 = "north", hospital-2 = "north", hospital-3 = "north", hospital-4 = "south"}'
    (studies / "breast-cancer.toml").write_text(
        text.replace("[federation]\n", f"[federation]\n{regions}\nmin-per-region = 1\nfraction-sites = 0.5\n")
    )

    Federation(tmp_path / "run").run(overrides={**PLAIN, "federation.min-sites": 2}, studies=studies)

    assert [len(sites) for sites in network.asked.values()] == [2, 2, 2]
    assert _rounds_of(network.asked, LAST) == [1, 2, 3]  # the only one of the south


BALANCED: dict[str, Scalar] = {**PLAIN, "num-rounds": 4, "training.local-steps": 8, "federation.balance": True}


class _Slow:
    """Hospitals that need so many seconds a step; keeps what each was asked for and how long it took."""

    def __init__(self, seconds_a_step: dict[str, float]) -> None:
        self._seconds_a_step = seconds_a_step
        self.steps: list[tuple[int, str, int | None]] = []
        self.seconds: dict[int, dict[str, float]] = {}

    def wrap(self, app: Handler) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            request, started = Request.from_message(message), time.monotonic()
            if message.metadata.message_type != "train":
                return app(message, context)
            self.steps.append((request.server_round, request.site, request.local_steps))
            time.sleep(self._seconds_a_step[request.site] * (request.local_steps or 0))
            reply = app(message, context)
            self.seconds.setdefault(request.server_round, {})[request.site] = time.monotonic() - started
            return reply

        return handle


def test_slower_hospitals_are_asked_for_fewer_steps_until_all_finish_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = dict(zip(ALL, (6.0, 6.0, 12.0, 20.0), strict=True))
    Network(seconds_a_step=speed).install(monkeypatch)

    outcome = Federation(tmp_path).run(overrides=BALANCED)

    steps = [[line["sites"][site]["local_steps"] for site in ALL] for line in outcome.rounds]
    # The middle one needs 8 * 6 = 48 s: 4 steps of 12 s, and 2 of 20 s, a quarter of 8.
    assert steps == [[8, 8, 8, 8], [8, 8, 4, 2], [8, 8, 4, 2], [8, 8, 4, 2]]
    assert outcome.rounds[-1]["pooled"]["loss"] < 0.9 * outcome.rounds[0]["pooled"]["loss"]


@pytest.mark.slow
def test_a_round_that_is_repeated_asks_for_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = _Slow(dict(zip(ALL, (0.01, 0.01, 0.02, 0.05), strict=True)))
    federation = Federation(tmp_path)
    with monkeypatch.context() as patched:
        stop_after(3, patched, is_written=False)
        with pytest.raises(StopError):
            federation.run(overrides=BALANCED, wrap=slow.wrap)
    before = [each for each in slow.steps if each[0] == 3]
    slow.steps.clear()

    federation.run(overrides=BALANCED, wrap=slow.wrap, resume=True)

    assert [each for each in slow.steps if each[0] == 3] == before
    assert {steps for _, _, steps in before} != {8}
