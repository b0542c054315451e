"""The only place that knows the string keys inside Flower's records: requests and replies, both halves together.

Everything here is read from a network: each field is checked for presence and type before it is used.
"""

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.errors import MessageError, RefusalCode
from fl_contract.features import Column
from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.measurement import MAX_EXAMPLES, Measurement
from fl_contract.metrics.noised import NoisedCounts, count_scored_classes
from fl_contract.statistics import FeatureStatistics
from fl_contract.tasks.task import Task

ARRAYS, CONFIG, CONTROL, METRICS = "arrays", "config", "control", "metrics"
NUM_EXAMPLES = "num-examples"
LOSS = "loss"
LOCAL_STEPS = "local-steps"

MAX_CORES = 4096

MAX_SITES = 1000
"""Hospitals that one node may speak for, in a simulation."""

SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
"""A hospital's name is a folder's name, a key and a word on a terminal."""

_IDENTITY = re.compile(r"[A-Za-z0-9_-]{1,64}")

ROSTER = "query.roster"
PLAN = "query.plan"
STATISTICS = "query.statistics"
TRAIN = "train"
EVALUATE = "evaluate"


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every request names.

    Attributes:
        run: Identity of the run; stays the same when a run is resumed.
        fingerprint: Of the coordinator's study.
        site: The hospital asked; empty in a roster request, which asks a node for its hospitals.
        server_round: From 1; 0 before the first round.
        local_steps: Asked for in a train request of a balanced study; None asks for the study's own.
    """

    run: str
    fingerprint: str
    site: str = ""
    server_round: int = 0
    local_steps: int | None = None

    def to_config(self) -> ConfigRecord:
        """As Flower carries it."""
        config = ConfigRecord(
            {"run": self.run, "fingerprint": self.fingerprint, "site": self.site, "server-round": self.server_round}
        )
        if self.local_steps is not None:
            config[LOCAL_STEPS] = self.local_steps
        return config

    @classmethod
    def from_message(cls, message: Message) -> "Request":
        """Read a request at the hospital.

        Raises:
            MessageError: A field is absent or of another type.
        """
        config = _config(message)
        request = cls(
            run=_field(config, "run", str),
            fingerprint=_field(config, "fingerprint", str),
            site=_field(config, "site", str),
            server_round=_field(config, "server-round", int),
            local_steps=_field(config, LOCAL_STEPS, int) if LOCAL_STEPS in config else None,
        )
        for key, text in (("run", request.run), ("fingerprint", request.fingerprint), ("site", request.site or "-")):
            if not _IDENTITY.fullmatch(text):
                raise MessageError(f"{key}={reprlib.repr(text)}; expected 1 to 64 letters, digits, '-' or '_'")
        return request


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """A hint of how quickly a hospital trains.

    Attributes:
        num_cores: That train; 1 to `MAX_CORES`.
        has_gpu: Whether there is a GPU.
    """

    num_cores: int
    has_gpu: bool


@dataclass(frozen=True, kw_only=True)
class SitePlan:
    """What a hospital says before round 1 that it will do.

    Attributes:
        site: Its name.
        num_examples: Training records it declares; a public, rounded number.
        noise_multiplier: Of its DP-SGD, 0 without privacy.
        capacity: What it says of its machine; None from a hospital whose policy keeps that to itself.
    """

    site: str
    num_examples: int
    noise_multiplier: float
    capacity: Capacity | None = None

    def to_content(self) -> RecordDict:
        """As Flower carries it."""
        values: dict[str, Any] = {
            "site": self.site,
            NUM_EXAMPLES: self.num_examples,
            "noise-multiplier": self.noise_multiplier,
        }
        if self.capacity is not None:
            values |= {"num-cores": self.capacity.num_cores, "has-gpu": self.capacity.has_gpu}
        return RecordDict({CONFIG: ConfigRecord(values)})

    @classmethod
    def from_message(cls, message: Message) -> "SitePlan":
        """Read the answer at the coordinator.

        Raises:
            MessageError: A field is absent or of another type.
        """
        config = _config(message)
        plan = cls(
            site=_field(config, "site", str),
            num_examples=_field(config, NUM_EXAMPLES, int),
            noise_multiplier=_field(config, "noise-multiplier", float),
            capacity=_read_capacity(config),
        )
        if not 1 <= plan.num_examples <= MAX_EXAMPLES:
            raise MessageError(f"{NUM_EXAMPLES}={plan.num_examples}; expected 1 to {MAX_EXAMPLES}")
        if not 0 <= plan.noise_multiplier < math.inf:
            raise MessageError(f"noise-multiplier={plan.noise_multiplier}; expected a finite number of at least 0")
        return plan


@dataclass(frozen=True, kw_only=True)
class PrivacySpent:
    """What a hospital has spent in this run, up to and including this reply.

    Attributes:
        epsilon: Of this run alone; nothing of the hospital's other studies.
        delta: Of the same guarantee.
        steps: Noisy steps in this round.
    """

    epsilon: float
    delta: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class TrainReply:
    """A hospital's model after local training.

    Attributes:
        site: Its name.
        arrays: New weights and buffers; the names, shapes and types of the request's.
        num_examples: Training records it declares: its weight in an average by examples.
        spent: Under differential privacy.
        loss: Of the received model on its training records, in nats, where the algorithm needs it.
    """

    site: str
    arrays: Arrays
    num_examples: int
    spent: PrivacySpent | None
    loss: float | None = None

    def to_content(self, coded: ArrayRecord | None = None) -> RecordDict:
        """As Flower carries it; with the coded form in place of the arrays where there is one."""
        metrics: dict[str, Any] = {NUM_EXAMPLES: self.num_examples}
        if self.spent is not None:
            metrics |= {"epsilon": self.spent.epsilon, "delta": self.spent.delta, "steps": self.spent.steps}
        if self.loss is not None:
            metrics[LOSS] = self.loss
        return RecordDict(
            {
                ARRAYS: to_array_record(self.arrays) if coded is None else coded,
                METRICS: MetricRecord(metrics),
                CONFIG: ConfigRecord({"site": self.site}),
            }
        )


def privacy_spent(message: Message) -> PrivacySpent | None:
    """What a reply says was spent; None from a hospital that answered without differential privacy.

    Raises:
        MessageError: A field is absent, of another type, or out of range.
    """
    metrics = _metrics(message)
    if "epsilon" not in metrics:
        return None
    spent = PrivacySpent(
        epsilon=_field(metrics, "epsilon", float),
        delta=_field(metrics, "delta", float),
        steps=_field(metrics, "steps", int),
    )
    if not (0 <= spent.epsilon < math.inf and 0 <= spent.delta <= 1 and spent.steps >= 0):
        raise MessageError(
            f"epsilon={spent.epsilon}, delta={spent.delta}, steps={spent.steps}; "
            "expected a finite epsilon of at least 0, a delta from 0 to 1, steps of at least 0"
        )
    return spent


def evaluation_content(site: str, evaluation: Measurement) -> RecordDict:
    """A hospital's exact measurement as Flower carries it."""
    metrics: dict[str, Any] = {**evaluation.to_numbers(), LOSS: evaluation.loss}
    return RecordDict({METRICS: MetricRecord(metrics), CONFIG: ConfigRecord({"site": site})})


