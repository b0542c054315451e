"""A study is read by its name, checked key by key, and is the same object with the same fingerprint on both sides."""

import copy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from fl_contract.errors import SettingError
from fl_contract.settings import read_toml
from fl_contract.study import Study
from fl_contract.study_file import (
    OVERRIDABLE_KEYS,
    STUDIES,
    Scalar,
    load_study,
    parse_assignment,
    study_from_run_config,
)
from fl_server.starting_point import Kind

SHIPPED = sorted(path.stem for path in STUDIES.glob("*.toml"))
REMOVE = object()


def raw_with(key: str, value: Any, *, study: str = "breast-cancer") -> dict[str, Any]:
    raw = read_toml(STUDIES / f"{study}.toml")
    *tables, last = (int(part) if part.isdigit() else part for part in key.split("."))
    table: Any = raw
    for part in tables:
        table = table[part]
    if value is REMOVE:
        del table[last]
    else:
        table[last] = value
    return raw


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_study_is_valid(name: str) -> None:
    study = load_study(name)

    assert study.name == name
    assert study.num_outputs == {0: 1, 2: 1}.get(classes := len(study.data_schema.classes), classes)


def test_the_shipped_studies_are_a_table_and_images() -> None:
    assert load_study("breast-cancer").data_schema.input_shape == (30,)
    assert load_study("digits").data_schema.input_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        # unknown
        ("num-round", 3, "num-round=3 is not a known key; did you mean 'num-rounds'?"),
        ("num_rounds", 3, "num_rounds=3 is not a known key; did you mean 'num-rounds'?"),
        ("trainng", {"learning-rate": 1.0}, "trainng is not a known key; did you mean 'training'?"),
        ("privacy.epsilom", 3.0, "privacy.epsilom=3.0 is not a known key; did you mean 'privacy.epsilon'?"),
        ("training.epsilon", 3.0, "training.epsilon=3.0 is not a known key; did you mean 'privacy.epsilon'?"),
        ("model.hidden-size", 3, "model.hidden-size=3 is not a known key; it goes with another model.kind"),
        (
            "schema.features.3.minimun",
            1.0,
            "schema.features.3.minimun=1.0 is not a known key; did you mean 'schema.features.3.minimum'?",
        ),
        # missing
        ("num-rounds", REMOVE, "num-rounds is missing; add it"),
        ("privacy", REMOVE, "privacy is missing; add it"),
        ("privacy.epsilon", REMOVE, "privacy.epsilon is missing; add it"),
        ("privacy.mechanism", REMOVE, "privacy.mechanism is missing; add it"),
        ("model.kind", REMOVE, "model.kind is missing; add it"),
        ("schema.features.3.maximum", REMOVE, "schema.features.3.maximum is missing; add it"),
        # mistyped
        ("num-rounds", "3", "num-rounds='3'; expected a whole number"),
        ("num-rounds", 3.0, "num-rounds=3.0; expected a whole number"),
        ("seed", True, "seed=True; expected a whole number"),
        ("training", 3, "training=3; expected a table"),
        ("model", "mlp", "model='mlp'; expected a table"),
        ("simulation.require-privacy", 1, "simulation.require-privacy=1; expected true or false"),
        ("schema.features", 3, "schema.features=3; expected a list"),
        ("schema.features.3", "age", "schema.features.3='age'; expected a table"),
        ("schema.features.3.minimum", "1", "schema.features.3.minimum='1'; expected a number"),
        (
            "training.optimizer-options",
            {"momentum": "x"},
            "training.optimizer-options.momentum='x'; expected a whole number or a number or true or false",
        ),
        # out of range
        ("num-rounds", 0, "num-rounds=0; expected at least 1"),
        ("seed", -1, "seed=-1; expected at least 0"),
        ("seed", 2**32, "seed=4294967296; expected below 4294967296"),
        ("simulation.num-sites", 0, "simulation.num-sites=0; expected at least 1"),
        ("simulation.num-sites", 1001, "simulation.num-sites=1001; expected at most 1000"),
        ("federation.min-sites", 0, "federation.min-sites=0; expected at least 1"),
        ("federation.fraction-sites", 0.0, "federation.fraction-sites=0.0; expected above 0.0"),
        ("federation.fraction-sites", 1.01, "federation.fraction-sites=1.01; expected at most 1.0"),
        ("privacy.epsilon", 0.0, "privacy.epsilon=0.0; expected at least 0.02"),
        ("privacy.epsilon", float("nan"), "privacy.epsilon=nan; expected a finite number"),
        ("privacy.epsilon", float("inf"), "privacy.epsilon=inf; expected a finite number"),
        ("privacy.delta", 1.0, "privacy.delta=1.0; expected below 1.0"),
        ("privacy.clip-norm", -1.0, "privacy.clip-norm=-1.0; expected at least 1e-06"),
        ("privacy.mechanism", "dp", "privacy.mechanism='dp'; expected 'dp-sgd' or 'none'"),
        ("strategy.server-learning-rate", 0.0, "strategy.server-learning-rate=0.0; expected above 0.0"),
        ("schema.features", [], "schema.features=[]; expected a list of length 1 or more"),
        (
            "schema.classes",
            ["benign"],
            "schema.classes=['benign']; expected 2 or more for task = 'classification'",
        ),
        (
            "schema.task",
            "survival",
            "schema.classes=['benign', 'malignant']; expected none for task = 'survival'",
        ),
        ("schema.time-unit", "days", "schema.time-unit='days'; expected one for task = 'survival', and for it only"),
        (
            "model.kind",
            "resnet",
            "model.kind='resnet'; expected one of 'logistic', 'linear', 'mlp', 'cox', 'multimodal', 'small-cnn', "
            "'resnet18', 'resnet34', 'resnet50', 'densenet121', 'efficientnet-b0', 'efficientnet-b1', "
            "'efficientnet-b2', 'efficientnet-b3', 'efficientnet-b4', 'vit', 'unet', 'cnn1d', 'gru', "
            "'transe', 'python'",
        ),
        ("name", "Breast Cancer", "name='Breast Cancer'; expected lower-case letters, digits and hyphens, at most 64"),
        # rules of a whole table
        (
            "training.optimizer",
            "Foo",
            "training.optimizer='Foo'; expected the name of a class of torch.optim, such as 'SGD'",
        ),
        (
            "training.optimizer",
            "Optimizer",
            "training.optimizer='Optimizer'; expected the name of a class of torch.optim, such as 'SGD'",
        ),
        (
            "training.optimizer",
            "SparseAdam",
            "training.optimizer='SparseAdam'; it takes sparse gradients only, which our models do not give; "
            "choose another, such as 'SGD' or 'Adam'",
        ),
        (
            "training.optimizer",
            "lr_scheduler",
            "training.optimizer='lr_scheduler'; expected the name of a class of torch.optim, such as 'SGD'",
        ),
        (
            "schema.features.3.minimum",
            5000.0,
            "schema.features.3.minimum=5000.0 and maximum=4000.0; expected minimum below maximum",
        ),
        (
            "schema.features.3.minimum",
            0.0,
            "schema.features.3.minimum=0.0; expected above 0 for scale = 'log'",
        ),
        (
            "strategy.weighting",
            "institution",
            "strategy.institution-weights go with weighting = 'institution', and only with it",
        ),
        (
            "strategy.institution-weights",
            {"hospital-1": 1.0},
            "strategy.institution-weights go with weighting = 'institution', and only with it",
        ),
        # categories and statistics of a feature
        (
            "schema.features.3",
            {"name": "x", "categories": ["a", "b"], "minimum": 0.0, "scale": "log"},
            "schema.features.3.categories and minimum and scale; expected categories, or a range with unit and scale",
        ),
        (
            "schema.features.3",
            {"name": "x", "categories": ["a"]},
            "schema.features.3.categories=['a']; expected a list of length 2 or more",
        ),
        (
            "schema.features.3",
            {"name": "x", "categories": ["a", "b", "a "]},
            "schema.features.3.categories=['a', 'b', 'a ']; expected each once",
        ),
        (
            "schema.features.3",
            {"name": "x", "categories": ["a", "b", ""]},
            "schema.features.3.categories.2=''; expected a text of length 1 or more",
        ),
        (
            "schema.features.3",
            {"name": "x", "categories": ["a", "b", 2]},
            "schema.features.3.categories.2=2; expected a text",
        ),
        (
            "schema.features.3",
            {"name": "x", "categories": ["a", "b"], "missing": "median"},
            "schema.features.3.missing='median'; expected 'refuse' or 'most-frequent'",
        ),
        (
            "schema.features.3",
            {"name": "x", "categories": ["a", "b"], "unit": "mm"},
            "schema.features.3.categories and unit; expected categories, or a range with unit and scale",
        ),
        ("schema.features.3", {"name": "x", "minimum": 0.0}, "schema.features.3.maximum is missing; add it"),
        (
            "schema.features.3.missing",
            "most-frequent",
            "schema.features.3.missing='most-frequent'; expected 'refuse', 'mean', 'median' or 'site-mean'",
        ),
        (
            "schema.features.3.missing",
            "site-mean",
            "schema.features.3.missing='site-mean' and scale='log'; expected it for scale = 'site-standard'",
        ),
        (
            "schema.features.3",
            {"name": "x", "minimum": 0.0, "maximum": 1.0, "scale": "site-standard", "missing": "mean"},
            "schema.features.3.missing='mean'; expected 'refuse' or 'site-mean' for scale = 'site-standard', which "
            "knows no other hospital's values",
        ),
        (
            "model",
            {"kind": "mlp", "embedding-size": 2},
            "model.embedding-size=2; expected 0 for a schema without a feature of categories",
        ),
        *(
            (
                "model.kind",
                kind,
                f"model.kind='{kind}' and schema.kind='table'; this model is for ['image']",
            )
            for kind in ("small-cnn", "resnet18")
        ),
    ],
)
def test_a_broken_rule_names_file_key_value_and_rule(key: str, value: Any, line: str) -> None:
    with pytest.raises(SettingError) as caught:
        Study.parse(raw_with(key, value), origin="breast-cancer.toml")

    assert str(caught.value) == f"breast-cancer.toml: {line}"


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("epsilon", 0.0, "central-privacy.epsilon=0.0; expected at least 0.02"),
        ("delta", 1.0, "central-privacy.delta=1.0; expected below 1.0"),
        ("clip-norm", 0.0, "central-privacy.clip-norm=0.0; expected at least 1e-06"),
        ("clip-norm", REMOVE, "central-privacy.clip-norm is missing; add it"),
        ("clipnorm", 3.0, "central-privacy.clipnorm=3.0 is not a known key; did you mean 'central-privacy.clip-norm'?"),
    ],
)
def test_a_broken_rule_of_central_privacy_is_named(key: str, value: Any, line: str) -> None:
    table = {"epsilon": 8.0, "delta": 0.001, "clip-norm": 1.0, key: value}
    raw = raw_with("central-privacy", {name: each for name, each in table.items() if each is not REMOVE})

    with pytest.raises(SettingError) as caught:
        Study.parse(raw, origin="s.toml")

    assert str(caught.value) == f"s.toml: {line}"


