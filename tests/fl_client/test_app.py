"""What the hospital's real app answers: whom it speaks for, what it agrees to, what it refuses, what it measures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from measurements import of_classes
from schemas import TWO_CLASSES

from fl_client.data.records import SiteRecords
from fl_client.evaluation import evaluate
from fl_client.journal import JOURNAL_FILE
from fl_client.preprocessing import Examples
from fl_contract.array_record import Arrays
from fl_contract.errors import RefusalCode
from fl_contract.messages import CONFIG, EVALUATE, PLAN, ROSTER, TRAIN, SitePlan, read_evaluation, read_roster
from fl_contract.study import Study
from fl_contract.tasks.task import Task
from privacy.accounting import Spend, compute_epsilon
from privacy.ledger_book import LedgerEntry

DELTA = 0.001
NOT_PRIVATE = {"privacy.mechanism": "none"}

Ask = Callable[..., Message]
EditRecords = Callable[[Callable[[SiteRecords], SiteRecords]], None]


def refusal(reply: Message) -> str | None:
    """The code of an error reply in words; None of an answer."""
    return RefusalCode(reply.error.code).label if reply.has_error() else None


def no_patients(site: SiteRecords) -> SiteRecords:
    none = np.array([], dtype=np.int64)
    return SiteRecords(train=site.train.take(none), test=site.test.take(none))


def benign_patients_only(site: SiteRecords) -> SiteRecords:
    return SiteRecords(train=site.train.take(np.flatnonzero(site.train.labels == "benign")), test=site.test)


def one_nan(site: SiteRecords) -> SiteRecords:
    site.train.features[3, 5] = np.nan
    return site


class TestRoster:
    @pytest.mark.parametrize(
        ("num_nodes", "hosted"),
        [
            (1, [["hospital-1", "hospital-2", "hospital-3", "hospital-4"]]),
            (2, [["hospital-1", "hospital-3"], ["hospital-2", "hospital-4"]]),
            (4, [["hospital-1"], ["hospital-2"], ["hospital-3"], ["hospital-4"]]),
            (5, [["hospital-1"], ["hospital-2"], ["hospital-3"], ["hospital-4"], []]),
        ],
    )
    def test_every_virtual_hospital_is_at_one_node(
        self, ask: Ask, to_bytes: Callable[[Any], bytes], num_nodes: int, hosted: list[list[str]]
    ) -> None:
        replies = [ask(ROSTER, site="", node=(number, num_nodes)) for number in range(num_nodes)]

        assert [read_roster(reply) for reply in replies] == hosted
        assert all(to_bytes(reply.content) for reply in replies)

    def test_a_simulation_of_pooled_data_has_one_more_site(self, ask: Ask) -> None:
        reply = ask(ROSTER, site="", overrides={"simulation.trainers": "pooled"})

        assert read_roster(reply) == ["hospital-1", "hospital-2", "hospital-3", "hospital-4", "pooled"]

    def test_a_real_hospital_speaks_for_itself_only(self, ask: Ask, write_site_file: Callable[..., Path]) -> None:
        path = write_site_file("st-anna")

        reply = ask(ROSTER, site="", node_config={"site-file": str(path)})

        assert read_roster(reply) == ["st-anna"]
        assert (path.parent / JOURNAL_FILE).exists()


class TestPlan:
    def test_the_number_of_patients_is_told_rounded(self, ask: Ask, edit_records: EditRecords) -> None:
        def keep_83(site: SiteRecords) -> SiteRecords:
            return SiteRecords(train=site.train.take(np.arange(-42, 41)), test=site.test)

        edit_records(keep_83)

        assert SitePlan.from_message(ask(PLAN)).num_examples == 80

    def test_the_noise_keeps_the_studys_epsilon_over_all_rounds(self, ask: Ask) -> None:
        plan = SitePlan.from_message(ask(PLAN))

        # 3 rounds of 4 steps, see FIXED.
        spend = Spend(noise_multiplier=plan.noise_multiplier, sampling_rate=0.25, steps=12)
        assert 7.9 < compute_epsilon([spend], DELTA) <= 8.0

    def test_without_privacy_there_is_no_noise_and_no_ledger(self, ask: Ask, folder: Path) -> None:
        plan = SitePlan.from_message(ask(PLAN, overrides=NOT_PRIVATE))

        assert plan.noise_multiplier == 0.0
        assert not (folder / "ledger.sqlite").exists()

    def test_agreeing_twice_gives_the_same_plan_and_charges_nothing(
        self, ask: Ask, restart: Callable[[], None], charges: Callable[[], list[LedgerEntry]]
    ) -> None:
        first = SitePlan.from_message(ask(PLAN))
        restart()

        assert SitePlan.from_message(ask(PLAN)) == first
        assert charges() == []

    def test_a_run_cannot_change_its_plan(self, ask: Ask) -> None:
        ask(PLAN)

        assert refusal(ask(PLAN, overrides={"privacy.clip-norm": 0.125})) == "internal"

    def test_a_delta_above_the_hospitals_own_is_refused(self, ask: Ask, write_site_file: Callable[..., Path]) -> None:
        strict, exact = write_site_file("strict", delta=0.0009), write_site_file("exact", delta=0.001)

        replies = [
            ask(PLAN, site=path.parent.name, node_config={"site-file": str(path)}, overrides={"privacy.delta": 0.001})
            for path in (strict, exact)
        ]

        assert [refusal(reply) for reply in replies] == ["policy", None]

    def test_a_budget_of_zero_refuses_before_round_one(self, ask: Ask, train: Callable[..., Message]) -> None:
        overrides = {"simulation.epsilon-budget": 0.0}

        assert refusal(ask(PLAN, overrides=overrides)) == "budget-exhausted"
        assert refusal(train(1, overrides=overrides)) == "no-agreement"

    @pytest.mark.parametrize("model", ["small-cnn", "resnet18"])
    def test_a_model_that_cannot_be_trained_privately_is_refused(self, ask: Ask, model: str) -> None:
        replies = [
            ask(PLAN, study="digits", overrides={"model.kind": model, "model.norm": norm, "privacy.delta": DELTA})
            for norm in ("batch", "group")
        ]

        assert [refusal(reply) for reply in replies] == ["model-not-private", None]


class TestRefusals:
    @pytest.mark.parametrize("kind", [PLAN, TRAIN, EVALUATE])
    def test_a_hospital_that_requires_privacy_has_no_part_in_a_study_without(
        self, ask: Ask, model: Arrays, kind: str
    ) -> None:
        overrides = {**NOT_PRIVATE, "simulation.require-privacy": True}

        assert refusal(ask(kind, server_round=1, arrays=model, overrides=overrides)) == "policy"

    def test_a_real_hospital_requires_privacy_unless_its_file_says_otherwise(
        self, ask: Ask, write_site_file: Callable[..., Path]
    ) -> None:
        silent, open_minded = write_site_file("silent"), write_site_file("open-minded", require_privacy="false")

        replies = [
            ask(
                PLAN,
                site=path.parent.name,
                node_config={"site-file": str(path)},
                overrides={**NOT_PRIVATE, "simulation.require-privacy": False},
            )
            for path in (silent, open_minded)
        ]

        assert [refusal(reply) for reply in replies] == ["policy", None]

    @pytest.mark.parametrize("kind", [PLAN, TRAIN, EVALUATE])
    def test_another_study_than_the_hospitals_is_refused(
        self, ask: Ask, model: Arrays, study_of: Callable[..., Study], kind: str
    ) -> None:
        theirs = study_of(overrides={"privacy.epsilon": 8.5}).fingerprint

        assert refusal(ask(kind, server_round=1, arrays=model, fingerprint=theirs)) == "study-mismatch"

    @pytest.mark.parametrize("kind", [PLAN, TRAIN, EVALUATE])
    def test_an_unknown_hospital_is_refused(self, ask: Ask, model: Arrays, kind: str) -> None:
        elsewhere = ask(kind, site="hospital-2", server_round=1, arrays=model, node=(0, 4))

        assert refusal(elsewhere) == "invalid-request"
        assert refusal(ask(kind, site="hospital-5", server_round=1, arrays=model)) == "invalid-request"

    @pytest.mark.parametrize("overrides", [{}, NOT_PRIVATE], ids=["private", "not private"])
    @pytest.mark.parametrize("server_round", [-1, 0, 4])
    def test_a_round_that_is_not_planned_is_refused(
        self, ask: Ask, train: Callable[..., Message], server_round: int, overrides: dict[str, str]
    ) -> None:
        ask(PLAN, overrides=overrides)

        assert refusal(train(server_round, overrides=overrides)) == "invalid-request"

    def test_training_without_a_plan_is_refused_and_free(
        self, ask: Ask, train: Callable[..., Message], charges: Callable[[], list[LedgerEntry]]
    ) -> None:
        ask(PLAN, run="run-1")

        assert refusal(train(1, run="run-2")) == "no-agreement"
        assert charges() == []

    @pytest.mark.parametrize(
        "change",
        [
            lambda arrays: {},
            lambda arrays: {"1.weight": arrays["1.weight"]},
            lambda arrays: {**arrays, "2.weight": arrays["1.weight"]},
            lambda arrays: {"weight": arrays["1.weight"], "1.bias": arrays["1.bias"]},
            lambda arrays: {**arrays, "1.weight": arrays["1.weight"].T},
            lambda arrays: {**arrays, "1.weight": arrays["1.weight"].astype(np.float64)},
        ],
        ids=["none", "missing", "extra", "renamed", "transposed", "other type"],
    )
    def test_another_model_than_the_studys_is_refused_and_free(
        self,
        ask: Ask,
        model: Arrays,
        train: Callable[..., Message],
        charges: Callable[[], list[LedgerEntry]],
        change: Callable[[Arrays], Arrays],
    ) -> None:
        ask(PLAN)

        assert refusal(train(1, arrays=change(model))) == "invalid-request"
        assert refusal(ask(EVALUATE, server_round=1, arrays=change(model))) == "invalid-request"
        assert charges() == []

    def test_a_request_without_a_model_is_refused(self, ask: Ask) -> None:
        ask(PLAN)

        assert refusal(ask(TRAIN, server_round=1)) == "invalid-request"
        assert refusal(ask(EVALUATE, server_round=1)) == "invalid-request"

    @pytest.mark.parametrize("kind", [ROSTER, PLAN, TRAIN, EVALUATE])
    @pytest.mark.parametrize("field", ["run", "fingerprint", "site", "server-round"])
    def test_a_request_without_a_field_or_with_one_of_another_type_is_refused(
        self, ask: Ask, kind: str, field: str
    ) -> None:
        def leave_out(content: RecordDict) -> None:
            del content.config_records[CONFIG][field]

        def mistype(content: RecordDict) -> None:
            content.config_records[CONFIG][field] = 0.5

        assert refusal(ask(kind, edit=leave_out)) == "invalid-request"
        assert refusal(ask(kind, edit=mistype)) == "invalid-request"

    @pytest.mark.parametrize(("edit", "code"), [(one_nan, "invalid-data"), (no_patients, "too-few-patients")])
    def test_patients_with_whom_a_hospital_cannot_train_are_found_before_round_one(
        self,
        ask: Ask,
        edit_records: EditRecords,
        folder: Path,
        edit: Callable[[SiteRecords], SiteRecords],
        code: str,
    ) -> None:
        edit_records(edit)

        assert refusal(ask(PLAN)) == code
        assert not (folder / "ledger.sqlite").exists()

    @pytest.mark.parametrize(("overrides", "code"), [(NOT_PRIVATE, "one-class"), ({}, None)], ids=["plain", "private"])
    def test_patients_of_one_class_are_refused_without_privacy_only(
        self, ask: Ask, edit_records: EditRecords, overrides: dict[str, str], code: str | None
    ) -> None:
        """Under privacy the refusal itself would say what every patient's label is."""
        edit_records(benign_patients_only)

        assert refusal(ask(PLAN, overrides=overrides)) == code

    def test_data_that_break_between_two_rounds_are_found_before_the_charge(
        self,
        ask: Ask,
        train: Callable[..., Message],
        edit_records: EditRecords,
        charges: Callable[[], list[LedgerEntry]],
    ) -> None:
        ask(PLAN)
        edit_records(one_nan)

        assert refusal(train(1)) == "invalid-data"
        assert charges() == []

    @pytest.mark.parametrize(("held_out", "answer"), [(0, "too-few-patients"), (9, "too-few-patients"), (10, None)])
    def test_a_hospital_with_few_held_out_patients_does_not_measure(
        self, ask: Ask, model: Arrays, edit_records: EditRecords, held_out: int, answer: str | None
    ) -> None:
        edit_records(lambda site: SiteRecords(train=site.train, test=site.test.take(np.arange(held_out))))
        ask(PLAN)

        assert refusal(ask(EVALUATE, server_round=1, arrays=model)) == answer

    def test_a_model_that_gives_no_numbers_is_not_measured(self, ask: Ask, model: Arrays) -> None:
        ask(PLAN)
        model["1.bias"] = np.full_like(model["1.bias"], np.nan)

        assert refusal(ask(EVALUATE, server_round=1, arrays=model)) == "invalid-request"
        assert refusal(ask(TRAIN, server_round=1, arrays=model)) == "invalid-request"