def noised_evaluation_content(site: str, noised: NoisedCounts, spent: PrivacySpent) -> RecordDict:
    """A hospital's noised measurement as Flower carries it; ``spent`` is what this run's measuring cost until now."""
    metrics: dict[str, Any] = {
        "noised-cells": [int(count) for count in noised.cells],
        "noise-scale": noised.noise_scale,
        "threshold": noised.threshold,
        "epsilon": spent.epsilon,
        "delta": spent.delta,
        "steps": spent.steps,
    }
    return RecordDict({METRICS: MetricRecord(metrics), CONFIG: ConfigRecord({"site": site})})


def read_evaluation(message: Message, task: Task) -> Measurement:
    """Read a measurement at the coordinator, an exact or a noised one.

    Args:
        message: The reply.
        task: Of the study.

    Raises:
        MessageError: A field is absent, of another type, or contradicts another or the study.
    """
    metrics = _metrics(message)
    try:
        is_noised = task.HAS_NOISED and "noised-cells" in metrics
        kind = task.MEASUREMENT
        measured = Evaluation.from_noised(_read_noised(metrics)) if is_noised else kind.from_numbers(metrics)
        task.check(measured)
    except ValueError as error:
        raise MessageError(str(error)) from error
    return measured


def _read_noised(metrics: MetricRecord) -> NoisedCounts:
    cells = _field(metrics, "noised-cells", list)
    noise_scale = _field(metrics, "noise-scale", float)
    if not all(isinstance(cell, int) and abs(cell) <= MAX_EXAMPLES for cell in cells):
        raise MessageError(f"noised-cells hold what is not a whole number of at most {MAX_EXAMPLES}")
    if not 0 < noise_scale <= MAX_EXAMPLES:
        raise MessageError(f"noise-scale={noise_scale}; expected above 0, at most {MAX_EXAMPLES}")
    try:
        count_scored_classes(len(cells))
    except ValueError as error:
        raise MessageError(f"noised-cells: {error}") from error
    threshold = _field(metrics, "threshold", float)
    if not 0 < threshold < 1:
        raise MessageError(f"threshold={threshold}; expected above 0 and below 1")
    return NoisedCounts(cells=np.array(cells, dtype=np.int64), noise_scale=noise_scale, threshold=threshold)


