"""A settings file is taken as it is written or refused with the key, the value and the rule; nothing is guessed."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from fl_contract.errors import SettingError
from fl_contract.settings import Settings, read_toml, scalar_keys, suggest_key


class Square(Settings):
    kind: Literal["square"]
    side: float = Field(gt=0)


class Circle(Settings):
    kind: Literal["circle"]
    radius_mm: float = Field(gt=0, le=10)
    tags: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] = ("plain",)


class Drawing(Settings):
    """Stands for any settings of ours."""

    title: str = Field(min_length=1)
    shape: Annotated[Square | Circle, Field(discriminator="kind")]
    corners: Annotated[tuple[Square, ...], Field(strict=False)] = ()
    options: dict[str, int | bool] = Field(default_factory=dict)


def parse(**raw: Any) -> Drawing:
    return Drawing.parse({"title": "t", "shape": {"kind": "square", "side": 1.0}, **raw}, origin="drawing.toml")


def test_keys_are_written_with_hyphens() -> None:
    drawing = parse(shape={"kind": "circle", "radius-mm": 2})

    assert drawing.shape == Circle.parse({"kind": "circle", "radius-mm": 2.0}, origin="")


def test_settings_cannot_be_changed() -> None:
    drawing = parse()

    with pytest.raises(ValidationError, match="frozen"):
        drawing.title = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        drawing.shape.kind = "circle"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ({"title": ""}, "title=''; expected a text of length 1 or more"),
        ({"title": 3}, "title=3; expected a text"),
        ({"titel": "x"}, "titel='x' is not a known key; did you mean 'title'?"),
        ({"zzz": 1}, "zzz=1 is not a known key"),
        ({"password": "tell-nobody"}, "password is not a known key"),
        ({"zzz": "https://ada:tell-nobody@example.org"}, "zzz is not a known key"),
        ({"shap": {"kind": "square"}}, "shap is not a known key; did you mean 'shape'?"),
        ({"shape": 3}, "shape=3; expected a table"),
        ({"shape": {"side": 1.0}}, "shape.kind is missing; add it"),
        ({"shape": {"kind": "oval"}}, "shape.kind='oval'; expected one of 'square', 'circle'"),
        ({"shape": {"kind": 3}}, "shape.kind=3; expected one of 'square', 'circle'"),
        ({"shape": {"kind": "square"}}, "shape.side is missing; add it"),
        ({"shape": {"kind": "square", "side": "1"}}, "shape.side='1'; expected a number"),
        ({"shape": {"kind": "square", "side": True}}, "shape.side=True; expected a number"),
        ({"shape": {"kind": "square", "side": 0}}, "shape.side=0; expected above 0.0"),
        ({"shape": {"kind": "square", "side": float("inf")}}, "shape.side=inf; expected a finite number"),
        (
            {"shape": {"kind": "square", "side": 1.0, "radius-mm": 2.0}},
            "shape.radius-mm=2.0 is not a known key; it goes with another shape.kind",
        ),
        (
            {"shape": {"kind": "circle", "radius_mm": 2.0, "radius-mm": 1.0}},
            "shape.radius_mm=2.0 is not a known key; did you mean 'shape.radius-mm'?",
        ),
        (
            {"shape": {"kind": "circle", "radius-mm": 1.0, "title": "x"}},
            "shape.title='x' is not a known key; did you mean 'title'?",
        ),
        ({"shape": {"kind": "circle", "radius-mm": 11.0}}, "shape.radius-mm=11.0; expected at most 10.0"),
        (
            {"shape": {"kind": "circle", "radius-mm": 1.0, "tags": []}},
            "shape.tags=[]; expected a list of length 1 or more",
        ),
        ({"shape": {"kind": "circle", "radius-mm": 1.0, "tags": "a"}}, "shape.tags='a'; expected a list"),
        (
            {"corners": [{"kind": "square", "side": 1.0}, {"kind": "square", "side": -1.0}]},
            "corners.1.side=-1.0; expected above 0.0",
        ),
        (
            {"corners": [{"kind": "square", "side": 1.0, "syde": 2.0}]},
            "corners.0.syde=2.0 is not a known key; did you mean 'corners.0.side'?",
        ),
        ({"corners": [7]}, "corners.0=7; expected a table"),
        ({"options": {"a": "x"}}, "options.a='x'; expected a whole number or true or false"),
        ({"options": []}, "options=[]; expected a table"),
    ],
)
def test_a_broken_rule_is_one_line_with_file_key_value_and_rule(raw: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse(**raw)

    assert str(caught.value) == f"drawing.toml: {line}"


def test_every_broken_rule_is_listed() -> None:
    with pytest.raises(SettingError) as caught:
        Drawing.parse({"shape": {"kind": "circle", "radius-mm": -1.0}, "option": 1}, origin="d.toml")

    assert sorted(str(caught.value).splitlines()) == [
        "d.toml: option=1 is not a known key; did you mean 'options'?",
        "d.toml: shape.radius-mm=-1.0; expected above 0.0",
        "d.toml: title is missing; add it",
    ]


def test_a_setting_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="title"):
        parse(title="")


def test_scalar_keys_are_those_of_every_kind_without_lists_and_tables() -> None:
    assert scalar_keys(Drawing) == ("title", "shape.kind", "shape.side", "shape.radius-mm")
    assert scalar_keys(Square, "corner.") == ("corner.kind", "corner.side")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("epsilon", "; did you mean 'privacy.epsilon'?"),
        ("training.epsilon", "; did you mean 'privacy.epsilon'?"),
        ("privacy.epsilom", "; did you mean 'privacy.epsilon'?"),
        ("num_rounds", "; did you mean 'num-rounds'?"),
        ("colour", ""),
        ("", ""),
    ],
)
def test_a_hint_names_the_key_that_was_probably_meant(key: str, hint: str) -> None:
    assert suggest_key(key, ["num-rounds", "privacy.epsilon", "privacy.delta"]) == hint


def test_a_file_is_read_as_toml(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('a = 1\n[b]\nc = "ü"\n', encoding="utf-8")

    assert read_toml(path) == {"a": 1, "b": {"c": "ü"}}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, r"cannot be read \(No such file or directory\); check the path and its permissions"),
        (b"a = ", "is not valid TOML"),
        (b"a = 1\na = 2", "is not valid TOML"),
        (b"a = '\xff'", "is not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, rule: str) -> None:
    path = tmp_path / "s.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingError, match=rf"s\.toml: {rule}"):
        read_toml(path)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"cannot be read \(Is a directory\)"):
        read_toml(tmp_path)
