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
        scale: ``linear`` or ``log``; both map the range onto [-1, 1].
    """

    name: str = Field(min_length=1)
    unit: str = ""
    minimum: float
    maximum: float
    scale: Literal["linear", "log"] = "linear"

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
        label: Name of the label.
        classes: Values of the label. With two classes the second is the positive one.
        features: Columns, in the model's order.
    """

    kind: Literal["table"]
    label: str = Field(min_length=1)
    classes: Classes
    features: Annotated[tuple[Feature, ...], Field(min_length=1, strict=False)]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one patient's tensor: [features]."""
        return (len(self.features),)


class ImageSchema(Settings):
    """Images of one size, one a patient.

    Attributes:
        label: Name of the label.
        classes: Values of the label. With two classes the second is the positive one.
        height: In pixels.
        width: In pixels.
        channels: 1 (grey) or 3 (colour).
        minimum: Value of black, mapped to -1.
        maximum: Value of white, mapped to 1.
    """

    kind: Literal["image"]
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