def test_central_privacy_asks_every_hospital() -> None:
    raw = raw_with("federation.fraction-sites", 0.5)
    raw["central-privacy"] = {"epsilon": 8.0, "delta": 0.001, "clip-norm": 1.0}

    with pytest.raises(SettingError, match=r"federation\.fraction-sites=0\.5; expected 1 with central-privacy"):
        Study.parse(raw, origin="s.toml")


@pytest.mark.parametrize(
    ("study", "key", "value", "line"),
    [
        ("digits", "schema.scale", "robust", "schema.scale='robust'; expected 'linear' or 'standard'"),
        ("digits", "schema.scale", "standard", None),
    ],
)
def test_images_are_scaled_by_their_range_or_by_all_pixels(study: str, key: str, value: str, line: str | None) -> None:
    raw = raw_with(key, value, study=study)
    raw["privacy"]["mechanism"] = "none"

    if line is None:
        assert Study.parse(raw, origin="s.toml").needs_statistics
    else:
        with pytest.raises(SettingError, match=line):
            Study.parse(raw, origin="s.toml")


def test_a_study_with_categories_is_read_again_as_it_was() -> None:
    raw = raw_with("schema.features.3", {"name": "x", "categories": ["a", "b"], "missing": "most-frequent"})
    raw["privacy"]["mechanism"] = "none"
    study = Study.parse(raw, origin="s.toml")

    assert Study.parse(copy.deepcopy(study.to_table()), origin="again") == study
    assert (study.data_schema.input_shape, study.data_schema.encoded_shape) == ((30,), (31,))


