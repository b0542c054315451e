"""The only place for what a report says of each kind of measurement: its figures in words, and what was released."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.link_prediction import LinkEvaluation
from fl_contract.metrics.multi_label import MultiLabelEvaluation
from fl_contract.metrics.regression import RegressionEvaluation
from fl_contract.metrics.segmentation import SegmentationEvaluation
from fl_contract.metrics.survival import SurvivalEvaluation
from fl_server.summary import RunFolder


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A second figure, which stands in grey below the one that models are compared by.

    Attributes:
        key: Of `fl_contract.metrics.MEASURES`.
        meaning: What it is.
        sentence: Says ``{joint}``, that of the jointly trained model, and ``{alone}``, of one trained alone.
        is_share: Whether it is written in percent; else in the target's unit.
    """

    key: str
    meaning: str
    sentence: str
    is_share: bool = True

    def write(self, value: float, unit: str) -> str:
        """The figure with its unit."""
        return f"{value:.1%}" if self.is_share else f"{value:.4g} {unit}".rstrip()


@dataclass(frozen=True, kw_only=True)
class OutcomeWords:
    """What a report says of one kind of measurement.

    Attributes:
        figure: The first figure with its article.
        meaning: What it is and how it is read; it follows "... on held-out patients: ".
        over_several: What is added to the meaning where it is a mean over several.
        why_undefined: What held-out patients are like that have none of it: "the held-out patients there ...".
        released: What a hospital says of its held-out patients besides their number and the sum of their losses.
        records: What is measured on.
        few: Which of them must not be few, if not all.
        loss_unit: Of the loss; empty if it has none.
        beside: The second figure.
    """

    figure: str
    meaning: str
    over_several: str = ""
    why_undefined: str = ""
    released: str
    records: str = "patients"
    few: str = ""
    loss_unit: str = "nats"
    beside: Beside | None = field(default=None)


_AUROC = (
    "the chance that the model ranks a random patient with the label above one without it. 0.5 is a coin, 1 is perfect"
)

WORDS: Mapping[str, OutcomeWords] = {
    Evaluation.KIND: OutcomeWords(
        figure="an AUROC",
        meaning=_AUROC,
        over_several="; here the mean over the classes, each against the rest",
        why_undefined="all carry the same label",
        released="how many were classified correctly, and a histogram of their scores by class, from which AUROC, ROC, "
        "calibration and the balance of classes follow",
        few=" with, or without, a label",
        beside=Beside(
            key="accuracy",
            meaning="the share of patients whose class was predicted",
            sentence="The class is predicted of {joint} of them, by a model trained alone of {alone}.",
        ),
    ),
    MultiLabelEvaluation.KIND: OutcomeWords(
        figure="an AUROC",
        meaning=_AUROC.replace("label", "finding"),
        over_several="; here the mean over the findings",
        why_undefined="all have the same findings",
        released="how many pairs of a patient and a finding were predicted rightly, and a histogram of their scores by "
        "finding, from which AUROC, ROC, calibration and the prevalence of each finding follow",
        few=" with, or without, a finding",
        beside=Beside(
            key="accuracy",
            meaning="the share of pairs of a patient and a finding that were predicted rightly",
            sentence="Whether findings are there or not is predicted rightly in {joint} of pairs of a patient and a "
            "finding, by a model trained alone in {alone}.",
        ),
    ),
    RegressionEvaluation.KIND: OutcomeWords(
        figure="an R²",
        meaning="the share of the true values' variance that the model predicts. 1 is perfect, 0 is no better than "
        "their mean, less than 0 is worse than it",
        why_undefined="all have the same true value",
        released="the sums of their errors' sizes and squares, and of their true values and these squares, from which "
        "the mean and the spread of the true values follow",
        loss_unit="",
        beside=Beside(
            key="mae",
            meaning="the mean absolute error",
            sentence="Its mean absolute error is {joint}, that of a model trained alone {alone}.",
            is_share=False,
        ),
    ),
    SurvivalEvaluation.KIND: OutcomeWords(
        figure="a C-index",
        meaning="of two patients of one hospital whose order of events is known, the chance that the model gives the "
        "earlier one the higher risk. 0.5 is a coin, 1 is perfect",
        why_undefined="hold no pair whose order of events is known",
        released="how many pairs of them have a known order of events, and how many of these are ranked rightly",
    ),
    SegmentationEvaluation.KIND: OutcomeWords(
        figure="a Dice",
        meaning="twice the pixels that are rightly found over those that are found and those that are true together, "
        "over all images' pixels, the mean over the classes but the background. 1 is perfect, 0 finds nothing",
        why_undefined="hold nothing but background, and none was found",
        released="for each class how many of their pixels are of it, were predicted to be, and both",
        loss_unit="",
        beside=Beside(
            key="pixel_accuracy",
            meaning="the share of pixels whose class was predicted",
            sentence="The class is predicted of {joint} of their pixels, by a model trained alone of {alone}.",
        ),
    ),
    LinkEvaluation.KIND: OutcomeWords(
        figure="an MRR",
        meaning="the mean of 1 over the rank that the model gives the true tail among all entities. 1 is perfect. "
        "Another tail that is as true counts as an error",
        released="the sum of 1 over the ranks of their true tails, and how many of these are at rank 1, and up to 10",
        records="facts",
        beside=Beside(
            key="hits_at_10",
            meaning="the share of facts whose true tail is at rank 10 or better",
            sentence="The true tail is among the first ten of {joint} of them, by a model trained alone of {alone}.",
        ),
    ),
}


def words_of(folder: RunFolder) -> OutcomeWords:
    """The words for what the run's hospitals measured; those of classes if they measured nothing."""
    measured = next(iter((*folder.together.values(), *folder.own.values())), None)
    return WORDS[Evaluation.KIND if measured is None else measured.KIND]


def target_unit(folder: RunFolder) -> str:
    """Unit of the number that a regression predicts; empty for another study, or if it has none."""
    schema = folder.main.run.settings.get("schema") or {}
    return str((schema.get("target") or {}).get("unit") or "")