class TestEvaluation:
    def test_a_hospital_measures_on_its_held_out_patients(
        self, ask: Ask, model: Arrays, edit_records: EditRecords
    ) -> None:
        held_out: list[int] = []

        def look(site: SiteRecords) -> SiteRecords:
            held_out.append(len(site.test))
            return site

        edit_records(look)
        ask(PLAN)

        evaluation = of_classes(read_evaluation(ask(EVALUATE, server_round=1, arrays=model), TWO_CLASSES))

        # A logistic model starts at probability 1/2 for everybody: a loss of ln 2, and the first class for all.
        assert evaluation.num_examples == held_out[-1]
        assert evaluation.loss == pytest.approx(np.log(2), rel=1e-6)
        assert evaluation.num_correct == evaluation.num_examples - evaluation.scores.num_positive
        assert evaluation.auroc == 0.5

    def test_measuring_is_not_charged(self, ask: Ask, model: Arrays, charges: Callable[[], list[LedgerEntry]]) -> None:
        ask(PLAN)

        assert refusal(ask(EVALUATE, server_round=1, arrays=model)) is None
        assert charges() == []

    def test_a_hospital_that_has_not_agreed_does_not_measure(self, ask: Ask, model: Arrays) -> None:
        refused = ask(PLAN, overrides={"simulation.epsilon-budget": 0.0})
        never_asked = ask(EVALUATE, server_round=1, arrays=model, overrides={"simulation.epsilon-budget": 0.0})

        assert (refusal(refused), refusal(never_asked)) == ("budget-exhausted", "no-agreement")

    def test_a_round_is_measured_once_and_a_retry_gets_the_same_answer(
        self, ask: Ask, model: Arrays, to_bytes: Callable[[Any], bytes]
    ) -> None:
        ask(PLAN)
        first = ask(EVALUATE, server_round=2, arrays=model)
        crafted = {name: array + 1 for name, array in model.items()}

        again = ask(EVALUATE, server_round=2, arrays=crafted)

        assert to_bytes(again.content) == to_bytes(first.content)
        assert refusal(ask(EVALUATE, server_round=1, arrays=crafted)) == "no-agreement"
        assert refusal(ask(EVALUATE, server_round=3, arrays=crafted)) is None

    def test_a_hospital_measures_only_if_its_policy_says_so(
        self, ask: Ask, model: Arrays, write_site_file: Callable[..., Path]
    ) -> None:
        answers = []
        for path in (write_site_file("silent", measurements='"none"'), write_site_file("open-minded")):
            place: dict[str, Any] = {"site": path.parent.name, "node_config": {"site-file": str(path)}}
            ask(PLAN, **place)
            answers.append(refusal(ask(EVALUATE, server_round=1, arrays=model, **place)))

        assert answers == ["policy", None]

    def test_training_patients_are_not_measured(
        self, ask: Ask, model: Arrays, monkeypatch: pytest.MonkeyPatch, edit_records: EditRecords
    ) -> None:
        ask(PLAN)
        edit_records(one_nan)  # in a training record
        seen: list[Examples] = []

        def spy(network: Any, examples: Examples, task: Task) -> Any:
            seen.append(examples)
            return evaluate(network, examples, task)

        monkeypatch.setattr("fl_client.measurement.evaluate", spy)

        assert refusal(ask(EVALUATE, server_round=1, arrays=model)) is None
        assert all(examples.inputs.isfinite().all() for examples in seen)