def statistics_content(site: str, statistics: FeatureStatistics) -> RecordDict:
    """A hospital's statistics of its features as Flower carries them; histograms one after another, if there are."""
    metrics: dict[str, Any] = {
        "counts": statistics.counts.tolist(),
        "sums": statistics.sums.tolist(),
        "square-sums": statistics.square_sums.tolist(),
    }
    if histograms := np.concatenate(statistics.histograms).tolist():
        metrics["histograms"] = histograms
    return RecordDict({METRICS: MetricRecord(metrics), CONFIG: ConfigRecord({"site": site})})


def read_statistics(message: Message, columns: Sequence[Column]) -> FeatureStatistics:
    """Read a hospital's statistics at the coordinator.

    Raises:
        MessageError: A field is absent, of another type or length, out of range, or contradicts another.
    """
    metrics = _metrics(message)
    counts, sums, squares = (_field(metrics, key, list) for key in ("counts", "sums", "square-sums"))
    if not len(counts) == len(sums) == len(squares) == len(columns):
        raise MessageError(f"statistics of {len(counts)} features; expected {len(columns)}")
    num_bins = [column.num_bins for column in columns]
    histograms = _field(metrics, "histograms", list) if any(num_bins) else []
    if len(histograms) != sum(num_bins):
        raise MessageError(f"histograms of {len(histograms)} bins; expected {sum(num_bins)}")
    for key, whole in (("counts", counts), ("histograms", histograms)):
        if not all(isinstance(count, int) and 0 <= count <= MAX_EXAMPLES for count in whole):
            raise MessageError(f"{key} hold what is not a whole number from 0 to {MAX_EXAMPLES}")
    if not all(isinstance(value, float) and math.isfinite(value) for value in (*sums, *squares)):
        raise MessageError("sums or square-sums hold what is not a finite number")
    try:
        return FeatureStatistics(
            counts=np.array(counts, dtype=np.int64),
            sums=np.array(sums),
            square_sums=np.array(squares),
            histograms=tuple(np.split(np.array(histograms, dtype=np.int64), np.cumsum(num_bins)[:-1])),
        )
    except ValueError as error:
        raise MessageError(str(error)) from error


def roster_content(sites: list[str]) -> RecordDict:
    """The hospitals that a node speaks for, as Flower carries them."""
    return RecordDict({CONFIG: ConfigRecord({"sites": sites})})


def read_roster(message: Message) -> list[str]:
    """The hospitals that a node speaks for.

    Raises:
        MessageError: They are absent, too many, or not names of hospitals.
    """
    sites = _field(_config(message), "sites", list)
    if len(sites) > MAX_SITES:
        raise MessageError(f"a node speaks for {len(sites)} hospitals; expected at most {MAX_SITES}")
    for site in sites:
        if not (isinstance(site, str) and SITE_NAME.fullmatch(site)):
            raise MessageError(f"site={reprlib.repr(site)}; expected 1 to 64 lower-case letters, digits and hyphens")
    return sites


def site_of_reply(message: Message) -> str | None:
    """The hospital that a reply names; None in a reply of another framework's client."""
    config = message.content.get(CONFIG) if message.has_content() else None
    site = config.get("site") if isinstance(config, ConfigRecord) else None
    return site if isinstance(site, str) else None


def refusal_of_reply(message: Message) -> tuple[str, str]:
    """Code in words and sentence of an error reply, for the record."""
    try:
        code = RefusalCode(message.error.code)
    except ValueError:
        sentence = "The node gave no answer of ours (Flower's own code)."
        if message.error.code == ErrorCode.INVALID_FAB:
            sentence = "The hospital has not approved this bundle."
        return f"flower-{message.error.code}", sentence
    return code.label, code.sentence


def request_arrays(message: Message) -> Arrays:
    """The model in a train or evaluate request."""
    return from_array_record(_record(message.content.array_records, ARRAYS))


def request_control(message: Message) -> Arrays:
    """What a strategy sends beside the model; empty where there is none."""
    record = message.content.array_records.get(CONTROL)
    return {} if record is None else from_array_record(record)


def ask_local_steps(request: Message, steps: int) -> None:
    """Ask for this many local steps in a train request that was made."""
    _config(request)[LOCAL_STEPS] = steps


def _read_capacity(config: ConfigRecord) -> Capacity | None:
    if "num-cores" not in config and "has-gpu" not in config:
        return None
    capacity = Capacity(num_cores=_field(config, "num-cores", int), has_gpu=_field(config, "has-gpu", bool))
    if not 1 <= capacity.num_cores <= MAX_CORES:
        raise MessageError(f"num-cores={capacity.num_cores}; expected 1 to {MAX_CORES}")
    return capacity


def _config(message: Message) -> ConfigRecord:
    return _record(message.content.config_records, CONFIG)


def _metrics(message: Message) -> MetricRecord:
    return _record(message.content.metric_records, METRICS)


def _record(records: Mapping[str, T], name: str) -> T:
    if name not in records:
        raise MessageError(f"record {name!r} is missing; the message holds {sorted(records)}")
    return records[name]


def _field(record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = record.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise MessageError(f"{key}={reprlib.repr(value)}; expected {kind.__name__}")
    return value
