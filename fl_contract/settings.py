"""The base of every settings type, and the only place where a settings file becomes a typed object.

Unknown, missing and mistyped keys stop the run with the key, the value and the rule. Nothing is guessed.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fl_contract.errors import SettingError


class Settings(BaseModel):
    """Frozen settings with keys written as in TOML: ``num-rounds`` is the field ``num_rounds``."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
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
            lines = [_describe(details, raw, cls) for details in error.errors(include_url=False)]
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


def _describe(details: Any, raw: Mapping[str, Any], model: type[BaseModel]) -> str:
    location = _without_union_tags(details["loc"], raw)
    key = ".".join(str(part) for part in location)
    kind, rule = details["type"], str(details["msg"])
    if kind == "missing":
        return f"{key} is missing; add it"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _known_keys(model), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{key}={details['input']!r} is not a known key{hint}"
    rule = rule.removeprefix("Value error, ").replace("Input should be", "expected")
    prefix = "" if not key else f"{key}={details['input']!r}; "
    return prefix + rule


def _without_union_tags(location: tuple[int | str, ...], raw: Any) -> tuple[int | str, ...]:
    """Drop the parts of a pydantic location that name the chosen member of a union, not a key."""
    kept: list[int | str] = []
    for position, part in enumerate(location):
        is_last = position == len(location) - 1
        present = (isinstance(raw, Mapping) and part in raw) or (isinstance(raw, list) and isinstance(part, int))
        if present:
            raw = raw[part]
        if present or is_last:
            kept.append(part)
    return tuple(kept)


def _known_keys(model: type[BaseModel]) -> list[str]:
    return list(scalar_keys(model, leaf_only=True))


def scalar_keys(model: type[BaseModel], prefix: str = "", *, leaf_only: bool = False) -> tuple[str, ...]:
    """The dotted keys of all settings that hold one number, text or truth value.

    Args:
        model: The settings type to walk.
        prefix: Put in front of each key.
        leaf_only: Only the last part of each key.

    Returns:
        Keys in the order of their definition, each once.
    """
    found: dict[str, None] = {}
    for field in model.model_fields.values():
        key = f"{prefix}{field.alias}"
        nested = _nested_models(field.annotation)
        for child in nested:
            found.update(dict.fromkeys(scalar_keys(child, f"{key}.", leaf_only=leaf_only)))
        if not nested and not _is_collection(field.annotation):
            found[str(field.alias) if leaf_only else key] = None
    return tuple(found)


def _nested_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    if _is_collection(annotation):
        return []
    return [model for argument in getattr(annotation, "__args__", ()) for model in _nested_models(argument)]


def _is_collection(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) in (dict, list, tuple)
