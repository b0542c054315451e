"""The stricter of study and hospital wins, and a study below the hospital's floor is refused before data are read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fl_client.data.builtin import BuiltInSource
from fl_client.journal import Journal
from fl_client.policy import check_plan, check_policy, check_room, check_run, make_plan, policy_errors
from fl_client.settings import SiteSettings, read_site_settings
from fl_client.source_settings import SourceSettings
from fl_contract.array_record import Arrays
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.messages import EVALUATE, PLAN, ROSTER, STATISTICS, TRAIN
from fl_contract.study import Study
from fl_contract.study_file import OVERRIDABLE_KEYS, Scalar
from privacy.accounting import compute_epsilon
from privacy.errors import PrivacySettingError

SettingsOf = Callable[..., SiteSettings]


@pytest.fixture
def settings_of(write_site_file: Callable[..., Path]) -> SettingsOf:
    """A hospital's settings with some of its policy changed."""
    return lambda **policy: read_site_settings(write_site_file(**policy))


def refusal(reply: Message) -> str | None:
    """The code of an error reply in words; None of an answer."""
    return RefusalCode(reply.error.code).label if reply.has_error() else None


# --- what a run may ask for -------------------------------------------------------------------------------------------

FLOWERS_DEFAULTS = dict.fromkeys(OVERRIDABLE_KEYS, "")
"""As Flower hands them over where a run sets nothing."""


@pytest.mark.parametrize(
    "run_config",
    [
        {"num-rounds": 5},
        {"privacy.epsilon": 1.0, "num-rounds": 5},
        {"privacy.mechanism": "none"},
        {"seed": 0},  # zero is a value too
        {"simulation.require-privacy": False},
    ],
)
def test_a_run_that_sets_what_the_policy_does_not_name_is_refused(
    settings_of: SettingsOf, run_config: dict[str, Scalar]
) -> None:
    settings = settings_of(run_settings='["privacy.epsilon"]')

    with pytest.raises(
        RefusalError, match=r"^policy: the run sets \{.*\}; policy\.run-settings allows \['privacy\.epsilon'\]"
    ):
        check_run(settings, {"study": "breast-cancer", **FLOWERS_DEFAULTS, **run_config})


def test_a_run_may_set_what_the_policy_names_and_leave_everything_as_it_is(settings_of: SettingsOf) -> None:
    check_run(settings_of(run_settings="[]"), {"study": "breast-cancer", **FLOWERS_DEFAULTS})
    check_run(settings_of(run_settings='["num-rounds"]'), {"study": "breast-cancer", "num-rounds": 5})


@pytest.mark.parametrize("study", ["digits", "", "../breast-cancer"])
def test_a_study_that_the_policy_does_not_name_is_refused(settings_of: SettingsOf, study: str) -> None:
    settings = settings_of(studies='["breast-cancer", "heart-disease"]')

    with pytest.raises(RefusalError, match=r"^policy: study=.*policy\.studies allows"):
        check_run(settings, {"study": study})


def test_a_policy_that_names_no_study_takes_part_in_none(settings_of: SettingsOf) -> None:
    with pytest.raises(RefusalError, match=r"policy\.studies allows \[\]"):
        check_run(settings_of(studies="[]"), {"study": "breast-cancer"})


def test_a_study_that_the_policy_does_not_name_is_told_by_the_check(
    settings_of: SettingsOf, study_of: Callable[..., Study]
) -> None:
    first, *_ = policy_errors(settings_of(studies='["digits"]'), study_of())

    assert "policy.studies" in str(first)