@pytest.mark.parametrize(
    ("key", "value", "fragments"),
    [
        (
            "training.optimizer-options",
            {"momntum": 0.5},
            ["training.optimizer-options=['momntum']; SGD knows", "momentum"],
        ),
        (
            "simulation.trainers",
            "hospital-5",
            ["simulation.trainers='hospital-5'; expected 'all', 'pooled'", "hospital-4"],
        ),
    ],
)
def test_a_broken_rule_lists_what_is_allowed(key: str, value: Any, fragments: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        Study.parse(raw_with(key, value), origin="s.toml")

    assert all(fragment in str(caught.value) for fragment in fragments)
    assert "{" not in str(caught.value)  # never the whole table


def test_image_ranges_are_checked_too() -> None:
    with pytest.raises(
        SettingError, match=r"^d\.toml: schema\.minimum=16\.0 and maximum=16\.0; expected minimum below"
    ):
        Study.parse(raw_with("schema.minimum", 16.0, study="digits"), origin="d.toml")


def test_every_broken_rule_is_listed() -> None:
    raw = raw_with("num-rounds", 0)
    raw["privacy"]["epsilon"] = -1.0
    del raw["federation"]["min-sites"]

    with pytest.raises(SettingError) as caught:
        Study.parse(raw, origin="s.toml")

    assert str(caught.value).splitlines() == [
        "s.toml: num-rounds=0; expected at least 1",
        "s.toml: federation.min-sites is missing; add it",
        "s.toml: privacy.epsilon=-1.0; expected at least 0.02",
    ]


def test_a_study_cannot_be_changed() -> None:
    study = load_study("digits")

    with pytest.raises(ValidationError, match="frozen"):
        study.num_rounds = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        study.privacy.epsilon = 100.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "../studies/digits", "a/b", "/etc/passwd", "digits.toml", "digits\n", "Digits", "no"],
)
def test_an_unknown_name_or_a_path_is_refused_and_the_studies_are_listed(name: str) -> None:
    with pytest.raises(SettingError) as caught:
        load_study(name)

    assert str(caught.value) == f"study={name!r}; expected one of {SHIPPED} in studies/"


def test_a_file_under_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text((STUDIES / "digits.toml").read_text())

    with pytest.raises(SettingError, match=r"^mine\.toml: name='digits'; expected the name of the file, 'mine'$"):
        load_study("mine", directory=tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("num-rounds", 3, lambda study: study.num_rounds),
        ("privacy.epsilon", 4.5, lambda study: study.privacy.epsilon),
        ("privacy.mechanism", "none", lambda study: study.privacy.mechanism),
        ("simulation.require-privacy", True, lambda study: study.simulation.require_privacy),
        ("strategy.name", "fedavgm", lambda study: study.strategy.name),
        ("stopping.patience", 7, lambda study: study.stopping.patience),
    ],
)
def test_an_override_replaces_the_value(key: str, value: Scalar, read: Callable[[Study], Scalar]) -> None:
    study = load_study("breast-cancer", overrides={key: value})

    assert read(study) == value
    assert read(load_study("breast-cancer")) != value


