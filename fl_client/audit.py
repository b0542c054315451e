"""The only place where a hospital attacks its own installation: its private training, and a model trained with it.

Nothing here leaves the hospital, and no ledger is charged: canaries are nobody's records, and models that are trained
on patients for an attack are measured and thrown away.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fl_client.policy import calibrate_plan, check_code
from fl_client.preprocessing import Examples, prepare
from fl_client.settings import read_site_settings
from fl_client.site import Site
from fl_client.training import Recipe, round_generator, train, train_with_privacy
from fl_contract.errors import SettingError
from fl_contract.study import Study
from fl_contract.study_file import STUDIES, Scalar, load_study
from privacy.audit import shorten
from privacy.membership import (
    MembershipResult,
    Scores,
    confidence_logits,
    likelihood_ratios,
    measure_attack,
    train_shadows,
)
from privacy.plan import PrivacyPlan
from privacy.units import Units

MOST_STEPS = 1000
"""Of a longer study the first steps are audited: each is the same mechanism."""

NUM_SHADOWS = 16
"""Models that are trained for an attack by likelihood ratios; more would find somewhat more."""


@dataclass(frozen=True, kw_only=True)
class ModelAudit:
    """What attacks on one model found with one hospital's patients.

    Attributes:
        loss: Of the attack that takes patients with a small loss for members.
        likelihood_ratio: Of the attack that compares with models trained with and without each patient.
    """

    loss: MembershipResult
    likelihood_ratio: MembershipResult


def open_study(name: str, overrides: dict[str, Scalar]) -> Study:
    """This installation's own copy of a study, by its name or the path of its file.

    Raises:
        SettingError: There is no such study, or a setting breaks a rule.
    """
    if name.endswith(".toml"):
        return load_study(Path(name).stem, directory=Path(name).parent, overrides=overrides)
    return load_study(name, directory=STUDIES, overrides=overrides)


def plan_to_audit(study: Study) -> PrivacyPlan:
    """The plan that a hospital would make for a private study, over at most `MOST_STEPS` steps.

    The declared number of patients scales signal and noise alike, so an audit needs none: it takes 1.

    Raises:
        SettingError: The study is not private.
    """
    if not study.is_private:
        raise SettingError("privacy.mechanism='none'; an audit of private training needs a study with 'dp-sgd'")
    plan = calibrate_plan(study, epsilon=study.privacy.epsilon, nominal_units=1)
    return shorten(plan, at_most=MOST_STEPS)


def attack_model(
    study: Study, site_file: Path, model_file: Path, on_shadow: Callable[[], None] = lambda: None
) -> ModelAudit:
    """Try to tell a hospital's training patients from its held-out ones by a model's losses.

    The likelihood ratio's shadow models see this hospital's patients only, each a random half of training and held-out
    ones together, and are trained as the study says. Against a model of several hospitals they are somewhat off.

    Args:
        study: That the model is of.
        site_file: The hospital's ``site.toml``.
        model_file: The model, as safetensors.
        on_shadow: Called after each of `NUM_SHADOWS` models, to show progress.

    Raises:
        SettingError: The file is not a model of this study, or the study's task has no loss of a patient alone.
        RefusalError: The hospital's policy does not name the study's own code, or its data break the study's schema.
    """
    if study.task.NOT_PRIVATE:
        raise SettingError(
            f"study={study.name!r} is of {study.data_schema.task}; a membership attack compares each patient's own "
            f"loss: {study.task.NOT_PRIVATE}"
        )
    settings = read_site_settings(site_file)
    check_code(settings, study)
    records = Site(settings=settings, folder=site_file.parent, study=study).load_records()
    members, others = (prepare(part, study.data_schema, train=records.train) for part in (records.train, records.test))
    pool = Examples(
        inputs=torch.cat([members.inputs, others.inputs]), labels=torch.cat([members.labels, others.labels])
    )
    target = _confidences(study, _load_model(study, model_file), pool)
    shadows, is_in = train_shadows(
        lambda rows: _confidences(study, _train_shadow(study, pool, rows), pool),
        len(pool),
        num_shadows=NUM_SHADOWS,
        generator=np.random.default_rng(study.seed),
        on_shadow=on_shadow,
    )

    def measure(scores: Scores) -> MembershipResult:
        return measure_attack(scores[: len(members)], scores[len(members) :], delta=study.privacy.delta)

    return ModelAudit(loss=measure(target), likelihood_ratio=measure(likelihood_ratios(target, shadows, is_in)))


def _load_model(study: Study, path: Path) -> nn.Module:
    model = study.build_model()
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise SettingError(f"{path}: cannot be read as a model of study {study.name!r} ({error})") from error
    return model


def _train_shadow(study: Study, pool: Examples, rows: NDArray[np.int64]) -> nn.Module:
    """Train as this study does, all its rounds at one hospital that holds these rows, each of another patient."""
    model = study.build_model()
    chosen = torch.from_numpy(rows)
    examples = Examples(inputs=pool.inputs[chosen], labels=pool.labels[chosen])
    plan, units = None, Units.alone(study.privacy.unit, len(examples))
    if study.is_private:
        plan = calibrate_plan(study, epsilon=study.privacy.epsilon, nominal_units=len(examples))
    recipe = Recipe(task=study.task, settings=study.training, is_full_batch=study.strategy.FULL_BATCH)
    for server_round in range(1, study.num_rounds + 1):
        if plan is not None:
            train_with_privacy(model, examples, units, recipe, plan, plan.steps_per_round)
        else:
            train(model, examples, recipe, round_generator(study.seed, "shadow", server_round))
    return model


def _confidences(study: Study, model: nn.Module, examples: Examples) -> Scores:
    model.eval()
    with torch.no_grad():
        losses = study.task.losses(model(examples.inputs).double(), examples.labels)
    return confidence_logits(losses.numpy())