@pytest.mark.parametrize("kind", [ROSTER, PLAN, TRAIN, EVALUATE, STATISTICS])
@pytest.mark.parametrize(
    "policy", [{"run_settings": '["num-rounds"]'}, {"studies": '["digits"]'}], ids=["settings", "studies"]
)
def test_such_a_run_is_refused_in_every_request_before_any_data_are_read(
    ask: Callable[..., Message],
    write_site_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    model: Arrays,
    kind: str,
    policy: dict[str, str],
) -> None:
    def fail(_: BuiltInSource) -> None:
        raise AssertionError

    path = write_site_file("strict", **policy)
    monkeypatch.setattr(BuiltInSource, "load", fail)

    reply = ask(kind, site="strict", arrays=model, node_config={"site-file": str(path)})

    assert refusal(reply) == "policy"
    (entry,) = Journal(path.parent).read()
    assert (entry.fields["refusal"], entry.fields["study"]) == ("policy", "breast-cancer")


def test_the_coordinators_own_settings_have_no_effect_at_a_hospital(
    ask: Callable[..., Message],
    write_site_file: Callable[..., Path],
    model: Arrays,
    to_bytes: Callable[[Any], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same bytes leave, and no file lies anywhere but in the hospital's own folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    own: dict[str, Scalar] = {
        "out": str(elsewhere / "out"),
        "resume": True,
        "weights-folder": str(elsewhere / "weights"),
        "warm-start": str(elsewhere / "warm"),
        "continue-from": str(elsewhere / "ended"),
    }
    sent = []
    for name, config in (("plain", {}), ("meddled", own)):
        policy = {"require_privacy": "false", "unit": '"record"', "measurements": '"exact"'}
        path = write_site_file("st-anna", **policy)
        overrides: dict[str, Scalar] = {"privacy.mechanism": "none", **config}
        place: dict[str, Any] = {"site": "st-anna", "run": name, "node_config": {"site-file": str(path)}}

        replies = [
            ask(ROSTER, overrides=overrides, **place),
            ask(PLAN, overrides=overrides, **place),
            ask(TRAIN, server_round=1, arrays=model, overrides=overrides, **place),
            ask(EVALUATE, server_round=1, arrays=model, overrides=overrides, **place),
        ]

        sent.append([to_bytes(reply.content) for reply in replies])

    assert sent[0] == sent[1]
    assert list(elsewhere.iterdir()) == []


# --- the floor -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "overrides", "code"),
    [
        ({"delta": 0.0009}, {"privacy.delta": 0.001}, "policy"),
        ({}, {"privacy.mechanism": "none"}, "policy"),
        ({"delta": 0.5}, {"privacy.delta": 0.02}, "privacy-setting"),  # 1 / 70 is 0.0143
        ({"epsilon_budget": 0.0}, {}, "budget-exhausted"),
        ({"epsilon_per_study": 0.0}, {}, "budget-exhausted"),
        ({"epsilon_budget": 0.019}, {}, "budget-exhausted"),
    ],
)
def test_a_study_below_the_hospitals_floor_is_refused_before_any_data_are_read(
    ask: Callable[..., Message],
    write_site_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    policy: dict[str, Any],
    overrides: dict[str, Any],
    code: str,
) -> None:
    def fail(_: BuiltInSource) -> None:
        raise AssertionError

    path = write_site_file("strict", **policy)
    monkeypatch.setattr(BuiltInSource, "load", fail)

    reply = ask(PLAN, site="strict", node_config={"site-file": str(path)}, overrides=overrides)

    assert refusal(reply) == code
    assert not (path.parent / "ledger.sqlite").exists()


def test_data_are_read_once_the_policy_allows_the_study(
    ask: Callable[..., Message], write_site_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: BuiltInSource) -> None:
        raise AssertionError

    monkeypatch.setattr(BuiltInSource, "load", fail)

    assert refusal(ask(PLAN, site="open", node_config={"site-file": str(write_site_file("open"))})) == "internal"


