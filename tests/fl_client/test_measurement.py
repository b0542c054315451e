"""Held-out patients are measured with noise and a charge of their own, unless the hospital's policy says otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fl_client import measurement
from fl_client.settings import SiteSettings, read_site_settings
from fl_client.site import held_out_cohort, open_ledger, training_cohort
from fl_contract.messages import EVALUATE, METRICS, PLAN, Arrays, privacy_spent, read_evaluation
from privacy.accounting import compute_epsilon
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

    assert set(reply.content[METRICS]) == {"noised-cells", "noise-scale", "epsilon", "delta", "steps"}
    assert read_evaluation(reply).noised is not None


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

    scales = [evaluation.noised.noise_scale for evaluation in map(read_evaluation, (once, often)) if evaluation.noised]
    assert scales[0] / scales[1] == pytest.approx(1 / np.sqrt(3), rel=0.01)  # one Gaussian release instead of three


def test_the_number_of_held_out_patients_shows_nowhere(measure: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privacy.noised_sum.secure_normal", lambda count: np.full(count, 3.0))

    noised = read_evaluation(measure(1))

    assert noised.noised is not None
    true_number = noised.noised.cells.sum() - 16 * round(3 * noised.noised.noise_scale)
    assert abs(noised.num_examples - true_number) > 16  # the estimate moves with the noise
