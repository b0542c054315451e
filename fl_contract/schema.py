"""What one patient's record looks like in a study: the only place for feature names, units, ranges and classes.

Ranges are public knowledge written by the study, never computed from patients: scaling by them costs no privacy.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fl_contract.settings import Settings

Classes = Annotated[tuple[str, ...], Field(min_length=2, strict=False)]


class Feature(Settings):
    """One column of a table.

    Attributes:
        name: As the study calls it.
        unit: Of the value; empty for a ratio.
        minimum: Smallest plausible value; smaller ones are taken as this. Above 0 for a log scale.
        maximum: Largest plausible value, above the minimum; larger ones are taken as this.
        scale: ``linear`` or ``log``; both map the range onto [-1, 1]. ``standard`` maps it linearly and then subtracts
            the mean and divides by the deviation of all hospitals' training records together.
        missing: ``refuse`` a record without a value, or take the ``mean`` of all hospitals' training records for it.
    """

    name: str = Field(min_length=1)
    unit: str = ""
    minimum: float
    maximum: float
    scale: Literal["linear", "log", "standard"] = "linear"
    missing: Literal["refuse", "mean"] = "refuse"

    @property
    def needs_statistics(self) -> bool:
        """Whether it is standardised or filled in by statistics of all hospitals."""
        return self.scale == "standard" or self.missing == "mean"

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum={self.minimum} and maximum={self.maximum}; expected minimum below maximum")
        if self.scale == "log" and self.minimum <= 0:
            raise ValueError(f"minimum={self.minimum}; expected above 0 for scale = 'log'")
        return self


class TableSchema(Settings):
    """A table with one row a patient.

    Attributes:
        task: ``classification``, or ``survival``: a time of follow-up, and whether the event came then.
        label: Name of the label; for survival of the event, which is 1 where it came and 0 where it had not come yet.
        classes: Values of the label. With two classes the second is the positive one. None for survival.
        time_unit: Of the times of follow-up, such as ``days``; for survival.
        features: Columns, in the model's order.
    """

    kind: Literal["table"]
    task: Literal["classification", "survival"] = "classification"
    label: str = Field(min_length=1)
    classes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    time_unit: str = ""
    features: Annotated[tuple[Feature, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _check_outcome(self) -> Self:
        is_survival = self.task == "survival"
        if (is_survival and self.classes) or (not is_survival and len(self.classes) < 2):
            raise ValueError(
                f"classes={list(self.classes)}; expected two or more for classification, none for survival"
            )
        if is_survival != bool(self.time_unit):
            raise ValueError(f"time-unit={self.time_unit!r}; expected one for task = 'survival', and for it only")
        return self

    @property
    def needs_statistics(self) -> bool:
        """Whether a feature is standardised or filled in by statistics of all hospitals."""
        return any(feature.needs_statistics for feature in self.features)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one patient's tensor: [features]."""
        return (len(self.features),)


class ImageSchema(Settings):
    """Images of one size, one a patient.

    Attributes:
        task: Only ``classification``.
        label: Name of the label.
        classes: Values of the label. With two classes the second is the positive one.
        height: In pixels.
        width: In pixels.
        channels: 1 (grey) or 3 (colour).
        minimum: Value of black, mapped to -1.
        maximum: Value of white, mapped to 1.
    """

    kind: Literal["image"]
    task: Literal["classification"] = "classification"
    label: str = Field(min_length=1)
    classes: Classes
    height: int = Field(ge=4)
    width: int = Field(ge=4)
    channels: Literal[1, 3] = 1
    minimum: float = 0.0
    maximum: float

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum={self.minimum} and maximum={self.maximum}; expected minimum below maximum")
        return self

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one patient's tensor: [channels, height, width]."""
        return (self.channels, self.height, self.width)


Schema = Annotated[TableSchema | ImageSchema, Field(discriminator="kind")]