def test_a_study_by_record_is_refused_where_patients_have_several_and_the_policy_protects_patients(
    settings_of: SettingsOf, study_of: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_patient, by_record = settings_of(), settings_of(unit='"record"')
    study = study_of(overrides={"privacy.unit": "record"})
    check_policy(by_patient, study)  # one record a patient
    monkeypatch.setattr(SourceSettings, "has_one_record_a_patient", False)

    check_policy(by_record, study)
    check_policy(by_patient, study_of())
    with pytest.raises(RefusalError, match=r"privacy\.unit='record'; policy\.unit asks for at least 'patient'"):
        check_policy(by_patient, study)


@pytest.mark.parametrize("measurements", ["noised", "none"])
def test_a_study_that_takes_the_exact_training_loss_is_refused_where_no_exact_number_leaves(
    settings_of: SettingsOf, study_of: Callable[..., Study], measurements: str
) -> None:
    study = study_of(overrides={"strategy.name": "q-fedavg", "privacy.mechanism": "none"})
    open_minded = {"require_privacy": "false", "unit": '"record"'}
    check_policy(settings_of(measurements='"exact"', **open_minded), study)

    with pytest.raises(RefusalError, match=f"exact training loss .* policy.measurements='{measurements}'") as caught:
        check_policy(settings_of(measurements=f'"{measurements}"', **open_minded), study)

    assert caught.value.code == RefusalCode.POLICY


def test_a_delta_as_large_as_one_patient_is_refused_with_the_number(
    settings_of: SettingsOf, study_of: Callable[..., Study]
) -> None:
    with pytest.raises(PrivacySettingError, match=r"privacy\.delta=0\.015; expected below 1/declared-examples=0\.0143"):
        check_policy(settings_of(delta=0.5), study_of(overrides={"privacy.delta": 0.015}))


def test_a_policy_without_epsilon_refuses_every_private_run(settings_of: SettingsOf) -> None:
    check_room(settings_of(epsilon_budget=0.02))
    with pytest.raises(RefusalError, match=r"a private study needs 0\.02 of both"):
        check_room(settings_of(epsilon_budget=3.0, epsilon_per_study=0.01))


# --- the stricter wins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "epsilon"),
    [({}, 8.0), ({"epsilon_per_study": 2.0}, 2.0), ({"epsilon_per_study": 9.0}, 8.0), ({"epsilon_budget": 3.0}, 3.0)],
)
def test_the_smaller_epsilon_makes_the_noise(
    settings_of: SettingsOf, study_of: Callable[..., Study], policy: dict[str, float], epsilon: float
) -> None:
    plan = make_plan(settings_of(**policy), study_of())

    assert plan.epsilon == epsilon
    assert 0.98 * epsilon < compute_epsilon([plan.total_spend], plan.delta) <= epsilon


@pytest.mark.parametrize("minimum", [0.1, 7.5])
def test_the_larger_noise_is_taken(settings_of: SettingsOf, study_of: Callable[..., Study], minimum: float) -> None:
    calibrated = make_plan(settings_of(), study_of())

    plan = make_plan(settings_of(minimum_noise_multiplier=minimum), study_of())

    assert plan == replace(calibrated, noise_multiplier=max(calibrated.noise_multiplier, minimum))


@pytest.mark.parametrize(
    "stricter", [{"minimum_noise_multiplier": 50.0}, {"epsilon_per_study": 7.9}, {"delta": 0.0009}], ids=repr
)
def test_a_run_does_not_go_on_under_a_policy_that_became_stricter(
    settings_of: SettingsOf, study_of: Callable[..., Study], stricter: dict[str, float]
) -> None:
    plan = make_plan(settings_of(), study_of())
    check_plan(settings_of(epsilon_per_study=8.0), plan)

    with pytest.raises(RefusalError, match="allows"):
        check_plan(settings_of(**stricter), plan)


def test_the_version_of_a_policy_changes_with_each_of_its_settings(settings_of: SettingsOf) -> None:
    versions = {
        settings_of(**policy).policy.version
        for policy in ({}, {"epsilon_budget": 9.0}, {"minimum_noise_multiplier": 1.0}, {"min_examples": 20})
    }

    assert len(versions) == 4
    assert settings_of().policy.version in versions
