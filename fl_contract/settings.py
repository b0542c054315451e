"""The base of every settings type, and the only place where a settings file becomes a typed object.

Unknown, missing and mistyped keys stop the run with the key, the value and the rule. Nothing is guessed.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from fl_contract.errors import SettingError


class Settings(BaseModel):
    """Frozen settings with keys written as in TOML: ``num-rounds`` is the field ``num_rounds``."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        alias_generator=lambda field: field.replace("_", "-"),
    )

    @classmethod
    def parse(cls, raw: Mapping[str, Any], *, origin: str) -> Self:
        """Check a table of settings and make it an object.

        Args:
            raw: As TOML gives it.
            origin: Where the table is from, for messages.

        Raises:
            SettingError: One line for each broken rule.
        """
        try:
            return cls.model_validate(dict(raw))
        except ValidationError as error:
            lines = _describe(error.errors(include_url=False), raw, cls)
            raise SettingError("\n".join(f"{origin}: {line}" for line in lines)) from error


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        SettingError: The file is absent, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: is not valid TOML ({error})") from error


_RULES = {
    "bool_type": "expected true or false",
    "dict_type": "expected a table",
    "float_type": "expected a number",
    "greater_than": "expected above {gt}",
    "greater_than_equal": "expected at least {ge}",
    "int_type": "expected a whole number",
    "less_than": "expected below {lt}",
    "less_than_equal": "expected at most {le}",
    "list_type": "expected a list",
    "model_attributes_type": "expected a table",
    "model_type": "expected a table",
    "string_pattern_mismatch": "expected a text of the form {pattern}",
    "string_too_short": "expected a text of length {min_length} or more",
    "string_type": "expected a text",
    "too_short": "expected a list of length {min_length} or more",
    "tuple_type": "expected a list",
    "union_tag_invalid": "expected one of {expected_tags}",
}
"""Our words for pydantic's kinds of errors, filled with its context; other kinds keep its words."""


def _describe(errors: Iterable[Any], raw: Mapping[str, Any], model: type[BaseModel]) -> list[str]:
    """One line for each broken rule; the alternatives of one value are joined with "or"."""
    lines: dict[str, str] = {}
    for details in errors:
        start, rule = _split(details, raw, model)
        lines[start] = f"{lines[start]} or {rule.removeprefix('expected ')}" if start in lines else rule
    return [start + rule for start, rule in lines.items()]


def _split(details: Any, raw: Mapping[str, Any], model: type[BaseModel]) -> tuple[str, str]:
    """What is wrong, with key and value, and the rule that it breaks."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    location = _without_union_tags(details["loc"], raw, is_missing=kind == "missing")
    if kind.startswith("union_tag"):
        tag = context["discriminator"].strip("'")
        location, value = (*location, tag), value.get(tag)
    key = ".".join(map(str, location))
    if kind in ("missing", "union_tag_not_found"):
        return key, " is missing; add it"
    if kind == "extra_forbidden":
        shown = key if isinstance(value, Mapping | list) else _shown(key, value)
        return shown, f" is not a known key{_hint(key, details['loc'], model)}"
    rule = _RULES[kind].format(**context) if kind in _RULES else details["msg"]
    rule = rule.removeprefix("Value error, ").replace("Input should be", "expected")
    if kind == "value_error" and isinstance(value, Mapping):
        return (f"{key}." if key else ""), rule  # a rule of a whole table begins with the name of one of its keys
    return f"{_shown(key, value)}; ", rule


def _shown(key: str, value: Any) -> str:
    """Key and value; the key alone if the value may be a password, or an address that holds one."""
    is_secret = any(word in key for word in ("credentials", "password")) or "://" in str(value)
    return key if is_secret else f"{key}={value!r}"


def _without_union_tags(location: tuple[int | str, ...], raw: Any, *, is_missing: bool) -> tuple[int | str, ...]:
    """Drop the parts of a pydantic location that name the chosen member of a union, not a key."""
    kept: list[int | str] = []
    for position, part in enumerate(location):
        present = (isinstance(raw, Mapping) and part in raw) or (isinstance(raw, list) and isinstance(part, int))
        if present:
            raw = raw[part]
        if present or (is_missing and position == len(location) - 1):
            kept.append(part)
    return tuple(kept)


def _hint(key: str, location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    known = scalar_keys(model)
    if key in known:
        table = key.rpartition(".")[0]
        return f"; it goes with another {table}.{'name' if table == 'strategy' else 'kind'}"
    table, dot, last = key.rpartition(".")
    if near := difflib.get_close_matches(last, _keys_at(model, location[:-1]), n=1):
        return f"; did you mean {table + dot + near[0]!r}?"
    return suggest_key(key, known)


def suggest_key(key: str, known: Iterable[str]) -> str:
    """Ask for the dotted key that was probably meant: one that ends alike, else one spelled alike; empty if none does.

    >>> suggest_key("epsilon", ["seed", "privacy.epsilon"])
    "; did you mean 'privacy.epsilon'?"
    """
    names = list(known)
    ends_alike = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = ends_alike or difflib.get_close_matches(key, names, n=1, cutoff=0.75)
    return f"; did you mean {near[0]!r}?" if near else ""


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys of the table at a pydantic location."""
    tables = [model]
    for part in location:
        fields = [field for table in tables for field in table.model_fields.values() if field.alias == part]
        inner = [nested for field in fields for nested in _nested_models(field.annotation, in_collections=True)]
        tables = inner or tables  # a list's index and a union's tag do not lead into another table
    return [str(field.alias) for table in tables for field in table.model_fields.values()]


def scalar_keys(model: type[BaseModel], prefix: str = "") -> tuple[str, ...]:
    """The dotted keys of all settings that hold one number, text or truth value.

    Args:
        model: The settings type to walk.
        prefix: Put in front of each key.

    Returns:
        Keys in the order of their definition, each once.
    """
    found: dict[str, None] = {}
    for field in model.model_fields.values():
        key = f"{prefix}{field.alias}"
        nested = _nested_models(field.annotation)
        for child in nested:
            found.update(dict.fromkeys(scalar_keys(child, f"{key}.")))
        if not nested and not _is_collection(field.annotation):
            found[key] = None
    return tuple(found)


def _nested_models(annotation: Any, *, in_collections: bool = False) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    if _is_collection(annotation) and not in_collections:
        return []
    return [model for part in get_args(annotation) for model in _nested_models(part, in_collections=in_collections)]


def _is_collection(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) in (dict, list, tuple)
