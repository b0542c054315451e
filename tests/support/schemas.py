"""The plainest schema whose records have a given shape."""

from typing import Any

from pydantic import TypeAdapter

from fl_contract.schema import Schema

_RANGE = {"minimum": 0.0, "maximum": 1.0}


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
