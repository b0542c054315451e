"""The registry of tasks: one a file, each with its loss and its measurement."""

from fl_contract.schema import Schema
from fl_contract.tasks.classification import Classification
from fl_contract.tasks.link_prediction import LinkPrediction
from fl_contract.tasks.multi_label import MultiLabel
from fl_contract.tasks.regression import Regression
from fl_contract.tasks.segmentation import Segmentation
from fl_contract.tasks.survival import Survival
from fl_contract.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "multi-label": MultiLabel,
    "regression": Regression,
    "survival": Survival,
    "segmentation": Segmentation,
    "link-prediction": LinkPrediction,
}


def task_of(schema: Schema) -> Task:
    """The task of a study."""
    return TASKS[schema.task](schema)
