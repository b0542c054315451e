"""How a study is read: the only place where ``studies/<name>.toml`` and a run's overrides become one frozen object.

The file travels in the bundle, so that a hospital can read it and approve it. A run may override single numbers, texts
and truth values; both sides apply the overrides to their own copy of the file and compare fingerprints.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_contract.errors import SettingError
from fl_contract.settings import read_toml, scalar_keys, suggest_key
from fl_contract.study import STUDY_NAME, Study

STUDIES = Path(__file__).resolve().parent.parent / "studies"
"""The folder of studies that ships beside our packages, in a checkout and in a bundle."""

Scalar = str | int | float | bool

_AGREED_KEYS = ("name", "title", "model.path", "schema.", "model.weights.")
"""Keys, or how they begin, that no run may set: who it is, what it is about, which code and which files it loads."""

OVERRIDABLE_KEYS = tuple(key for key in scalar_keys(Study) if not key.startswith(_AGREED_KEYS))
"""Dotted keys that a run may set; ``[tool.flwr.app.config]`` lists the same (a test compares them)."""


def load_study(name: str, *, directory: Path = STUDIES, overrides: Mapping[str, Scalar] | None = None) -> Study:
    """Read a study by its name.

    Args:
        name: Of the file without ``.toml``; never a path.
        directory: That holds the studies.
        overrides: Values by dotted key, such as ``{"privacy.epsilon": 4.0}``.

    Raises:
        SettingError: There is no such study, or a key breaks a rule.
    """
    available = sorted(path.stem for path in directory.glob("*.toml"))
    if not STUDY_NAME.fullmatch(name) or name not in available:
        raise SettingError(f"study={name!r}; expected one of {available} in {directory.name}/")
    raw = read_toml(directory / f"{name}.toml")
    if raw.get("name") != name:
        raise SettingError(f"{name}.toml: name={raw.get('name')!r}; expected the name of the file, {name!r}")
    for key, value in (overrides or {}).items():
        _override(raw, key, value)
    return Study.parse(raw, origin=f"{name}.toml")


def _override(raw: dict[str, Any], key: str, value: Scalar) -> None:
    if key not in OVERRIDABLE_KEYS:
        hint = suggest_key(key, OVERRIDABLE_KEYS)
        rule = f"expected one of the {len(OVERRIDABLE_KEYS)} keys listed in pyproject.toml"
        raise SettingError(f"{key}={value!r} is not a known key{hint}; {rule}")
    *tables, last = key.split(".")
    for table in tables:
        raw = raw.setdefault(table, {})
        if not isinstance(raw, dict):
            return  # parsing refuses what is not a table
    raw[last] = value


def study_from_run_config(run_config: Mapping[str, Scalar], *, directory: Path = STUDIES) -> Study:
    """The study that a Flower run names, with its overrides; an empty text means "as the study says"."""
    overrides = {key: run_config[key] for key in OVERRIDABLE_KEYS if run_config.get(key, "") != ""}
    return load_study(str(run_config.get("study", "")), directory=directory, overrides=overrides)


def parse_assignment(assignment: str) -> tuple[str, Scalar]:
    """Read ``key=value`` of a command line; the value as TOML, a bare word as a text.

    >>> parse_assignment("privacy.epsilon=4.0"), parse_assignment("strategy.name=fedavgm")
    (('privacy.epsilon', 4.0), ('strategy.name', 'fedavgm'))
    """
    key, separator, text = assignment.partition("=")
    if not separator or not key.strip() or not text.strip():
        raise SettingError(f"{assignment!r}; expected key=value, such as num-rounds=20")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {"value": text}
    value = parsed["value"]
    if len(parsed) > 1 or not isinstance(value, Scalar):
        raise SettingError(f"{assignment!r}; expected one number, text or truth value")
    return key.strip(), value
