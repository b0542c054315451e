"""The columns of a table: the only place for a feature's range or categories, and for how it is scaled and filled in.

Ranges are public knowledge written by the study, never computed from patients: scaling by them costs no privacy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from fl_contract.settings import Settings

NUM_BINS = 1000
"""Of the histogram over a feature's range; a median is off by half a bin at most, a thousandth of the range."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """How statistics of all hospitals' training records change one column of the model's input.

    Attributes:
        name: Of the feature or channel.
        scale: ``standard``: minus the mean, over the deviation; ``robust``: minus the median, over the distance between
            the quartiles; ``none``.
        fill: What is taken for a missing value; ``none`` where no value may be missing.
        num_categories: Of a category; 0 for a number.
    """

    name: str
    scale: Literal["none", "standard", "robust"] = "none"
    fill: Literal["none", "mean", "median", "most-frequent"] = "none"
    num_categories: int = 0

    @property
    def needs_sums(self) -> bool:
        """Whether its mean or deviation is used."""
        return self.scale == "standard" or self.fill == "mean"

    @property
    def num_bins(self) -> int:
        """Bins of the histogram that is needed; a category's own; 0 if none is."""
        if self.fill == "most-frequent":
            return self.num_categories
        return NUM_BINS if self.scale == "robust" or self.fill == "median" else 0

    @property
    def needs_statistics(self) -> bool:
        """Whether any statistic is used."""
        return self.needs_sums or self.num_bins > 0


class Feature(Settings):
    """One column of a table; the base of numbers and categories.

    Attributes:
        name: As the study calls it.
        modality: What kind of measurement it is, such as ``genomic``; features of one modality share an encoder where
            the model is ``multimodal``.
    """

    name: str = Field(min_length=1)
    modality: str = Field(default="clinical", min_length=1)


class NumberFeature(Feature):
    """A column of numbers.

    Attributes:
        unit: Of the value; empty for a ratio.
        minimum: Smallest plausible value; smaller ones are taken as this. Above 0 for a log scale.
        maximum: Largest plausible value, above the minimum; larger ones are taken as this.
        scale: ``linear`` or ``log``; both map the range onto [-1, 1]. The others map it linearly first: ``standard``
            then subtracts the mean and divides by the deviation of all hospitals' training records together, ``robust``
            the median and the distance between the quartiles; ``site-standard`` takes mean and deviation of each
            hospital's own training records, which never leave it.
        missing: ``refuse`` a record without a value; or take for it the ``mean`` or ``median`` of all hospitals'
            training records; or, with ``site-standard``, the hospital's own mean (``site-mean``).
    """

    unit: str = ""
    minimum: float
    maximum: float
    scale: Literal["linear", "log", "standard", "robust", "site-standard"] = "linear"
    missing: Literal["refuse", "mean", "median", "site-mean"] = "refuse"

    @property
    def column(self) -> Column:
        """What statistics of all hospitals do to it."""
        return Column(
            name=self.name,
            scale=self.scale if self.scale in ("standard", "robust") else "none",
            fill=self.missing if self.missing in ("mean", "median") else "none",
        )

    @property
    def needs_own_statistics(self) -> bool:
        """Whether a hospital scales it by its own training records."""
        return self.scale == "site-standard"

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        check_ordered(self.minimum, self.maximum)
        if self.scale == "log" and self.minimum <= 0:
            raise ValueError(f"minimum={self.minimum}; expected above 0 for scale = 'log'")
        return self

    @model_validator(mode="after")
    def _check_own_mean(self) -> Self:
        if self.needs_own_statistics and self.missing not in ("refuse", "site-mean"):
            raise ValueError(
                f"missing={self.missing!r}; expected 'refuse' or 'site-mean' for scale = 'site-standard', which knows "
                "no other hospital's values"
            )
        if self.missing == "site-mean" and not self.needs_own_statistics:
            raise ValueError(f"missing='site-mean' and scale={self.scale!r}; expected it for scale = 'site-standard'")
        return self


class CategoryFeature(Feature):
    """A column of categories; the model sees one number a category, 1 for the record's own and 0 for the others.

    Attributes:
        categories: Values of the feature, in the order of the model's inputs.
        missing: ``refuse`` a record without a value, or take the ``most-frequent`` category of all hospitals' training
            records for it.
    """

    categories: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2, strict=False)]
    missing: Literal["refuse", "most-frequent"] = "refuse"

    @property
    def column(self) -> Column:
        """What statistics of all hospitals do to it."""
        fill: Literal["none", "most-frequent"] = "none" if self.missing == "refuse" else "most-frequent"
        return Column(name=self.name, fill=fill, num_categories=len(self.categories))

    @property
    def needs_own_statistics(self) -> bool:
        """Never: a category is not scaled."""
        return False

    @model_validator(mode="before")
    @classmethod
    def _check_no_range(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and (odd := [key for key in ("unit", "minimum", "maximum", "scale") if key in raw]):
            raise ValueError(f"categories and {' and '.join(odd)}; expected categories, or a range with unit and scale")
        return raw

    @model_validator(mode="after")
    def _check_categories(self) -> Self:
        if len({category.strip() for category in self.categories}) < len(self.categories):
            raise ValueError(f"categories={list(self.categories)}; expected each once")
        return self


def _kind(raw: Any) -> str:
    is_category = "categories" in raw if isinstance(raw, Mapping) else isinstance(raw, CategoryFeature)
    return "category" if is_category else "number"


TableFeature = Annotated[
    Annotated[NumberFeature, Tag("number")] | Annotated[CategoryFeature, Tag("category")], Discriminator(_kind)
]
"""Has either a range or categories."""


def check_ordered(minimum: float, maximum: float) -> None:
    """Refuse a range that is none.

    Raises:
        ValueError: pydantic puts it in its own words.
    """
    if minimum >= maximum:
        raise ValueError(f"minimum={minimum} and maximum={maximum}; expected minimum below maximum")
