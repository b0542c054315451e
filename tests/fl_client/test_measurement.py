"""Held-out patients are measured with noise and a charge of their own, unless the hospital's policy says otherwise."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from schemas import TWO_CLASSES

from fl_client import measurement
from fl_client.evaluation import evaluate
from fl_client.settings import SiteSettings, read_site_settings
from fl_client.site import held_out_cohort, open_ledger, training_cohort
from fl_client.source_settings import SourceSettings
from fl_contract.array_record import Arrays
from fl_contract.errors import RefusalCode
from fl_contract.messages import EVALUATE, METRICS, PLAN, TRAIN, privacy_spent, read_evaluation
from fl_contract.models.ensemble import join_members
from privacy.accounting import ExternalSpend, compute_epsilon
from privacy.ledger_book import LedgerEntry

Ask = Callable[..., Message]
EVERY_ROUND = {"privacy.measurement-epsilon": 1.5}


@pytest.fixture
def hospital(write_site_file: Callable[..., Path]) -> Path:
    """Its file says nothing of measurements."""
    return write_site_file("st-anna")


@pytest.fixture
def measure(ask: Ask, model: Arrays, hospital: Path) -> Ask:
    """Asks the hospital to agree, then to measure a model."""

    def send(server_round: int, *, agree: bool = True, **changes: Any) -> Message:
        place = {"site": "st-anna", "node_config": {"site-file": str(hospital)}, "overrides": EVERY_ROUND} | changes
        if agree:
            assert not ask(PLAN, **place).has_error()
        return ask(EVALUATE, server_round=server_round, **{"arrays": model, **place})

    return send


def entries(hospital: Path, cohort: Callable[[SiteSettings], str] = held_out_cohort) -> list[LedgerEntry]:
    settings = read_site_settings(hospital)
    with open_ledger(settings, hospital.parent, cohort=cohort(settings)) as ledger:
        return ledger.entries()


def charges(hospital: Path) -> list[tuple[int, int | None]]:
    return [(entry.server_round, entry.steps_run) for entry in entries(hospital)]


def test_a_policy_that_says_nothing_sends_noised_counts_only(measure: Ask) -> None:
    reply = measure(1)

    assert set(reply.content[METRICS]) == {"noised-cells", "noise-scale", "threshold", "epsilon", "delta", "steps"}
    assert read_evaluation(reply, TWO_CLASSES).noised is not None


ONE_SHOT = {"strategy.name": "one-shot-ensemble", "strategy.weighting": "equal", "num-rounds": 1}


@pytest.mark.parametrize("num_members", [1, 2, 5])
def test_an_ensemble_of_any_number_of_members_is_measured_as_one_model(
    measure: Ask, model: Arrays, num_members: int
) -> None:
    reply = measure(1, arrays=join_members([model] * num_members), overrides=EVERY_ROUND | ONE_SHOT)

    assert read_evaluation(reply, TWO_CLASSES).noised is not None


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"members.0.1.weight": np.zeros((1, 30), np.float32)},
        {"1.weight": np.zeros((1, 30), np.float32), "1.bias": np.zeros(1, np.float32)},
        {"members.1.1.weight": np.zeros((1, 30), np.float32), "members.1.1.bias": np.zeros(1, np.float32)},
        {"members.0.1.weight": np.zeros((2, 30), np.float32), "members.0.1.bias": np.zeros(1, np.float32)},
        {"members.0.1.weight": np.full((1, 30), np.nan, np.float32), "members.0.1.bias": np.zeros(1, np.float32)},
    ],
    ids=["nothing", "half a member", "a model alone", "second without first", "shape", "not finite"],
)
def test_what_is_no_ensemble_of_the_studys_models_is_not_measured(measure: Ask, arrays: Arrays) -> None:
    reply = measure(1, arrays=arrays, overrides=EVERY_ROUND | ONE_SHOT)

    assert RefusalCode(reply.error.code) == RefusalCode.INVALID_REQUEST


def test_all_measurements_together_cost_the_studys_measurement_epsilon_and_no_more(
    measure: Ask, hospital: Path
) -> None:
    spent = [privacy_spent(measure(number)) for number in (1, 2, 3)]

    epsilons = [each.epsilon for each in spent if each is not None]
    assert sorted(epsilons) == epsilons
    assert 1.45 < epsilons[-1] <= 1.5
    assert charges(hospital) == [(1, 1), (2, 1), (3, 1)]


def test_the_charge_is_of_the_noise_that_was_drawn(measure: Ask, hospital: Path) -> None:
    reply = measure(1)

    (entry,) = entries(hospital)
    assert reply.content[METRICS]["noise-scale"] == entry.noise_multiplier * entry.clip_norm
    assert reply.content[METRICS]["epsilon"] == compute_epsilon([entry.spend], 0.001)
    assert entry.sampling_rate == 1.0


def test_patients_who_are_trained_on_pay_nothing_for_measurements(measure: Ask, hospital: Path) -> None:
    measure(1)

    assert entries(hospital, training_cohort) == []


def test_a_retry_gets_the_same_noise_and_is_not_charged_again(
    measure: Ask, hospital: Path, to_bytes: Callable[[Any], bytes], model: Arrays
) -> None:
    first = measure(2)

    again = measure(2, arrays={name: array + 1 for name, array in model.items()})

    assert to_bytes(again.content) == to_bytes(first.content)
    assert charges(hospital) == [(2, 1)]


def test_a_crash_after_the_counts_were_kept_is_settled_by_the_retry(
    measure: Ask, hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(measurement, "_settle", lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
        assert measure(1).has_error()
    assert charges(hospital) == [(1, None)]

    reply = measure(1)

    assert not reply.has_error()
    assert charges(hospital) == [(1, 1)]


def test_a_crash_before_the_counts_were_kept_draws_again_under_the_same_charge(
    measure: Ask, hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(measurement, "release_noised_sum", lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
        assert measure(1).has_error()

    assert not measure(1).has_error()
    assert charges(hospital) == [(1, 1)]


def test_only_the_rounds_that_the_study_measures_are_measured(ask: Ask, measure: Ask) -> None:
    # Three rounds, every second one, counted from the last: rounds 1 and 3.
    overrides = {"overrides": {**EVERY_ROUND, "federation.measure-every": 2}}

    replies = [measure(number, **overrides) for number in (1, 2, 3)]

    assert [reply.has_error() for reply in replies] == [False, True, False]


def test_fewer_measurements_have_less_noise(measure: Ask) -> None:
    rare = {"overrides": {**EVERY_ROUND, "federation.measure-every": 3}, "run": "rare"}

    often, once = measure(3), measure(3, **rare)

    measured = [read_evaluation(reply, TWO_CLASSES) for reply in (once, often)]
    scales = [evaluation.noised.noise_scale for evaluation in measured if evaluation.noised]
    assert scales[0] / scales[1] == pytest.approx(1 / np.sqrt(3), rel=0.01)  # one Gaussian release instead of three


def test_the_number_of_held_out_patients_shows_nowhere(measure: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privacy.noised_sum.secure_normal", lambda count: np.full(count, 3.0))

    noised = read_evaluation(measure(1), TWO_CLASSES)

    assert noised.noised is not None
    true_number = noised.noised.cells.sum() - 16 * round(3 * noised.noised.noise_scale)
    assert abs(noised.num_examples - true_number) > 16  # the estimate moves with the noise


def test_a_model_whose_outputs_overflow_is_measured_and_charged_like_any_other(
    measure: Ask, hospital: Path, model: Arrays
) -> None:
    # A refusal would say, exactly, uncharged and as often as asked, that such a record is there.
    bright = {name: np.full_like(array, np.finfo(np.float32).max) for name, array in model.items()}

    replies = [measure(number, arrays=bright) for number in (1, 2)]

    assert not any(reply.has_error() for reply in replies)
    assert charges(hospital) == [(1, 1), (2, 1)]


def test_a_policy_that_became_stricter_stops_measurements_too(
    measure: Ask, hospital: Path, write_site_file: Callable[..., Path]
) -> None:
    assert not measure(1).has_error()
    write_site_file("st-anna", minimum_noise_multiplier=1000.0)

    reply = measure(2, agree=False)

    assert RefusalCode(reply.error.code) is RefusalCode.POLICY
    assert charges(hospital) == [(1, 1)]


NOT_PRIVATE = {**EVERY_ROUND, "privacy.mechanism": "none"}


def test_a_budget_of_nothing_refuses_a_study_without_privacy_where_measurements_are_charged(
    ask: Ask, write_site_file: Callable[..., Path]
) -> None:
    path = write_site_file("spent", epsilon_budget=0.0, require_privacy="false")

    reply = ask(PLAN, site="spent", node_config={"site-file": str(path)}, overrides=NOT_PRIVATE)

    assert RefusalCode(reply.error.code) is RefusalCode.BUDGET_EXHAUSTED


@pytest.mark.parametrize(("measurements", "is_refused"), [("noised", True), ("exact", False)])
def test_a_study_without_privacy_cannot_weaken_the_unit_of_noised_measurements(
    ask: Ask,
    write_site_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    measurements: str,
    is_refused: bool,
) -> None:
    monkeypatch.setattr(SourceSettings, "has_one_record_a_patient", False)
    path = write_site_file("careful", require_privacy="false", measurements=f'"{measurements}"')
    overrides = {**NOT_PRIVATE, "privacy.unit": "record"}

    reply = ask(PLAN, site="careful", node_config={"site-file": str(path)}, overrides=overrides)

    assert reply.has_error() == is_refused
    assert not is_refused or RefusalCode(reply.error.code) is RefusalCode.POLICY


def test_two_requests_at_once_get_one_exact_measurement(
    measure: Ask, model: Arrays, write_site_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_site_file("exact", measurements='"exact"')
    place = {"site": "exact", "node_config": {"site-file": str(path)}}
    inside = threading.Event()

    def evaluate_slowly(*arguments: Any) -> Any:
        inside.set()
        time.sleep(0.3)
        return evaluate(*arguments)

    monkeypatch.setattr(measurement, "evaluate", evaluate_slowly)
    other = {name: array + 1 for name, array in model.items()}
    with ThreadPoolExecutor() as pool:
        first = pool.submit(measure, 1, **place)
        inside.wait(10)
        second = pool.submit(measure, 1, agree=False, arrays=other, **place)

    losses = [read_evaluation(reply.result(), TWO_CLASSES).loss for reply in (first, second)]
    assert losses[0] == losses[1]


def test_a_hospital_whose_held_out_patients_have_no_budget_left_takes_part_unmeasured(
    ask: Ask, measure: Ask, model: Arrays, hospital: Path
) -> None:
    settings = read_site_settings(hospital)
    with open_ledger(settings, hospital.parent, cohort=held_out_cohort(settings)) as ledger:
        ledger.charge(study="another", spend=ExternalSpend(epsilon=10.0), reason="all of it")

    measured = measure(1)

    trained = ask(
        TRAIN,
        server_round=1,
        arrays=model,
        site="st-anna",
        node_config={"site-file": str(hospital)},
        overrides=EVERY_ROUND,
    )
    assert measured.error.code == RefusalCode.BUDGET_EXHAUSTED
    assert not trained.has_error()


def test_an_exact_measurement_that_failed_is_not_tried_again_that_round(
    ask: Ask, model: Arrays, write_site_file: Callable[..., Path]
) -> None:
    path = write_site_file("exactly", measurements='"exact"')
    place: dict[str, Any] = {"site": "exactly", "node_config": {"site-file": str(path)}}
    ask(PLAN, **place)
    overflowing = {name: np.full_like(array, 3e38) for name, array in model.items()}

    codes = [
        reply.error.code if reply.has_error() else None
        for reply in (
            ask(EVALUATE, server_round=1, arrays=overflowing, **place),
            ask(EVALUATE, server_round=1, arrays=model, **place),
            ask(EVALUATE, server_round=2, arrays=model, **place),
        )
    ]

    assert codes == [RefusalCode.INTERNAL, RefusalCode.NO_AGREEMENT, None]
