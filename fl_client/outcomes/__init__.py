"""The registry of what tasks ask of a hospital's outcomes: one a file."""

from fl_client.outcomes.classification import ClassificationRules
from fl_client.outcomes.link_prediction import LinkPredictionRules
from fl_client.outcomes.multi_label import MultiLabelRules
from fl_client.outcomes.outcome import OutcomeRules
from fl_client.outcomes.regression import RegressionRules
from fl_client.outcomes.segmentation import SegmentationRules
from fl_client.outcomes.survival import SurvivalRules
from fl_contract.schema import Schema

RULES: dict[str, type[OutcomeRules]] = {
    "classification": ClassificationRules,
    "multi-label": MultiLabelRules,
    "regression": RegressionRules,
    "survival": SurvivalRules,
    "segmentation": SegmentationRules,
    "link-prediction": LinkPredictionRules,
}


def outcome_rules(schema: Schema) -> OutcomeRules:
    """What the study's task asks of outcomes."""
    return RULES[schema.task](schema)
