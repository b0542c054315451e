"""A hospital audits the training it would do, attacks a model with its own patients, and leaves no trace of either."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from fl_client import audit
from fl_client.audit import NUM_SHADOWS, attack_model, open_study, plan_to_audit
from fl_client.data.records import Records, SiteRecords
from fl_client.preprocessing import Examples, prepare
from fl_client.settings import read_site_settings
from fl_client.site import Site
from fl_client.training import Recipe, train_with_privacy
from fl_contract.array_record import Arrays
from fl_contract.errors import RefusalError, SettingError
from fl_contract.schema import Schema
from fl_contract.study import Study
from fl_contract.study_file import STUDIES
from privacy.plan import PrivacyPlan
from privacy.units import Units

PLAIN = {"privacy.mechanism": "none", "num-rounds": 2}


@pytest.fixture
def site_file(write_site_file: Callable[..., Path]) -> Path:
    return write_site_file()


def save_model(folder: Path, arrays: Arrays) -> Path:
    path = folder / "model.safetensors"
    save_file(arrays, path)
    return path


def with_alternate_labels(records: Records, schema: Schema, *, train: Records | None = None) -> Examples:
    """Examples whose labels cannot be learnt, only memorised."""
    examples = prepare(records, schema, train=train)
    return Examples(inputs=examples.inputs, labels=torch.arange(len(examples)) % 2)


def memorising_model(study: Study, site_file: Path) -> Arrays:
    """A logistic model with 31 weights, fitted by least squares to the training patients' alternate labels."""
    examples = with_alternate_labels(load(study, site_file).train, study.data_schema)
    inputs = torch.cat([examples.inputs, torch.ones(len(examples), 1)], dim=1)
    weights = 40 * torch.linalg.lstsq(inputs, 2 * examples.labels.float() - 1).solution
    return {"1.weight": weights[None, :-1].numpy(), "1.bias": weights[-1:].numpy()}


def load(study: Study, site_file: Path) -> SiteRecords:
    return Site(settings=read_site_settings(site_file), folder=site_file.parent, study=study).load_records()


def test_the_audited_plan_is_the_one_that_a_hospital_makes(study_of: Callable[..., Study]) -> None:
    study = study_of()

    plan = plan_to_audit(study)

    privacy = study.privacy
    assert (plan.epsilon, plan.delta, plan.clip_norm) == (privacy.epsilon, privacy.delta, privacy.clip_norm)
    assert (plan.sampling_rate, plan.steps_per_round, plan.num_rounds) == (0.25, 4, 3)


def test_of_a_long_study_the_first_rounds_are_audited(
    study_of: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MOST_STEPS", 9)

    plan = plan_to_audit(study_of())

    assert (plan.steps_per_round, plan.num_rounds) == (4, 2)


def test_a_study_without_privacy_has_no_private_training_to_audit(study_of: Callable[..., Study]) -> None:
    with pytest.raises(SettingError, match=r"privacy\.mechanism='none'"):
        plan_to_audit(study_of(overrides={"privacy.mechanism": "none"}))


def test_a_study_is_opened_by_its_name_or_by_the_path_of_its_file() -> None:
    by_name = open_study("digits", {"num-rounds": 7})
    by_path = open_study(str(STUDIES / "digits.toml"), {"num-rounds": 7})

    assert by_name == by_path
    assert by_name.num_rounds == 7


def test_an_untrained_model_betrays_nobody(
    study_of: Callable[..., Study], model: Arrays, site_file: Path, tmp_path: Path
) -> None:
    shadows: list[None] = []

    found = attack_model(
        study_of(overrides=PLAIN), site_file, save_model(tmp_path, model), lambda: shadows.append(None)
    )

    # Every weight is zero: all losses are ln 2, a tie.
    assert found.loss.auc == 0.5
    assert found.loss.true_positive_rate == 0.0
    assert len(shadows) == NUM_SHADOWS
    records = load(study_of(), site_file)
    assert (found.loss.num_members, found.loss.num_others) == (len(records.train), len(records.test))


def test_patients_whose_labels_a_model_memorised_are_found(
    study_of: Callable[..., Study], site_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(overrides=PLAIN)
    path = save_model(tmp_path, memorising_model(study, site_file))
    monkeypatch.setattr(audit, "prepare", with_alternate_labels)

    result = attack_model(study, site_file, path).loss

    assert result.auc > 0.6
    assert result.auc_interval[0] > 0.5


@pytest.mark.slow
def test_a_private_study_is_attacked_by_private_shadows_without_charging_anybody(
    study_of: Callable[..., Study], model: Arrays, site_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def counted(
        model: nn.Module,
        examples: Examples,
        units: Units,
        recipe: Recipe,
        plan: PrivacyPlan,
        granted: int,
    ) -> int:
        steps.append(train_with_privacy(model, examples, units, recipe, plan, granted))
        return steps[-1]

    monkeypatch.setattr(audit, "train_with_privacy", counted)

    attack_model(study_of(), site_file, save_model(tmp_path, model))

    assert steps == [4] * 3 * NUM_SHADOWS
    assert [path.name for path in site_file.parent.iterdir()] == ["site.toml"]


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_file_that_is_no_model_is_refused(
    content: bytes | None, study_of: Callable[..., Study], site_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingError, match="cannot be read as a model of study 'breast-cancer'"):
        attack_model(study_of(overrides=PLAIN), site_file, path)


def test_a_model_of_another_study_is_refused(study_of: Callable[..., Study], site_file: Path, tmp_path: Path) -> None:
    path = save_model(tmp_path, {"weight": np.zeros(3, dtype=np.float32)})

    with pytest.raises(SettingError, match="cannot be read as a model"):
        attack_model(study_of(overrides=PLAIN), site_file, path)


def test_patients_that_do_not_fit_the_study_are_refused(
    study_of: Callable[..., Study], model: Arrays, site_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(RefusalError, match="invalid-data"):
        attack_model(study_of("digits", PLAIN), site_file, save_model(tmp_path, model))


def test_a_model_of_survival_cannot_be_attacked_by_losses(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="study='tcga-brca' is of survival"):
        attack_model(open_study("tcga-brca", {}), tmp_path / "site.toml", tmp_path / "model.safetensors")
