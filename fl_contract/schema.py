"""What one patient's record looks like in a study: the only place for the kinds of data, their shapes and classes.

Ranges are public knowledge written by the study, never computed from patients: scaling by them costs no privacy.
"""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fl_contract.features import CategoryFeature, Column, TableFeature, check_ordered
from fl_contract.metrics.decisions import HALF
from fl_contract.settings import Settings

Task = Literal["classification", "multi-label", "regression", "survival", "segmentation", "link-prediction"]

FEWEST_CLASSES = {"classification": 2, "multi-label": 1, "segmentation": 2, "link-prediction": 2}
"""Of the tasks whose label has classes."""


class Target(Settings):
    """The number that a regression predicts.

    Attributes:
        unit: Of the number; empty for a ratio.
        minimum: Smallest plausible value, which the model sees as -1; smaller ones are taken as this.
        maximum: Largest plausible value, above the minimum, which the model sees as 1; larger ones are taken as this.
    """

    unit: str = ""
    minimum: float
    maximum: float

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        check_ordered(self.minimum, self.maximum)
        return self


class Outcome(Settings):
    """What a study predicts for each record; the base of all schemas.

    Attributes:
        TASKS: Tasks that this kind of data can have.
        task: ``classification`` into one of the classes; ``multi-label``: each class is there or not; ``regression`` of
            one number; ``survival``: a time of follow-up, and whether the event came then; ``segmentation``: a class
            for each pixel, the first being the background; ``link-prediction``: which entity completes a triple.
        label: Name of the label; for survival of the event, which is 1 where it came and 0 where it had not come yet.
        classes: Values of the label. With two classes the second is the positive one. For multi-label the findings;
            none for regression and survival.
        time_unit: Of the times of follow-up, such as ``days``; for survival.
        target: The number and its range; for regression.
        threshold: Probability above which a record has the second of two classes, for sensitivity, specificity and
            accuracy; for classification into two.
    """

    TASKS: ClassVar[frozenset[str]]

    task: Task = "classification"
    label: str = Field(min_length=1)
    classes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    time_unit: str = ""
    target: Target | None = None
    threshold: float = Field(default=HALF, gt=0, lt=1)

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record's tensor, as a hospital prepares it."""

    @property
    def encoded_shape(self) -> tuple[int, ...]:
        """Shape of what the network sees of one record: with a number for each category, where there are some."""
        return self.input_shape

    @property
    def columns(self) -> tuple[Column, ...]:
        """The features or channels, and what statistics of all hospitals do to each."""
        return ()

    @property
    def needs_statistics(self) -> bool:
        """Whether hospitals send statistics of their training records before round 1."""
        return any(column.needs_statistics for column in self.columns)

    @property
    def needs_own_statistics(self) -> bool:
        """Whether a hospital scales by its own training records."""
        return False

    @model_validator(mode="after")
    def _check_outcome(self) -> Self:
        if self.task not in self.TASKS:
            raise ValueError(f"task={self.task!r}; expected one of {sorted(self.TASKS)} for this kind of data")
        fewest = FEWEST_CLASSES.get(self.task)
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes={list(self.classes)}; expected each once")
        if fewest is None and self.classes:
            raise ValueError(f"classes={list(self.classes)}; expected none for task = {self.task!r}")
        if fewest is not None and len(self.classes) < fewest:
            raise ValueError(f"classes={list(self.classes)}; expected {fewest} or more for task = {self.task!r}")
        if (self.task == "survival") != bool(self.time_unit):
            raise ValueError(f"time-unit={self.time_unit!r}; expected one for task = 'survival', and for it only")
        if (self.task == "regression") != (self.target is not None):
            raise ValueError("target; expected a table of minimum and maximum for task = 'regression', and for it only")
        if self.threshold != HALF and (self.task != "classification" or len(self.classes) != 2):
            raise ValueError(f"threshold={self.threshold}; expected one for classification into two classes only")
        return self