def test_privacy_is_on_unless_the_mechanism_is_none() -> None:
    assert load_study("digits").is_private
    assert not load_study("digits", overrides={"privacy.mechanism": "none"}).is_private


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"num-rounds": "3"}, "breast-cancer.toml: num-rounds='3'; expected a whole number"),
        ({"privacy.epsilon": True}, "breast-cancer.toml: privacy.epsilon=True; expected a number"),
        ({"simulation.num-sites": 0}, "breast-cancer.toml: simulation.num-sites=0; expected at least 1"),
        (
            {"model.width": 8},
            "breast-cancer.toml: model.width=8 is not a known key; it goes with another model.kind",
        ),
        ({"model.kind": "mlp", "model.hidden-size": 0}, "breast-cancer.toml: model.hidden-size=0; expected at least 1"),
    ],
)
def test_an_override_is_checked_like_the_file(overrides: dict[str, Scalar], line: str) -> None:
    with pytest.raises(SettingError) as caught:
        load_study("breast-cancer", overrides=overrides)

    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("privacy.epsilom", "; did you mean 'privacy.epsilon'?"),
        ("epsilon", "; did you mean 'privacy.epsilon'?"),
        ("num_rounds", "; did you mean 'num-rounds'?"),
        ("simulation.patience", "; did you mean 'stopping.patience'?"),
        ("colour", ""),
        ("", ""),
        # not for a run to change
        ("name", "; did you mean 'strategy.name'?"),
        ("title", ""),
        ("schema.kind", "; did you mean 'model.kind'?"),
        ("training", ""),
    ],
)
def test_an_unknown_override_is_refused_with_a_hint(key: str, hint: str) -> None:
    with pytest.raises(SettingError) as caught:
        load_study("digits", overrides={key: 4})

    rule = f"expected one of the {len(OVERRIDABLE_KEYS)} keys listed in pyproject.toml"
    assert str(caught.value) == f"{key}=4 is not a known key{hint}; {rule}"


def test_an_override_inside_what_is_not_a_table_is_refused_as_such(tmp_path: Path) -> None:
    text = (STUDIES / "digits.toml").read_text()
    start, rest = text.split("[model]")
    (tmp_path / "digits.toml").write_text(
        start.replace("seed = 2026", "seed = 2026\nmodel = 3") + rest[rest.index("[training]") :]
    )

    with pytest.raises(SettingError, match=r"^digits\.toml: model=3; expected a table$"):
        load_study("digits", directory=tmp_path, overrides={"model.width": 8})


def test_an_empty_text_means_as_in_the_study() -> None:
    empty: dict[str, Scalar] = dict.fromkeys(OVERRIDABLE_KEYS, "")

    study = study_from_run_config({**empty, "study": "digits", "out": "runs/x", "num-rounds": 7})

    assert study == load_study("digits", overrides={"num-rounds": 7})


@pytest.mark.parametrize("run_config", [{}, {"study": ""}, {"study": 3}])
def test_a_run_without_a_study_is_refused(run_config: dict[str, Scalar]) -> None:
    with pytest.raises(SettingError, match=r"expected one of \["):
        study_from_run_config(run_config)


def test_a_run_can_set_to_zero_and_to_false() -> None:
    study = study_from_run_config({"study": "digits", "stopping.patience": 0, "simulation.require-privacy": False})

    assert study.stopping.patience == 0


def test_the_fingerprint_is_stable() -> None:
    study = load_study("digits")

    assert study.fingerprint == load_study("digits").fingerprint
    assert len(study.fingerprint) == 64
    assert Study.parse(copy.deepcopy(study.to_table()), origin="again").fingerprint == study.fingerprint


def test_the_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    raw = raw_with("training.optimizer-options", {"momentum": 0.5, "nesterov": True}, study="digits")

    def turn(table: Any) -> Any:
        return {key: turn(value) for key, value in reversed(table.items())} if isinstance(table, dict) else table

    turned = turn(raw)

    assert list(turned["training"]["optimizer-options"]) == ["nesterov", "momentum"]
    assert Study.parse(turned, origin="").fingerprint == Study.parse(raw, origin="").fingerprint


