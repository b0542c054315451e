"""constraints.txt holds one exact version of everything that we install, and no address to fetch it from."""

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "constraints.txt").read_text()
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _unmet(requirement: Requirement) -> str | None:
    pin = PINS.get(canonicalize_name(requirement.name))
    return None if pin and requirement.specifier.contains(pin) else f"{requirement}, pinned {pin}"


def _needed(distribution: str, extras: set[str]) -> list[Requirement]:
    """What an installed distribution needs on this machine."""
    wanted = [Requirement(text) for text in requires(distribution) or []]
    return [
        requirement
        for requirement in wanted
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in (extras or {""}))
    ]


def test_every_line_is_one_exact_version() -> None:
    assert [line for line in LINES if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert len(PINS) == len(LINES)


def test_no_pin_is_a_release_candidate() -> None:
    assert [line for line in LINES if re.search(r"\d(a|b|rc|\.dev)\d", line)] == []


def test_there_is_no_address() -> None:
    assert "://" not in TEXT


def test_every_declared_dependency_is_pinned_within_its_range() -> None:
    project = PYPROJECT["project"]
    declared = project["dependencies"] + PYPROJECT["build-system"]["requires"] + ["uv"]
    for extra in project["optional-dependencies"].values():
        declared = declared + extra

    unmet = [_unmet(Requirement(text)) for text in declared]

    assert [text for text in unmet if text] == []


def test_every_dependency_of_a_dependency_is_pinned_within_its_range() -> None:
    todo = [("consilium", {"", *PYPROJECT["project"]["optional-dependencies"]})]
    done = []
    unmet = []

    while todo:
        distribution, extras = todo.pop()
        done.append((distribution, extras))
        for requirement in _needed(distribution, extras):
            unmet.append(_unmet(requirement))
            needed = (canonicalize_name(requirement.name), {"", *requirement.extras})
            if needed not in done and needed not in todo:
                todo.append(needed)

    assert [text for text in unmet if text] == []
    assert len(done) > len(PYPROJECT["project"]["dependencies"])
