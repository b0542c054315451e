"""The gate: the only place that decides what leaves a hospital, and that writes everything that did to its journal.

Allowed is what stands here; everything else stops the reply. A new field in a reply needs a line in this file.
"""

import logging
from pathlib import Path
from types import GenericAlias
from typing import get_args

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fl_client.journal import REFUSAL, RELEASE, Journal
from fl_contract.array_record import Arrays
from fl_contract.coded_update import UpdateForm
from fl_contract.errors import DisclosureError, JournalError, MessageError, RefusalCode
from fl_contract.messages import (
    ARRAYS,
    CONFIG,
    EVALUATE,
    LOSS,
    METRICS,
    NUM_EXAMPLES,
    PLAN,
    ROSTER,
    STATISTICS,
    TRAIN,
    Request,
)

NOISED_EVALUATE = "evaluate.noised"
"""An answer to an evaluate request whose counts have noise."""

TRAIN_WITH_LOSS = "train.with-loss"
"""An answer to a train request with the exact loss of the received model; only for a policy that allows it."""

ALLOWED: dict[str, dict[str, dict[str, type | GenericAlias]]] = {
    ROSTER: {CONFIG: {"sites": list[str]}},
    PLAN: {CONFIG: {"site": str, NUM_EXAMPLES: int, "noise-multiplier": float, "num-cores": int, "has-gpu": bool}},
    STATISTICS: {
        CONFIG: {"site": str},
        METRICS: {"counts": list[int], "sums": list[float], "square-sums": list[float], "histograms": list[int]},
    },
    TRAIN: {CONFIG: {"site": str}, METRICS: {NUM_EXAMPLES: int, "epsilon": float, "delta": float, "steps": int}},
    TRAIN_WITH_LOSS: {CONFIG: {"site": str}, METRICS: {NUM_EXAMPLES: int, LOSS: float}},
    EVALUATE: {
        CONFIG: {"site": str},
        METRICS: {
            **{NUM_EXAMPLES: int, "loss": float, "loss-sum": float},
            **{"num-correct": int, "score-counts": list[int]},
            **{"brier-sum": float, "brier-square-sum": float},
            **{"threshold": float, "true-positives": int, "true-negatives": int},
            **{"concordant": int, "tied": int, "comparable": int, "pair-sums": list[float]},
            **{"absolute-error-sum": float, "squared-error-sum": float, "target-sum": float},
            **{"target-square-sum": float, "fourth-power-sum": float},
            **{"intersection-pixels": list[int], "predicted-pixels": list[int], "true-pixels": list[int]},
            **{"overlap-sums": list[float], "correct-sums": list[float]},
            **{"reciprocal-rank-sum": float, "reciprocal-rank-square-sum": float},
            **{"hits-at-1": int, "hits-at-10": int},
        },
    },
    NOISED_EVALUATE: {
        CONFIG: {"site": str},
        METRICS: {
            **{"noised-cells": list[int], "noise-scale": float, "threshold": float},
            **{"epsilon": float, "delta": float, "steps": int},
        },
    },
}

WITH_MODEL = (TRAIN, TRAIN_WITH_LOSS)
"""Replies that hold the model's arrays."""

_RECORDS = {ARRAYS: ArrayRecord, METRICS: MetricRecord, CONFIG: ConfigRecord}

_LONGEST_NAME = 100
"""What a refusal keeps of a study's name, which the hospital may not know."""

logger = logging.getLogger("fl_client")


def release(
    content: RecordDict,
    kind: str,
    request: Request,
    *,
    folder: Path,
    study: str,
    model: Arrays | None = None,
    form: UpdateForm | None = None,
) -> RecordDict:
    """Let a reply leave, after it was checked and written to the hospital's journal.

    Args:
        content: The reply.
        kind: Of reply, one of `ALLOWED`.
        request: What was asked, for the journal.
        folder: The hospital's own, for the journal.
        study: The name of the study, for the journal.
        model: For a train reply: the model that was received; the reply's arrays have its names, shapes and types.
        form: For a train reply of a study that names a codec: what its arrays are instead.

    Returns:
        The same content.

    Raises:
        DisclosureError: Names what is not allowed, without its value; nothing was written and nothing may leave.
        JournalError: The journal is not the one that was written; nothing may leave.
    """
    allowed = ALLOWED[kind]
    expected_records = set(allowed) | ({ARRAYS} if kind in WITH_MODEL else set())
    if set(content) != expected_records:
        raise DisclosureError(f"{kind} reply holds {sorted(content)}; allowed are exactly {sorted(expected_records)}")
    if wrong := sorted(name for name, record in content.items() if not isinstance(record, _RECORDS[name])):
        raise DisclosureError(f"{kind} reply's records {wrong} are of another type than their names say")
    for name, fields in allowed.items():
        record = content[name]
        if odd := sorted(field for field in record if not _has_type(record[field], fields.get(field))):
            raise DisclosureError(
                f"{kind} reply's {name} hold {odd}, or hold it as another type; allowed are {sorted(fields)}"
            )
    if kind in WITH_MODEL:
        _check_arrays(content.array_records[ARRAYS], model or {}, form)
    Journal(folder).append(
        RELEASE,
        reply=kind,
        study=study,
        run=request.run,
        round=request.server_round,
        fields={name: sorted(record) for name, record in content.items()},
        bytes=sum(record.count_bytes() for record in content.values()),
        sha256=content.object_id,
    )
    return content


def release_refusal(code: RefusalCode, message: Message, *, folder: Path | None, study: str) -> Error:
    """Let a refusal leave: a code and our own sentence, written to the hospital's journal.

    A refusal leaves also when the journal cannot be written, since a node that does not answer blocks later requests.

    Args:
        code: Why.
        message: The request; the journal names its run and round where they can be read.
        folder: The hospital's own; None where the request names none of this node's.
        study: As the run names it.
    """
    if folder is not None:
        try:
            Journal(folder).append(
                REFUSAL,
                refusal=code.label,
                request=message.metadata.message_type,
                study=study[:_LONGEST_NAME],
                **_identity(message),
            )
        except (OSError, JournalError):
            logger.exception("a refusal left that the journal does not hold")
    return Error(code=int(code), reason=code.sentence)


def _identity(message: Message) -> dict[str, str | int]:
    try:
        request = Request.from_message(message)
    except MessageError:
        return {}
    return {"run": request.run, "round": request.server_round}


def _has_type(value: object, expected: type | GenericAlias | None) -> bool:
    if isinstance(expected, GenericAlias):
        (kind,) = get_args(expected)
        return isinstance(value, list) and all(isinstance(item, kind) for item in value)
    return expected is not None and isinstance(value, expected)


def _check_arrays(arrays: ArrayRecord, model: Arrays, form: UpdateForm | None) -> None:
    if form is not None:
        if odd := form.odd_arrays(arrays, model):
            raise DisclosureError(f"arrays {odd} are not what the study's codec gives; allowed is its coded update")
        return
    found = {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()}
    expected = {name: (array.shape, str(array.dtype)) for name, array in model.items()}
    if found != expected:
        odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise DisclosureError(f"arrays {odd} are not the model's; allowed are its own names, shapes and types")