CHANGES: dict[str, Scalar] = {
    "num-rounds": 7,
    "seed": 7,
    "model.norm": "group",
    "model.width": 8,
    "training.optimizer": "Adam",
    "training.learning-rate": 0.07,
    "training.private-learning-rate": 0.07,
    "training.batch-size": 7,
    "training.local-epochs": 7,
    "training.local-steps": 9,
    "strategy.weighting": "equal",
    "strategy.server-learning-rate": 0.7,
    "strategy.server-momentum": 0.7,
    "strategy.server-dampening": 0.7,
    "strategy.server-nesterov": True,
    "federation.min-sites": 2,
    "federation.fraction-sites": 0.7,
    "federation.max-update-norm": 3.5,
    "federation.round-timeout-seconds": 7.0,
    "federation.measure-every": 7,
    "federation.late-replies": "fold",
    "federation.set-aside-after": 7,
    "stopping.patience": 7,
    "stopping.min-improvement": 0.7,
    "stopping.min-relative-step": 0.7,
    "stopping.small-steps": 7,
    "privacy.mechanism": "none",
    "privacy.unit": "patient",
    "privacy.epsilon": 7.0,
    "privacy.delta": 0.0007,
    "privacy.clip-norm": 0.7,
    "privacy.sampling-rate": 0.7,
    "privacy.steps-per-round": 7,
    "privacy.measurement-epsilon": 0.7,
    "simulation.dataset": "breast-cancer",
    "simulation.data": "folder",
    "simulation.num-sites": 7,
    "simulation.alpha": 0.7,
    "simulation.test-fraction": 0.7,
    "simulation.trainers": "pooled",
    "simulation.epsilon-budget": 7.0,
    "simulation.require-privacy": True,
    "simulation.measurements": "none",
    "communication.codec": "int8",
    "model.trainable": "head",
    "model.lora-rank": 2,
    "model.lora-alpha": 2.0,
}
UNCHANGEABLE = {
    "model.kind",  # another kind has other keys, see below
    "model.hidden-size",
    "model.num-hidden-layers",
    "model.embedding-size",
    "model.stem",
    "strategy.name",  # another algorithm has other keys, see below
    "strategy.server-beta1",
    "strategy.server-beta2",
    "strategy.server-tau",
    "strategy.proximal-mu",
    "strategy.dynamic-alpha",
    "strategy.fairness",
    "strategy.trim-fraction",
    "strategy.num-hostile",
    "strategy.num-chosen",
    "strategy.update-bound",
    "strategy.clip-radius",
    "strategy.head",
    "strategy.head-share",
    "strategy.personal-pull",
    "strategy.mixture",
    "strategy.adaptive-mixture",
    "strategy.validation-share",
    "strategy.buffer-size",
    "strategy.max-staleness",
    "model.latent-size",
    "model.growth-rate",
    "model.patch-size",
    "model.num-heads",
    "model.num-levels",
    "model.kernel-size",
    "model.num-blocks",
    "federation.min-per-region",  # goes with federation.regions, see below
    "federation.balance",  # goes without dp-sgd, see below
    "communication.zstd",  # go with a codec, see below
    "communication.bits",
    "communication.fraction",
    "communication.rank",
    "central-privacy.mechanism",  # go together, see below
    "central-privacy.epsilon",
    "central-privacy.delta",
    "central-privacy.clip-norm",
}


@pytest.mark.parametrize("key", CHANGES)
def test_any_override_changes_the_fingerprint(key: str) -> None:
    assert load_study("digits", overrides={key: CHANGES[key]}).fingerprint != load_study("digits").fingerprint


def test_overrides_of_another_model_change_the_fingerprint() -> None:
    overrides: list[dict[str, Scalar]] = [{}, {"model.hidden-size": 7}, {"model.num-hidden-layers": 7}]
    studies = [load_study("breast-cancer", overrides={"model.kind": "mlp", **each}) for each in overrides]

    assert len({study.fingerprint for study in [load_study("breast-cancer"), *studies]}) == 4


def test_overrides_of_another_algorithm_change_the_fingerprint() -> None:
    named: list[dict[str, Scalar]] = [
        {},
        {"name": "fedprox"},
        {"name": "fedprox", "proximal-mu": 0.7},
        {"name": "feddyn"},
        {"name": "feddyn", "dynamic-alpha": 0.7},
        {"name": "fedadam"},
        {"name": "fedyogi"},
        {"name": "fedadam", "server-beta1": 0.7},
        {"name": "fedadam", "server-beta2": 0.7},
        {"name": "fedadam", "server-tau": 0.7},
        {"name": "fedbuff"},
        {"name": "fedbuff", "buffer-size": 4},
        {"name": "fedbuff", "max-staleness": 7},
    ]
    robust: list[dict[str, Scalar]] = [
        {"name": "median"},
        {"name": "geometric-median"},
        {"name": "trimmed-mean"},
        {"name": "trimmed-mean", "trim-fraction": 0.3},
        {"name": "krum"},
        {"name": "krum", "num-hostile": 2},
        {"name": "krum", "num-chosen": 2},
        {"name": "norm-bounding", "update-bound": 0.5},
        {"name": "norm-bounding", "update-bound": 1.0},
        {"name": "centred-clipping", "clip-radius": 0.5},
        {"name": "centred-clipping", "clip-radius": 1.0},
    ]
    named += [{"weighting": "equal", **each} for each in robust]
    named += [
        {"name": "q-fedavg"},
        {"name": "q-fedavg", "fairness": 2.0},
        {"name": "fedsgd"},
        {"name": "fedper"},
        {"name": "fedper", "head": "1"},
        {"name": "fedrep"},
        {"name": "fedrep", "head": "1"},
        {"name": "fedrep", "head-share": 0.7},
        {"name": "ditto"},
        {"name": "ditto", "personal-pull": 0.7},
        {"name": "apfl"},
        {"name": "apfl", "mixture": 0.7},
        {"name": "apfl", "adaptive-mixture": True},
        {"name": "fine-tuning"},
        {"name": "fine-tuning", "validation-share": 0.3},
    ]
    overrides = [{f"strategy.{key}": value for key, value in each.items()} for each in named]
    base: dict[str, Scalar] = {"model.kind": "mlp", "privacy.mechanism": "none"}
    studies = [load_study("breast-cancer", overrides=base | each) for each in overrides]

    assert len({study.fingerprint for study in studies}) == len(overrides)


