"""What training costs at the hospital's real app: each release one charge, made before it, whatever crashes."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fl_client.data.records import SiteRecords
from fl_client.journal import JOURNAL_FILE, RELEASE, Journal
from fl_client.outbox import Outbox
from fl_client.training import train_with_privacy
from fl_contract.array_record import Arrays, from_array_record
from fl_contract.errors import RefusalCode
from fl_contract.messages import ARRAYS, METRICS, PLAN
from privacy.accounting import compute_epsilon
from privacy.ledger import Ledger
from privacy.ledger_book import LedgerEntry

DELTA = 0.001
NOT_PRIVATE = {"privacy.mechanism": "none"}
THREE_ROUNDS = {"simulation.epsilon-budget": 3.0}
"""A run of three rounds gets as much noise as that needs; two runs share it."""

Ask = Callable[..., Message]
EditRecords = Callable[[Callable[[SiteRecords], SiteRecords]], None]


def refusal(reply: Message) -> str | None:
    """The code of an error reply in words; None of an answer."""
    return RefusalCode(reply.error.code).label if reply.has_error() else None


def fields_of(reply: Message) -> set[str]:
    return {f"{name}.{field}" for name, record in reply.content.items() for field in record}


def fail(*_: object, **__: object) -> None:
    raise OSError("the disk is full")


def count_released(folder: Path) -> int:
    """Train replies that left the hospital."""
    return sum(entry.kind == RELEASE and entry.fields["reply"] == "train" for entry in Journal(folder).read())


class TestTrainingWithoutPrivacy:
    @pytest.fixture(autouse=True)
    def agreed(self, ask: Ask) -> None:
        for site in ("hospital-1", "hospital-2"):
            ask(PLAN, site=site, overrides=NOT_PRIVATE)

    def test_the_same_request_gives_the_same_reply_to_the_bit(
        self, train: Callable[..., Message], to_bytes: Callable[[Any], bytes]
    ) -> None:
        first, second = train(1, overrides=NOT_PRIVATE), train(1, overrides=NOT_PRIVATE)

        assert to_bytes(first.content) == to_bytes(second.content)

    def test_another_round_and_another_hospital_give_other_weights(self, train: Callable[..., Message]) -> None:
        replies = [
            train(1, overrides=NOT_PRIVATE),
            train(2, overrides=NOT_PRIVATE),
            train(1, site="hospital-2", overrides=NOT_PRIVATE),
        ]

        weights = {from_array_record(reply.content.array_records[ARRAYS])["1.weight"].tobytes() for reply in replies}
        assert len(weights) == 3

    def test_nothing_is_charged_and_no_spend_is_told(self, train: Callable[..., Message], folder: Path) -> None:
        reply = train(1, overrides=NOT_PRIVATE)

        assert fields_of(reply) == {"arrays.1.weight", "arrays.1.bias", "metrics.num-examples", "config.site"}
        left = sorted(path.name for path in folder.iterdir())
        assert left == ["agreements", JOURNAL_FILE, "receipts", "site.log", "site.toml"]


class TestTrainingLoss:
    """A reply holds the exact loss of the received model for the one algorithm that needs it."""

    OVERRIDES = NOT_PRIVATE | {"strategy.name": "q-fedavg"}

    def test_it_is_that_of_the_received_model_on_the_training_patients(
        self, ask: Ask, train: Callable[..., Message], model: Arrays, edit_records: EditRecords, folder: Path
    ) -> None:
        labels: list[str] = []

        def note(site: SiteRecords) -> SiteRecords:
            labels[:] = [str(label) for label in site.train.labels]
            return site

        edit_records(note)
        ask(PLAN, overrides=self.OVERRIDES)
        arrays = {name: np.zeros_like(array) for name, array in model.items()}
        arrays["1.bias"][:] = 2.0

        reply = train(1, arrays=arrays, overrides=self.OVERRIDES)

        # Every patient's log-odds of being malignant are 2: log(1 + e^2) for the benign, log(1 + e^-2) for the others.
        share = np.mean([label == "malignant" for label in labels])
        expected = share * np.log1p(np.exp(-2)) + (1 - share) * np.log1p(np.exp(2))
        assert reply.content.metric_records[METRICS]["loss"] == pytest.approx(expected, rel=1e-6)
        assert fields_of(reply) == {
            *("arrays.1.weight", "arrays.1.bias", "config.site"),
            *("metrics.num-examples", "metrics.loss"),
        }
        logged = Journal(folder).read()[-1].fields
        assert (logged["reply"], logged["fields"]["metrics"]) == ("train.with-loss", ["loss", "num-examples"])

    def test_a_hospital_that_sends_no_exact_number_refuses_before_and_during_the_run(
        self, ask: Ask, train: Callable[..., Message], write_site_file: Callable[..., Path]
    ) -> None:
        policy = {"require_privacy": "false", "unit": '"record"'}
        options: dict[str, Any] = {"site": "st-anna", "overrides": self.OVERRIDES}
        options["node_config"] = {"site-file": str(write_site_file(**policy, measurements='"exact"'))}
        assert refusal(ask(PLAN, **options)) is None
        assert refusal(train(1, **options)) is None

        write_site_file(**policy, measurements='"noised"')

        assert refusal(ask(PLAN, run="run-2", **options)) == "policy"
        assert refusal(train(2, **options)) == "policy"


class TestPrivateTraining:
    def test_a_reply_holds_weights_spend_and_the_rounded_number_of_patients_only(
        self, ask: Ask, train: Callable[..., Message], edit_records: EditRecords
    ) -> None:
        def keep_83(site: SiteRecords) -> SiteRecords:
            return SiteRecords(train=site.train.take(np.arange(-42, 41)), test=site.test)

        edit_records(keep_83)
        ask(PLAN)

        reply = train(1)

        assert fields_of(reply) == {
            *("arrays.1.weight", "arrays.1.bias", "config.site"),
            *("metrics.num-examples", "metrics.epsilon", "metrics.delta", "metrics.steps"),
        }
        metrics = reply.content.metric_records[METRICS]
        assert (metrics["num-examples"], metrics["delta"], metrics["steps"]) == (80, DELTA, 4)

    def test_a_ledger_that_is_lost_trains_nothing_and_is_not_begun_anew(
        self, ask: Ask, train: Callable[..., Message], folder: Path
    ) -> None:
        ask(PLAN)
        (folder / "ledger.sqlite").unlink()

        assert refusal(train(1)) == "internal"
        assert refusal(ask(PLAN, run="run-2")) == "internal"
        assert not (folder / "ledger.sqlite").exists()

    def test_a_run_without_a_plan_in_the_ledger_trains_nothing(
        self, ask: Ask, train: Callable[..., Message], folder: Path
    ) -> None:
        ask(PLAN)
        for path in (folder / "ledger.sqlite", folder / "receipts" / "ledger.receipt"):
            path.unlink()

        assert refusal(train(1)) == "invalid-request"

    def test_the_epsilon_in_a_reply_is_that_of_the_ledger(
        self, ask: Ask, train: Callable[..., Message], charges: Callable[[], list[LedgerEntry]]
    ) -> None:
        ask(PLAN)

        for server_round in (1, 2):
            told = train(server_round).content.metric_records[METRICS]["epsilon"]
            assert told == compute_epsilon([entry.spend for entry in charges()], DELTA)

        assert [(entry.server_round, entry.steps_run) for entry in charges()] == [(1, 4), (2, 4)]

    def test_the_epsilon_in_a_reply_says_nothing_of_other_runs(self, ask: Ask, train: Callable[..., Message]) -> None:
        ask(PLAN, run="run-1")
        ask(PLAN, run="run-2")

        first, other = train(1, run="run-1"), train(1, run="run-2")

        assert other.content.metric_records[METRICS] == first.content.metric_records[METRICS]

    def test_training_is_charged_before_it_begins(
        self,
        ask: Ask,
        train: Callable[..., Message],
        charges: Callable[[], list[LedgerEntry]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        ask(PLAN)
        seen: list[tuple[int, int | None]] = []

        def crash(*_: object) -> int:
            seen.extend((entry.steps_reserved, entry.steps_run) for entry in charges())
            raise RuntimeError

        monkeypatch.setattr("fl_client.private_round.train_with_privacy", crash)

        assert refusal(train(1)) == "internal"
        assert seen == [(4, None)]

    def test_an_exhausted_budget_refuses_the_round_and_charges_nothing(
        self, ask: Ask, train: Callable[..., Message], charges: Callable[[], list[LedgerEntry]]
    ) -> None:
        rounds = [("run-1", 1), ("run-1", 2), ("run-2", 1), ("run-2", 2)]
        for run in ("run-1", "run-2"):
            ask(PLAN, run=run, overrides=THREE_ROUNDS)

        codes = [refusal(train(server_round, run=run, overrides=THREE_ROUNDS)) for run, server_round in rounds]

        assert codes == [None, None, None, "budget-exhausted"]
        assert len(charges()) == 3

    def test_the_last_of_a_budget_is_granted_as_a_part_of_a_round_and_the_reply_says_how_many_steps(
        self, ask: Ask, train: Callable[..., Message], charges: Callable[[], list[LedgerEntry]]
    ) -> None:
        # Both runs have 12 steps in all, so the same noise; after 2 rounds of 4 there is room for 4 more.
        in_one_round = {**THREE_ROUNDS, "num-rounds": 1, "privacy.steps-per-round": 12}
        ask(PLAN, overrides=THREE_ROUNDS)
        ask(PLAN, run="run-2", overrides=in_one_round)
        for server_round in (1, 2):
            train(server_round, overrides=THREE_ROUNDS)

        reply = train(1, run="run-2", overrides=in_one_round)

        assert reply.content.metric_records[METRICS]["steps"] == 4
        assert [(entry.steps_reserved, entry.steps_run) for entry in charges()] == [(4, 4)] * 3
        assert compute_epsilon([entry.spend for entry in charges()], DELTA) <= 3.0

    def test_every_study_draws_on_the_same_budget(self, ask: Ask, train: Callable[..., Message]) -> None:
        ask(PLAN, run="run-1", overrides=THREE_ROUNDS)
        for server_round in (1, 2, 3):
            assert refusal(train(server_round, run="run-1", overrides=THREE_ROUNDS)) is None

        assert refusal(ask(PLAN, run="run-2", overrides=THREE_ROUNDS)) == "budget-exhausted"

    def test_each_hospital_draws_on_its_own_budget(
        self, ask: Ask, train: Callable[..., Message], charges: Callable[[], list[LedgerEntry]]
    ) -> None:
        for site in ("hospital-1", "hospital-2"):
            ask(PLAN, site=site)
            train(1, site=site)

        assert len(charges()) == 1


class TestRetries:
    @pytest.mark.parametrize("is_restarted", [False, True], ids=["same process", "another process"])
    def test_a_repeated_round_gives_the_stored_reply_byte_for_byte_at_no_charge(
        self,
        ask: Ask,
        train: Callable[..., Message],
        charges: Callable[[], list[LedgerEntry]],
        restart: Callable[[], None],
        to_bytes: Callable[[Any], bytes],
        is_restarted: bool,
    ) -> None:
        ask(PLAN)
        first = train(1)
        if is_restarted:
            restart()

        again = train(1)

        assert list(again.content.array_records[ARRAYS]) == list(first.content.array_records[ARRAYS])
        assert to_bytes(again.content) == to_bytes(first.content)
        assert [(entry.server_round, entry.attempt, entry.steps_run) for entry in charges()] == [(1, 1, 4)]

    def test_every_round_may_run_in_a_process_of_its_own(
        self,
        ask: Ask,
        train: Callable[..., Message],
        charges: Callable[[], list[LedgerEntry]],
        restart: Callable[[], None],
    ) -> None:
        ask(PLAN)

        for server_round in (1, 2, 3):
            restart()
            assert refusal(train(server_round)) is None

        assert [(entry.server_round, entry.steps_run) for entry in charges()] == [(1, 4), (2, 4), (3, 4)]

    def test_an_older_round_after_a_newer_one_is_charged_again(
        self, ask: Ask, train: Callable[..., Message], charges: Callable[[], list[LedgerEntry]]
    ) -> None:
        ask(PLAN)
        first = train(1)
        train(2)

        again = train(1)

        assert [(entry.server_round, entry.attempt) for entry in charges()] == [(1, 1), (2, 1), (1, 2)]
        weights = [reply.content.array_records[ARRAYS]["1.weight"].data for reply in (first, again)]
        assert weights[0] != weights[1]
        told = again.content.metric_records[METRICS]["epsilon"]
        assert told == compute_epsilon([entry.spend for entry in charges()], DELTA)

    def test_an_older_round_for_which_the_budget_is_too_small_is_refused(
        self, ask: Ask, train: Callable[..., Message], charges: Callable[[], list[LedgerEntry]]
    ) -> None:
        for run in ("run-1", "run-2"):
            ask(PLAN, run=run, overrides=THREE_ROUNDS)
        for run, server_round in (("run-1", 1), ("run-1", 2), ("run-2", 1)):
            train(server_round, run=run, overrides=THREE_ROUNDS)

        assert refusal(train(1, run="run-1", overrides=THREE_ROUNDS)) == "budget-exhausted"
        assert len(charges()) == 3

    @pytest.mark.parametrize("is_restarted", [False, True], ids=["same process", "another process"])
    def test_a_crash_between_charge_and_store_costs_one_charge(
        self,
        ask: Ask,
        train: Callable[..., Message],
        charges: Callable[[], list[LedgerEntry]],
        restart: Callable[[], None],
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
        is_restarted: bool,
    ) -> None:
        ask(PLAN)
        with monkeypatch.context() as patched:
            patched.setattr(Outbox, "put", fail)
            assert refusal(train(1)) == "internal"
        assert [entry.steps_run for entry in charges()] == [None]
        if is_restarted:
            restart()

        assert refusal(train(1)) is None

        assert [(entry.server_round, entry.attempt, entry.steps_run) for entry in charges()] == [(1, 1, 4)]
        assert count_released(folder) == 1

    @pytest.mark.parametrize("next_round", [1, 2])
    @pytest.mark.parametrize("is_restarted", [False, True], ids=["same process", "another process"])
    def test_a_crash_between_store_and_settle_costs_one_charge_and_the_stored_reply_is_sent(
        self,
        ask: Ask,
        train: Callable[..., Message],
        charges: Callable[[], list[LedgerEntry]],
        restart: Callable[[], None],
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
        is_restarted: bool,
        next_round: int,
    ) -> None:
        ask(PLAN)
        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "settle", fail)
            assert refusal(train(1)) == "internal"
        stored = Outbox(folder).last("run-1")
        assert stored is not None
        if is_restarted:
            restart()

        reply = train(next_round)

        if next_round == 1:
            sent = from_array_record(reply.content.array_records[ARRAYS])
            assert sent["1.weight"].tobytes() == stored[1].arrays["1.weight"].tobytes()
        assert [(entry.server_round, entry.attempt, entry.steps_run) for entry in charges()] == [
            (server_round, 1, 4) for server_round in range(1, next_round + 1)
        ]
        assert count_released(folder) == 1

    def test_a_ledger_that_is_older_than_its_receipt_trains_nothing(
        self, ask: Ask, train: Callable[..., Message], folder: Path
    ) -> None:
        ask(PLAN)
        backup = (folder / "ledger.sqlite").read_bytes()
        train(1)
        (folder / "ledger.sqlite").write_bytes(backup)

        assert refusal(train(1)) == refusal(train(2)) == "internal"
        assert "an older copy was put in its place" in (folder / "site.log").read_text(encoding="utf-8")
        assert count_released(folder) == 1

    def test_a_stored_reply_that_the_ledger_does_not_know_is_not_sent(
        self,
        ask: Ask,
        train: Callable[..., Message],
        charges: Callable[[], list[LedgerEntry]],
        folder: Path,
    ) -> None:
        ask(PLAN)
        train(1)
        for path in (folder / "ledger.sqlite", folder / "receipts" / "ledger.receipt"):
            path.unlink()
        ask(PLAN)

        assert refusal(train(1)) == "internal"
        assert charges() == []
        assert count_released(folder) == 1

    def test_two_requests_for_a_round_at_once_release_one_reply_for_one_charge(
        self,
        ask: Ask,
        train: Callable[..., Message],
        charges: Callable[[], list[LedgerEntry]],
        to_bytes: Callable[[Any], bytes],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        ask(PLAN)
        trainings: list[int] = []
        second_came = threading.Event()

        def train_slowly(*arguments: Any) -> int:
            trainings.append(1)
            if len(trainings) == 2:
                second_came.set()
            second_came.wait(timeout=0.3)
            return train_with_privacy(*arguments)

        monkeypatch.setattr("fl_client.private_round.train_with_privacy", train_slowly)
        replies: list[Message] = []
        threads = [threading.Thread(target=lambda: replies.append(train(1))) for _ in range(2)]

        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)

        assert len(trainings) == 1
        first, second = (to_bytes(reply.content) for reply in replies)
        assert first == second
        assert len(charges()) == 1

    def test_a_reply_that_the_gate_stops_is_charged(
        self,
        ask: Ask,
        train: Callable[..., Message],
        charges: Callable[[], list[LedgerEntry]],
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
    ) -> None:
        ask(PLAN)
        monkeypatch.setattr("fl_client.private_round.outgoing_arrays", lambda *_: {"patients": np.array([62.0, 71.0])})

        assert refusal(train(1)) == "disclosure"
        assert [entry.steps_run for entry in charges()] == [4]
        assert count_released(folder) == 0