class TableSchema(Outcome):
    """A table with one row a record.

    Attributes:
        features: Columns, in the model's order.
    """

    TASKS = frozenset({"classification", "multi-label", "regression", "survival"})

    kind: Literal["table"]
    features: Annotated[tuple[TableFeature, ...], Field(min_length=1, strict=False)]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record's tensor: [features]; of a category its position among the categories."""
        return (len(self.features),)

    @property
    def encoded_shape(self) -> tuple[int, ...]:
        """Shape of what the network sees of one record: [numbers + categories of all category features]."""
        return (sum(column.num_categories or 1 for column in self.columns),)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The features."""
        return tuple(feature.column for feature in self.features)

    @property
    def needs_own_statistics(self) -> bool:
        """Whether a hospital scales a feature by its own training records."""
        return any(feature.needs_own_statistics for feature in self.features)


class ImageSchema(Outcome):
    """Images or volumes of one size.

    Attributes:
        depth: Slices of a volume, from feet to head; none for a plane image.
        height: In pixels.
        width: In pixels.
        channels: 1 (grey) or 3 (colour); volumes are grey.
        minimum: Value of black, mapped to -1.
        maximum: Value of white, mapped to 1.
        scale: ``linear`` is that; ``standard`` then subtracts the mean and divides by the deviation of each channel's
            pixels in all hospitals' training records together.
    """

    TASKS = frozenset({"classification", "multi-label", "regression", "survival", "segmentation"})

    kind: Literal["image"]
    depth: int | None = Field(default=None, ge=4)
    height: int = Field(ge=4)
    width: int = Field(ge=4)
    channels: Literal[1, 3] = 1
    minimum: float = 0.0
    maximum: float
    scale: Literal["linear", "standard"] = "linear"

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        check_ordered(self.minimum, self.maximum)
        if self.depth is not None and self.channels != 1:
            raise ValueError(f"depth={self.depth} and channels={self.channels}; expected volumes of one channel")
        return self

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """[height, width] of an image, [depth, height, width] of a volume."""
        plane = (self.height, self.width)
        return plane if self.depth is None else (self.depth, *plane)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record's tensor: [channels, height, width], with the depth after the channels for a volume."""
        return (self.channels, *self.pixel_shape)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The channels."""
        scale: Literal["none", "standard"] = "standard" if self.scale == "standard" else "none"
        return tuple(Column(name=f"channel {number}", scale=scale) for number in range(1, self.channels + 1))


class Channel(Settings):
    """One measured quantity of a time series.

    Attributes:
        name: As the study calls it.
        unit: Of the value; empty for a ratio.
        minimum: Smallest plausible value, mapped to -1; smaller ones are taken as this.
        maximum: Largest plausible value, mapped to 1; larger ones are taken as this.
    """

    name: str = Field(min_length=1)
    unit: str = ""
    minimum: float
    maximum: float

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        check_ordered(self.minimum, self.maximum)
        return self


class SeriesSchema(Outcome):
    """Windows of time series: several channels at equal steps of time.

    Attributes:
        channels: Measured quantities, in the model's order.
        length: Steps of a window.
        step: Time from one step to the next, in ``step-unit``.
        step_unit: Such as ``hours``.
        missing: ``refuse`` a window with a step in which a channel was not measured, or take its ``last`` value before
            in that window, and the middle of the range before the first.
        scale: ``linear`` maps each channel's range onto [-1, 1]; ``standard`` then subtracts the mean and divides by
            the deviation of the channel's steps, filled-in ones too, in all hospitals' training records together.
    """

    TASKS = frozenset({"classification", "multi-label", "regression", "survival"})

    kind: Literal["series"]
    channels: Annotated[tuple[Channel, ...], Field(min_length=1, strict=False)]
    length: int = Field(ge=2, le=100_000)
    step: float = Field(default=1.0, gt=0)
    step_unit: str = Field(min_length=1)
    missing: Literal["refuse", "last"] = "refuse"
    scale: Literal["linear", "standard"] = "linear"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record's tensor: [channels, steps]."""
        return (len(self.channels), self.length)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The channels."""
        scale: Literal["none", "standard"] = "standard" if self.scale == "standard" else "none"
        return tuple(Column(name=channel.name, scale=scale) for channel in self.channels)


class TripleSchema(Outcome):
    """Facts of a knowledge graph, (head, relation, tail), such as (aspirin, treats, pain).

    The model is asked which entity is the tail. ``label`` names the tail's column, ``classes`` are the entities.

    Attributes:
        head: Column of the head.
        relation: Column of the relation.
        relations: Values of the relation.
    """

    TASKS = frozenset({"link-prediction"})

    kind: Literal["triples"]
    head: str = Field(default="head", min_length=1)
    relation: str = Field(default="relation", min_length=1)
    relations: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]

    @property
    def features(self) -> tuple[CategoryFeature, ...]:
        """What a table of triples holds beside the tail; a record's numbers are their positions."""
        names = ((self.head, self.classes), (self.relation, self.relations))
        return tuple(
            CategoryFeature.model_construct(name=name, categories=known, missing="refuse") for name, known in names
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record's tensor: [head, relation], as positions among entities and relations."""
        return (2,)


Schema = Annotated[TableSchema | ImageSchema | SeriesSchema | TripleSchema, Field(discriminator="kind")]