def test_overrides_of_another_codec_change_the_fingerprint() -> None:
    named: list[dict[str, Scalar]] = [
        {"codec": "none"},
        {"codec": "float16"},
        {"codec": "bfloat16"},
        {"codec": "int8"},
        {"codec": "int8", "zstd": True},
        {"codec": "rotation"},
        {"codec": "rotation", "bits": 4},
        {"codec": "top-k"},
        {"codec": "top-k", "fraction": 0.5},
        {"codec": "powersgd"},
        {"codec": "powersgd", "rank": 2},
    ]
    overrides = [{f"communication.{key}": value for key, value in each.items()} for each in named]
    studies = [load_study("breast-cancer", overrides=each) for each in overrides]

    assert len({study.fingerprint for study in studies}) == len(named)
    assert studies[0].fingerprint == load_study("breast-cancer").fingerprint


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"codec": "int7"}, "communication.codec='int7'; expected"),
        ({"zstd": True}, "communication.codec is missing; add it"),
        ({"codec": "none", "zstd": True}, "communication.zstd=True is not a known key"),
        ({"codec": "int8", "bits": 4}, "communication.bits=4 is not a known key"),
        ({"codec": "rotation", "bits": 3}, "communication.bits=3; expected 1, 2 or 4"),
        ({"codec": "top-k", "fraction": 0.0}, "communication.fraction=0.0; expected above 0"),
        ({"codec": "top-k", "fraction": 1.5}, "communication.fraction=1.5; expected at most 1"),
        ({"codec": "powersgd", "rank": 0}, "communication.rank=0; expected at least 1"),
    ],
)
def test_a_broken_rule_of_a_codec_is_named(table: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingError) as caught:
        Study.parse(raw_with("communication", table), origin="s.toml")

    assert str(caught.value).startswith(f"s.toml: {line}")


def test_overrides_of_central_privacy_change_the_fingerprint() -> None:
    base: dict[str, Scalar] = {f"central-privacy.{key}": 0.5 for key in ("epsilon", "delta", "clip-norm")}
    changes: list[dict[str, Scalar]] = [{}, {"central-privacy.mechanism": "none"}]
    changes += [{key: 0.7} for key in base]
    studies = [load_study("digits", overrides=base | change) for change in changes]

    assert len({study.fingerprint for study in studies}) == 5
    assert [study.protects_hospitals for study in studies[:2]] == [True, False]


def test_overrides_of_balance_change_the_fingerprint() -> None:
    plain: dict[str, Scalar] = {"privacy.mechanism": "none"}

    balanced = load_study("breast-cancer", overrides={**plain, "federation.balance": True})

    assert balanced.fingerprint != load_study("breast-cancer", overrides=plain).fingerprint


def test_a_change_of_the_minimum_per_region_changes_the_fingerprint() -> None:
    raw = raw_with("federation.regions", {"hospital-1": "north"}, study="digits")
    raw["federation"]["min-per-region"] = 1
    more = copy.deepcopy(raw)
    more["federation"]["min-per-region"] = 2

    fingerprints = {Study.parse(each, origin="").fingerprint for each in (raw, more)}

    assert len({*fingerprints, load_study("digits").fingerprint}) == 3


def test_the_table_above_covers_every_key_that_a_run_may_set() -> None:
    assert set(CHANGES) | UNCHANGEABLE == set(OVERRIDABLE_KEYS)


def test_pyproject_lists_the_keys_that_a_run_may_set() -> None:
    pyproject = tomllib.loads((STUDIES.parent / "pyproject.toml").read_text())
    listed = flatten(pyproject["tool"]["flwr"]["app"]["config"])
    own = {key: listed.pop(key) for key in ("study", "out", "resume", "weights-folder", *get_args(Kind))}

    assert set(listed) == set(OVERRIDABLE_KEYS)
    assert set(listed.values()) == {""}
    assert own["study"] in SHIPPED


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("num-rounds=20", ("num-rounds", 20)),
        ("privacy.epsilon=4.0", ("privacy.epsilon", 4.0)),
        ("privacy.delta=1e-5", ("privacy.delta", 1e-5)),
        ("simulation.require-privacy=true", ("simulation.require-privacy", True)),
        ("strategy.name=fedavgm", ("strategy.name", "fedavgm")),
        ('strategy.name="fedavgm"', ("strategy.name", "fedavgm")),
        ("simulation.trainers=hospital-1", ("simulation.trainers", "hospital-1")),
        (" num-rounds = 20 ", ("num-rounds", 20)),
        ('out=""', ("out", "")),
        ("a=b=c", ("a", "b=c")),
        ("a=True", ("a", "True")),
    ],
)
def test_an_assignment_is_read_as_toml_or_a_bare_word(assignment: str, expected: tuple[str, Scalar]) -> None:
    key, value = parse_assignment(assignment)

    assert (key, value) == expected
    assert type(value) is type(expected[1])


