"""The gate: the only place that decides what leaves a hospital, and the log of everything that did.

Allowed is what stands here; everything else stops the reply. A new field in a reply needs a line in this file.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import RecordDict

from fl_contract.errors import DisclosureError
from fl_contract.messages import ARRAYS, CONFIG, EVALUATE, METRICS, NUM_EXAMPLES, PLAN, ROSTER, TRAIN, Arrays, Request

ALLOWED: dict[str, dict[str, frozenset[str]]] = {
    ROSTER: {CONFIG: frozenset({"sites"})},
    PLAN: {CONFIG: frozenset({"site", NUM_EXAMPLES, "noise-multiplier"})},
    TRAIN: {CONFIG: frozenset({"site"}), METRICS: frozenset({NUM_EXAMPLES, "epsilon", "delta", "steps"})},
    EVALUATE: {
        CONFIG: frozenset({"site"}),
        METRICS: frozenset({NUM_EXAMPLES, "loss", "loss-sum", "num-correct", "score-counts"}),
    },
}

OUTBOUND_LOG = "outbound.jsonl"


def release(
    content: RecordDict, kind: str, request: Request, *, folder: Path, model: Arrays | None = None
) -> RecordDict:
    """Let a reply leave, after it was checked and written to the hospital's outbound log.

    Args:
        content: The reply.
        kind: Type of the request, one of `ALLOWED`.
        request: What was asked, for the log.
        folder: The hospital's own, for the log.
        model: For a train reply: the model that was received; the reply's arrays have its names and shapes.

    Returns:
        The same content.

    Raises:
        DisclosureError: Names what is not allowed, without its value; nothing was logged and nothing may leave.
    """
    allowed = ALLOWED[kind]
    expected_records = set(allowed) | ({ARRAYS} if kind == TRAIN else set())
    if set(content) != expected_records:
        raise DisclosureError(f"{kind} reply holds {sorted(content)}; allowed are exactly {sorted(expected_records)}")
    for name, fields in allowed.items():
        if extra := sorted(set(content[name]) - fields):
            raise DisclosureError(f"{kind} reply's {name} hold {extra}; allowed are {sorted(fields)}")
    if kind == TRAIN:
        _check_arrays(content, model or {})
    _log(content, kind, request, folder / OUTBOUND_LOG)
    return content


def _check_arrays(content: RecordDict, model: Arrays) -> None:
    arrays = content.array_records[ARRAYS]
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    expected = {name: array.shape for name, array in model.items()}
    if shapes != expected:
        odd = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        raise DisclosureError(f"arrays {odd} are not the model's; allowed are its own names and shapes")


def _log(content: RecordDict, kind: str, request: Request, path: Path) -> None:
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "kind": kind,
        "run": request.run,
        "round": request.server_round,
        "fields": {name: sorted(record) for name, record in content.items()},
        "bytes": sum(record.count_bytes() for record in content.values()),
        "sha256": content.object_id,
    }
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
