"""The plainest schema whose records have a given shape."""

from typing import Any

from pydantic import TypeAdapter

from fl_contract.features import CategoryFeature, NumberFeature
from fl_contract.schema import Schema
from fl_contract.tasks import task_of

_RANGE = {"minimum": 0.0, "maximum": 1.0}


def numbers(*names: str) -> tuple[NumberFeature, ...]:
    """Features of numbers from 0 to 1."""
    return tuple(NumberFeature.parse({"name": name, **_RANGE}, origin="test") for name in names)


def category(name: str, *categories: str, missing: str = "refuse") -> CategoryFeature:
    """A feature of categories."""
    raw = {"name": name, "categories": list(categories), "missing": missing}
    return CategoryFeature.parse(raw, origin="test")


def schema_of(shape: tuple[int, ...], **outcome: Any) -> Schema:
    """A table for [features], a series for [channels, steps], an image or volume for three or four axes.

    Args:
        shape: Of one record's tensor.
        outcome: Keys of `fl_contract.schema.Outcome`; three classes if there are none.
    """
    keys: dict[str, Any] = {"label": "label", "classes": ["a", "b", "c"]} if not outcome else {"label": "label"}
    keys |= {key.replace("_", "-"): value for key, value in outcome.items()}
    named = [{"name": f"x{number}", **_RANGE} for number in range(shape[0])]
    if len(shape) == 1:
        keys |= {"kind": "table", "features": named}
    elif len(shape) == 2:
        keys |= {"kind": "series", "channels": named, "length": shape[1], "step-unit": "hours"}
    else:
        channels, *depth, height, width = shape
        keys |= {"kind": "image", "channels": channels, "height": height, "width": width, **_RANGE}
        keys |= {"depth": depth[0]} if depth else {}
    schema: Schema = TypeAdapter(Schema).validate_python(keys)
    return schema


def modalities(**sizes: int) -> Schema:
    """A table of so many features of each modality."""
    features = [
        {"name": f"{name}{number}", "modality": name, **_RANGE}
        for name, size in sizes.items()
        for number in range(size)
    ]
    keys = {"kind": "table", "label": "label", "classes": ["a", "b", "c"], "features": features}
    schema: Schema = TypeAdapter(Schema).validate_python(keys)
    return schema


def triples(*, entities: int, relations: int) -> Schema:
    """A knowledge graph."""
    keys = {
        "kind": "triples",
        "task": "link-prediction",
        "label": "tail",
        "classes": [f"entity {number}" for number in range(entities)],
        "relations": [f"relation {number}" for number in range(relations)],
    }
    schema: Schema = TypeAdapter(Schema).validate_python(keys)
    return schema


TWO_CLASSES = task_of(schema_of((1,), classes=["no", "yes"]))
THREE_CLASSES = task_of(schema_of((1,)))
SURVIVAL = task_of(schema_of((1,), task="survival", time_unit="days"))