@pytest.mark.parametrize("assignment", ["", "num-rounds", "=", "=3", " =3", "num-rounds=", "num-rounds= "])
def test_an_assignment_needs_a_key_and_a_value(assignment: str) -> None:
    with pytest.raises(SettingError, match=r"expected key=value, such as num-rounds=20$"):
        parse_assignment(assignment)


@pytest.mark.parametrize("assignment", ["a=[1, 2]", "a={b = 1}", "a=2020-01-01", "a=1\nb=2"])
def test_an_assignment_has_one_value(assignment: str) -> None:
    with pytest.raises(SettingError, match=r"expected one number, text or truth value$"):
        parse_assignment(assignment)


@pytest.mark.parametrize(
    ("num_rounds", "every", "measured"),
    [
        (3, 1, {1: 1, 2: 2, 3: 3}),
        (3, 2, {1: 1, 3: 2}),
        (4, 2, {2: 1, 4: 2}),
        (5, 9, {5: 1}),
        (7, 3, {1: 1, 4: 2, 7: 3}),
    ],
)
def test_the_last_round_is_measured_and_then_every_so_many_before_it(
    num_rounds: int, every: int, measured: dict[int, int]
) -> None:
    study = load_study("digits", overrides={"num-rounds": num_rounds, "federation.measure-every": every})

    numbers = {number: study.measurement_number(number) for number in range(1, num_rounds + 1)}

    assert {number: measurement for number, measurement in numbers.items() if measurement} == measured
    assert study.num_measurements == len(measured)


