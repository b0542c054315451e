"""The registry of tasks: one a file, each with its loss and its measurement."""

from fl_contract.schema import Schema
from fl_contract.tasks.classification import Classification
from fl_contract.tasks.survival import Survival
from fl_contract.tasks.task import Task

TASKS: dict[str, type[Task]] = {"classification": Classification, "survival": Survival}


def task_of(schema: Schema) -> Task:
    """The task of a study."""
    return TASKS[schema.task](schema)
