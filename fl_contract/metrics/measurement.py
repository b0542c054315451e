"""What every measurement is: sums over patients that hospitals send and the coordinator adds.

A hospital sends neither patients nor scores but counts and sums over its held-out patients. Merging is addition, so a
pooled figure does not depend on how patients are spread over hospitals or on who answered first.
"""

import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from fl_contract.metrics.intervals import Interval
from fl_contract.metrics.noised import NoisedCounts

Numbers = dict[str, int | float | list[int] | list[float]]
"""A measurement as a record or a Flower message holds it."""

MAX_EXAMPLES = 2**40
"""Of one hospital; more than any has, and few enough that no sum over hospitals overflows."""

MAX_LOSS = 1e4
"""Of one hospital's patients on average, in nats; no model of use is as wrong as that."""


@dataclass(frozen=True, kw_only=True)
class Measurement(ABC):
    """One model measured on one hospital's held-out patients, or on several hospitals' together.

    Attributes:
        KIND: Its name in records.
        num_examples: Patients measured; at least 1. An estimate where noise was added.
        loss_sum: Sum of the patients' losses, in nats.
        noised: What it was read off, where noise was added.
    """

    KIND: ClassVar[str]

    num_examples: int
    loss_sum: float
    noised: NoisedCounts | None = None

    @property
    def loss(self) -> float:
        """Mean loss over patients, in nats."""
        return self.loss_sum / self.num_examples

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """What is reported of it, by keys of `fl_contract.metrics.MEASURES`; NaN where it is not defined.

        The first is the one that models are compared by; larger is better.
        """

    @abstractmethod
    def intervals(self) -> dict[str, Interval]:
        """95 % interval of each figure: where it would lie if other patients of the same kind had been held out.

        Two NaN where the patients say nothing about it, as where all of them are ranked rightly.
        """

    @abstractmethod
    def to_numbers(self) -> Numbers:
        """All of it, as plain numbers; not for one that has noise."""

    @classmethod
    @abstractmethod
    def from_numbers(cls, numbers: Mapping[str, Any]) -> Self:
        """Take back what `to_numbers` gave; every number is checked, since it may come from a network.

        Raises:
            ValueError: A number is absent, of another type, out of range, or contradicts another.
        """

    @classmethod
    @abstractmethod
    def merge(cls, parts: Iterable[Any]) -> Self:
        """The measurement of all patients; does not depend on the order."""

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return {"kind": self.KIND, **self.to_numbers()}

    def check_sums(self) -> None:
        """Refuse sums that no hospital can have.

        Raises:
            ValueError: Names the number and its range.
        """
        if not 1 <= self.num_examples <= MAX_EXAMPLES:
            raise ValueError(f"num-examples={self.num_examples}; expected 1 to {MAX_EXAMPLES}")
        if not 0 <= self.loss_sum <= MAX_LOSS * self.num_examples:
            raise ValueError(f"loss-sum is out of range; expected 0 to {MAX_LOSS:g} nats a patient")


def add_exactly(values: Iterable[float]) -> float:
    """The correctly rounded sum, whatever the order."""
    return math.fsum(values)


def read_int(numbers: Mapping[str, Any], key: str) -> int:
    """A whole number.

    Raises:
        ValueError: It is absent or of another type.
    """
    value = numbers.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key}={reprlib.repr(value)}; expected int")
    return value


def read_float(numbers: Mapping[str, Any], key: str) -> float:
    """A finite fractional number.

    Raises:
        ValueError: It is absent, of another type, NaN or infinite.
    """
    value = numbers.get(key)
    if not isinstance(value, float):
        raise ValueError(f"{key}={reprlib.repr(value)}; expected float")
    if not math.isfinite(value):
        raise ValueError(f"{key}={value}; expected a finite number")
    return value


def read_ints(numbers: Mapping[str, Any], key: str) -> list[int]:
    """A list of whole numbers that 64 bits hold.

    Raises:
        ValueError: It is absent or holds something else.
    """
    values = numbers.get(key)
    if not isinstance(values, list):
        raise ValueError(f"{key}={reprlib.repr(values)}; expected list")
    if not all(
        isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_EXAMPLES for value in values
    ):
        raise ValueError(f"{key} holds what is no whole number of at most {MAX_EXAMPLES}")
    return values


def read_floats(numbers: Mapping[str, Any], key: str) -> list[float]:
    """A list of finite fractional numbers.

    Raises:
        ValueError: It is absent or holds something else.
    """
    values = numbers.get(key)
    if not isinstance(values, list):
        raise ValueError(f"{key}={reprlib.repr(values)}; expected list")
    if not all(isinstance(value, float) and math.isfinite(value) for value in values):
        raise ValueError(f"{key} holds what is no finite fractional number")
    return values
