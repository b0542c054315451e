"""The only place that holds a study against the hospital's policy, and makes the plan by which the hospital trains."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from fl_client.settings import SiteSettings
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.metrics.noised import cells_sensitivity
from fl_contract.models.own_model import OwnModelSettings
from fl_contract.study import Study
from fl_contract.study_file import OVERRIDABLE_KEYS, Scalar
from privacy.accounting import PRV_ERROR
from privacy.errors import PrivacySettingError
from privacy.plan import PrivacyPlan

UNITS = ("record", "patient")
"""From the weakest to the strongest."""


def check_policy(settings: SiteSettings, study: Study) -> None:
    """Refuse a study that asks for less privacy than the hospital's policy; nothing of a patient is needed for it.

    A study that asks for a larger epsilon than the policy gives to one run is not refused: `make_plan` adds noise.

    Raises:
        RefusalError: POLICY.
        PrivacySettingError: The study's delta is too large for the hospital's declared number of patients.
    """
    for error in policy_errors(settings, study):
        raise error


def check_run(settings: SiteSettings, run_config: Mapping[str, Scalar]) -> None:
    """Refuse a run of a study that the hospital does not take part in, or that sets what its policy does not name.

    Only the names and values that the coordinator sent are looked at: not even the study is read for it. An empty text
    means that the study's own value holds.

    Raises:
        RefusalError: POLICY.
    """
    for error in _study_errors(settings, str(run_config.get("study", ""))):
        raise error
    allowed = settings.policy.run_settings
    asked = {key: run_config[key] for key in OVERRIDABLE_KEYS if run_config.get(key, "") != ""}
    if odd := {key: value for key, value in asked.items() if key not in allowed}:
        raise _refusal(f"the run sets {odd}; policy.run-settings allows {list(allowed)}")


def policy_errors(settings: SiteSettings, study: Study) -> Iterator[RefusalError | PrivacySettingError]:
    """Every rule of the hospital's policy that a study breaks, in the order in which `check_policy` refuses."""
    policy, privacy = settings.policy, study.privacy
    yield from _study_errors(settings, study.name)
    yield from _code_errors(settings, study)
    if not study.is_private and policy.require_privacy:
        yield _refusal("privacy.mechanism='none'; policy.require-privacy asks for differential privacy")
    if study.is_private and privacy.delta > policy.delta:
        yield _refusal(f"privacy.delta={privacy.delta}; policy.delta allows at most {policy.delta}")
    if study.strategy.SENDS_LOSS and policy.measurements != "exact":
        yield _refusal(
            f"strategy.name={study.strategy.name!r} sends the exact training loss of each round; "
            f"policy.measurements={policy.measurements!r} lets no exact number leave; expected 'exact'"
        )
    if study.is_private or policy.measurements == "noised":
        yield from _unit_errors(settings, study)
    if study.is_private and privacy.delta >= (largest := 1 / settings.declared_examples):
        yield PrivacySettingError(
            f"privacy.delta={privacy.delta}; expected below 1/declared-examples={largest:.3g}, or publishing one whole "
            "record at random would count as private"
        )


def check_code(settings: SiteSettings, study: Study) -> None:
    """Refuse a study whose model is code that the hospital's policy does not name, before it is imported.

    Raises:
        RefusalError: POLICY.
    """
    for error in _code_errors(settings, study):
        raise error


def _code_errors(settings: SiteSettings, study: Study) -> Iterator[RefusalError]:
    allowed, model = settings.policy.python_models, study.model
    if isinstance(model, OwnModelSettings) and model.path not in allowed:
        yield _refusal(
            f"model.path={model.path!r}; policy.python-models allows {list(allowed)}; add it after reading that code"
        )


def _study_errors(settings: SiteSettings, name: str) -> Iterator[RefusalError]:
    if (allowed := settings.policy.studies) is not None and name not in allowed:
        yield _refusal(f"study={name!r}; policy.studies allows {list(allowed)}")


def _unit_errors(settings: SiteSettings, study: Study) -> Iterator[RefusalError]:
    unit, weakest = study.privacy.unit, settings.policy.unit
    if UNITS.index(unit) < UNITS.index(weakest) and not settings.source.has_one_record_a_patient:
        yield _refusal(f"privacy.unit={unit!r}; policy.unit asks for at least {weakest!r}")


def check_room(settings: SiteSettings) -> None:
    """Refuse every private run of a hospital whose policy gives nothing to one.

    Raises:
        RefusalError: BUDGET_EXHAUSTED.
    """
    policy = settings.policy
    if min(policy.epsilon_budget, policy.largest_study_epsilon) < 2 * PRV_ERROR:
        raise RefusalError(
            RefusalCode.BUDGET_EXHAUSTED,
            f"policy.epsilon-budget={policy.epsilon_budget}, policy.epsilon-per-study={policy.largest_study_epsilon}; "
            f"a private study needs {2 * PRV_ERROR} of both; raise them to take part",
        )


def make_plan(settings: SiteSettings, study: Study) -> PrivacyPlan:
    """The plan of a study's run at this hospital; of the study's numbers and the policy's, the stricter."""
    policy = settings.policy
    epsilon = min(study.privacy.epsilon, policy.largest_study_epsilon)
    plan = calibrate_plan(study, epsilon=epsilon, nominal_units=settings.declared_examples)
    return replace(plan, noise_multiplier=max(plan.noise_multiplier, policy.minimum_noise_multiplier))


def calibrate_plan(study: Study, *, epsilon: float, nominal_units: int) -> PrivacyPlan:
    """The plan with the least noise that gives a study's run this epsilon."""
    privacy = study.privacy
    return PrivacyPlan.calibrate(
        unit=privacy.unit,
        epsilon=epsilon,
        delta=privacy.delta,
        clip_norm=privacy.clip_norm,
        sampling_rate=privacy.sampling_rate,
        steps_per_round=privacy.steps_per_round,
        num_rounds=study.num_rounds,
        nominal_units=nominal_units,
    )


def make_measurement_plan(settings: SiteSettings, study: Study) -> PrivacyPlan:
    """The plan of a run's measurements on held-out patients; of the study's numbers and the policy's, the stricter."""
    policy, privacy = settings.policy, study.privacy
    plan = PrivacyPlan.calibrate(
        unit=privacy.unit,
        epsilon=min(privacy.measurement_epsilon, policy.largest_study_epsilon),
        delta=min(privacy.delta, policy.delta),
        clip_norm=cells_sensitivity(study.num_outputs),
        sampling_rate=1.0,
        steps_per_round=1,
        num_rounds=study.num_measurements,
        nominal_units=settings.declared_examples,
    )
    return replace(plan, noise_multiplier=max(plan.noise_multiplier, policy.minimum_noise_multiplier))


def check_plan(settings: SiteSettings, plan: PrivacyPlan) -> None:
    """Refuse to go on with a plan that was made before the policy became stricter.

    Raises:
        RefusalError: POLICY.
    """
    policy = settings.policy
    if plan.noise_multiplier < policy.minimum_noise_multiplier or plan.delta > policy.delta:
        raise _refusal(f"the run's plan, {plan.to_json()}, has less noise or more delta than the policy allows now")
    if policy.epsilon_per_study is not None and plan.epsilon > policy.epsilon_per_study:
        raise _refusal(f"the run's plan has epsilon={plan.epsilon}; policy.epsilon-per-study allows less now")


def _refusal(detail: str) -> RefusalError:
    return RefusalError(RefusalCode.POLICY, detail)