ONE_SHOT: dict[str, Scalar] = {
    "strategy.name": "one-shot-ensemble",
    "strategy.weighting": "equal",
    "num-rounds": 1,
}


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (
            {"strategy.name": "scaffold", "privacy.mechanism": "none"},
            "strategy.name='scaffold'; its formula needs training.local-steps, alike at every hospital",
        ),
        (
            {"strategy.name": "fednova", "training.optimizer": "Adam"},
            "strategy.name='fednova'; its formula needs training.optimizer = 'SGD' without options but weight_decay",
        ),
        (
            {"strategy.name": "fedavgm", "strategy.server-nesterov": True, "strategy.server-dampening": 0.5},
            "server-dampening=0.5 with server-nesterov; expected 0",
        ),
        (
            {"strategy.name": "fedsgd", "training.optimizer": "Adam", "privacy.steps-per-round": 1},
            "strategy.name='fedsgd'; its formula needs training.optimizer = 'SGD' without options but weight_decay",
        ),
        (
            {"strategy.name": "fedsgd", "privacy.steps-per-round": 4},
            "privacy.steps-per-round=4; expected 1 for strategy.name='fedsgd', whose hospitals send one gradient a",
        ),
        (
            {"strategy.name": "fedsgd", "privacy.mechanism": "none", "training.local-epochs": 2},
            "training.local-epochs=2, local-steps=None; expected neither for strategy.name='fedsgd'",
        ),
        (
            {"strategy.name": "fedsgd", "privacy.mechanism": "none", "training.local-steps": 3},
            "local-steps=3; expected neither for strategy.name='fedsgd'",
        ),
        (
            {"strategy.name": "q-fedavg"},
            "strategy.name='q-fedavg' with privacy.mechanism='dp-sgd'; hospitals would send their exact training loss",
        ),
        (
            {"strategy.name": "q-fedavg", "privacy.mechanism": "none", "training.optimizer": "Adam"},
            "strategy.name='q-fedavg'; its formula needs training.optimizer = 'SGD' without options but weight_decay",
        ),
        (ONE_SHOT | {"num-rounds": 2}, "num-rounds=2; expected 1 for strategy.name='one-shot-ensemble', whose"),
        (ONE_SHOT | {"strategy.server-learning-rate": 0.5}, "server-learning-rate=0.5; an ensemble takes no step"),
        (
            ONE_SHOT | {"strategy.weighting": "examples"},
            "weighting='examples'; 'one-shot-ensemble' counts hospitals; expected 'equal'",
        ),
        (
            ONE_SHOT | {f"central-privacy.{key}": 0.5 for key in ("epsilon", "delta", "clip-norm")},
            "strategy.name='one-shot-ensemble' with central-privacy, which hands on one noised mean",
        ),
        ({"strategy.name": "median"}, "weighting='examples'; 'median' counts hospitals; expected 'equal'"),
        (
            {"strategy.name": "feddyn", **{f"central-privacy.{key}": 0.5 for key in ("epsilon", "delta", "clip-norm")}},
            "strategy.name='feddyn' with central-privacy, which hands on one noised mean of all hospitals; expected",
        ),
        (
            {"strategy.name": "fedprox", "strategy.server-momentum": 0.5},
            "strategy.server-momentum=0.5 is not a known key; it goes with another strategy.name",
        ),
        ({"strategy.name": "fedfast"}, "strategy.name='fedfast'; expected one of 'fedavg', 'fedavgm', 'fedsgd'"),
        *(
            (
                {"strategy.name": name},
                f"strategy.name='{name}' with privacy.mechanism='dp-sgd'; each hospital's own model would be trained "
                "without noise, and its measurements leave; choose 'fedbn', 'fedper' or 'fedrep'",
            )
            for name in ("ditto", "apfl", "fine-tuning")
        ),
        (
            {"strategy.name": "fedper", "model.kind": "mlp", "model.trainable": "head"},
            "model.trainable='head' with strategy.name='fedper', which says itself what of the model stays where; "
            "expected 'all'",
        ),
        (
            {"strategy.name": "fedsgd", "communication.codec": "int8", "privacy.steps-per-round": 1},
            "communication.codec='int8' with strategy.name='fedsgd', whose hospitals send gradients; codecs are for",
        ),
        ({"strategy.name": "fedbn"}, "the model has no normalisation layer that could stay at a hospital; choose"),
        ({"strategy.name": "fedper"}, "all weights of the model are in its head, so that hospitals would share"),
        (
            {"strategy.name": "fedrep", "strategy.head": "fc", "model.kind": "mlp"},
            "strategy.head='fc' is no layer with weights of the model; expected one of ['1', '3']",
        ),
        (
            {"strategy.name": "fedrep", "model.kind": "mlp", "privacy.steps-per-round": 1},
            "strategy.name='fedrep' and one local step a round; expected 2 or more, to take turns",
        ),
        (
            {
                **{"strategy.name": "fedrep", "model.kind": "mlp"},
                **{"privacy.mechanism": "none", "training.local-steps": 1},
            },
            "strategy.name='fedrep' and one local step a round; expected 2 or more, to take turns",
        ),
        (
            {
                **{"strategy.name": "fedper", "model.kind": "mlp"},
                **{f"central-privacy.{key}": 0.5 for key in ("epsilon", "delta", "clip-norm")},
            },
            "strategy.name='fedper' with central-privacy, which hands on one noised mean of all hospitals; expected",
        ),
        (
            {"strategy.name": "fednova", "federation.late-replies": "fold"},
            "federation.late-replies='fold' with strategy.name='fednova', which needs more of a round than the mean of "
            "updates; expected one of ['fedavg', 'fedavgm'",
        ),
        ({"federation.late-replies": "keep"}, "federation.late-replies='keep'; expected 'drop' or 'fold'"),
        ({"federation.set-aside-after": 0}, "federation.set-aside-after=0; expected at least 1"),
        ({"federation.min-per-region": -1}, "federation.min-per-region=-1; expected at least 0"),
        (
            {"federation.min-per-region": 1},
            "federation.min-per-region=1 with 0 entries in federation.regions; they go together",
        ),
        (
            {"federation.balance": True},
            "federation.balance with privacy.mechanism='dp-sgd', whose plan fixes the steps; leave it out",
        ),
        (
            {"federation.balance": True, "privacy.mechanism": "none", "strategy.name": "fedadam"},
            "federation.balance with strategy.name='fedadam'; expected one of ['fedavg', 'fedprox', 'fednova']",
        ),
        (
            {"federation.balance": True, "privacy.mechanism": "none", "training.optimizer": "Adam"},
            "federation.balance counts updates by step (Wang 2020), which needs training.optimizer = 'SGD'",
        ),
        (
            {
                "federation.balance": True,
                "privacy.mechanism": "none",
                **{f"central-privacy.{key}": 0.5 for key in ("epsilon", "delta", "clip-norm")},
            },
            "federation.balance with central-privacy, which hands on no hospital's steps; leave it out",
        ),
        (
            {"strategy.name": "fedbuff", "federation.fraction-sites": 0.5},
            "federation.fraction-sites=0.5; expected 1 with strategy.name='fedbuff', which keeps every hospital busy",
        ),
        (
            {"strategy.name": "fedbuff", "federation.min-sites": 3, "strategy.buffer-size": 2},
            "strategy.buffer-size=2; expected at least the quorum, federation.min-sites=3",
        ),
    ],
)
def test_an_algorithm_says_what_it_needs(overrides: dict[str, Scalar], rule: str) -> None:
    with pytest.raises(SettingError) as caught:
        load_study("breast-cancer", overrides=overrides)

    assert rule in str(caught.value)


def test_a_study_whose_hospitals_send_gradients_has_no_options_of_an_optimiser() -> None:
    raw = raw_with("training.optimizer-options", {"weight_decay": 0.5})
    raw |= {"strategy": {"name": "fedsgd"}, "privacy": raw["privacy"] | {"mechanism": "none"}}

    with pytest.raises(SettingError, match=r"'fedsgd'; hospitals send gradients .* found \['weight_decay'\]"):
        Study.parse(raw, origin="test")


def test_an_ensemble_is_for_one_row_of_outputs_a_record() -> None:
    raw = raw_with("strategy", {"name": "one-shot-ensemble", "weighting": "equal"}, study="digits") | {"num-rounds": 1}
    raw["schema"] |= {"task": "segmentation", "classes": ["no", "yes"]}
    raw["model"] = {"kind": "unet"}

    with pytest.raises(SettingError, match=r"schema\.task='segmentation'; predictions are averaged for \['classif"):
        Study.parse(raw, origin="test")


def test_a_study_that_names_no_algorithm_has_the_mean() -> None:
    raw = read_toml(STUDIES / "breast-cancer.toml")
    del raw["strategy"]["name"]

    assert Study.parse(raw, origin="test").strategy.name == "fedavg"
