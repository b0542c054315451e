"""The only place that knows for each task which columns of a table or an index of images say what is predicted."""

from dataclasses import dataclass
from typing import TypeVar

from fl_client.column_settings import AS_IT_IS, TableColumnSettings
from fl_client.refusals import invalid_data
from fl_client.source_settings import ImageIndexSettings
from fl_contract.schema import Outcome

_Columns = TypeVar("_Columns", bound=TableColumnSettings)

LABELLED = frozenset({"classification", "regression", "survival", "link-prediction"})
"""Tasks for which a table has one column of the outcome, ``source.label``."""


def outcome_numbers(schema: Outcome) -> tuple[str, ...]:
    """Outcomes that are numbers, by the study's names of them: the findings, or the target."""
    return {"multi-label": schema.classes, "regression": (schema.label,)}.get(schema.task, ())


def place_outcome(settings: _Columns, schema: Outcome) -> _Columns:
    """The settings with every outcome that is a number where features are.

    For regression the column of the target becomes that of ``source.columns``, which has its factor and offset.

    Raises:
        RefusalError: INVALID_DATA: ``source.label`` or ``source.time`` is not what the task needs, or the target's
            column is named twice.
    """
    if (settings.label is None) == (schema.task in LABELLED):
        rule = "expected the column of the outcome" if schema.task in LABELLED else "expected none, each has a column"
        raise invalid_data(f"source.label={settings.label!r}; {rule}, for a study of task {schema.task!r}")
    if settings.time is not None and schema.task != "survival":
        raise invalid_data(f"source.time={settings.time!r}; expected none for a study of task {schema.task!r}")
    if schema.task != "regression":
        return settings
    target = settings.columns.get(schema.label, AS_IT_IS)
    if target.column not in (None, settings.label):
        raise invalid_data(
            f"source.label={settings.label!r} and source.columns.{schema.label!r}.column={target.column!r}; expected "
            "one of them to name the target's column"
        )
    moved = target.model_copy(update={"column": settings.label})
    return settings.model_copy(update={"label": None, "columns": settings.columns | {schema.label: moved}})


@dataclass(frozen=True, kw_only=True)
class IndexedOutcome:
    """Columns of an index of images that say what a study predicts.

    Attributes:
        label: Of the class or the event; None where the others say all.
        numbers: Of the findings in the study's order, of the target, or of the time of follow-up.
        mask: Of the mask's path.
    """

    label: str | None = None
    numbers: tuple[str, ...] = ()
    mask: str | None = None


def indexed_outcome(settings: ImageIndexSettings, schema: Outcome) -> IndexedOutcome:
    """What an index says of the study's outcome.

    Raises:
        RefusalError: INVALID_DATA: ``index.findings`` names what is no finding of the study.
    """
    match schema.task:
        case "multi-label":
            if unknown := sorted(settings.findings.keys() - set(schema.classes)):
                raise invalid_data(f"source.index.findings={unknown}; expected findings of {list(schema.classes)}")
            return IndexedOutcome(numbers=tuple(settings.findings.get(name, name) for name in schema.classes))
        case "regression":
            return IndexedOutcome(numbers=(settings.label,))
        case "segmentation":
            return IndexedOutcome(mask=settings.mask)
        case "survival":
            return IndexedOutcome(label=settings.label, numbers=() if settings.time is None else (settings.time,))
        case _:
            return IndexedOutcome(label=settings.label)
