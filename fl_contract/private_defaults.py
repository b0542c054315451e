"""The only place for what a private study trains with where it does not say: the same rule for every study.

A default depends on public numbers alone: epsilon, rounds, the kinds of data and model. Both sides fill them in while
they read the study; fingerprint and record hold the filled numbers. They were chosen on the two public data sets of the
studies ``breast-cancer`` and ``heart-disease``: a choice that costs any other study no privacy, and that the epsilon of
these two does not cover.

The noise in the final model grows with the summed length of all steps and shrinks with epsilon, so the length of the
whole path is what the rule fixes; clip norm and number of steps only share it out. Batches of all records are as good
as smaller ones at the same epsilon, and cheap for tables. Source: ``docs/log.md`` and ``benchmarks/results``.
"""

import math
import operator
from collections.abc import Mapping
from typing import Any

CLIP_NORM = 0.5
"""Bound on a record's gradient. Below the gradients of most records at the start, whose direction is what counts."""

SAMPLING_RATES = {"table": 1.0}
SAMPLING_RATE = 0.2
"""By kind of data: every record in every step, or, for larger records, a batch that fits into memory."""

TOTAL_STEPS = {"table": 80}
MANY_STEPS = 200
"""Noisy steps over all rounds, by kind of data; more cost more time than they gain."""

PATH_PER_EPSILON = {"logistic": 60.0, "linear": 60.0, "mlp": 20.0}
SHORT_PATH_PER_EPSILON = 12.5
"""Summed length of all steps, in weight units for an epsilon of 1, by kind of model; the last for networks."""

LARGEST_EPSILON = 8.0
"""Above it a longer path gains nothing."""

LARGEST_STEP = 8.0
"""In weight units; what few steps may not make up for by their length."""


def steps_per_round(data_kind: str, *, num_rounds: int) -> int:
    """Noisy steps of a round, so that all rounds together have about `TOTAL_STEPS`; at least 1.

    >>> steps_per_round("table", num_rounds=20), steps_per_round("table", num_rounds=300)
    (4, 1)
    """
    return -(-TOTAL_STEPS.get(data_kind, MANY_STEPS) // num_rounds)


def private_learning_rate(model_kind: str, *, epsilon: float, clip_norm: float, total_steps: int) -> float:
    """Learning rate of noisy steps: their path over its number of steps, for gradients of length ``clip_norm``.

    >>> private_learning_rate("logistic", epsilon=8.0, clip_norm=0.5, total_steps=80)
    12.0
    """
    path = PATH_PER_EPSILON.get(model_kind, SHORT_PATH_PER_EPSILON) * min(epsilon, LARGEST_EPSILON)
    return min(path / total_steps, LARGEST_STEP) / clip_norm


def fill_private_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A study as TOML gives it, with every private setting that it leaves out.

    Guarantees:
        - What the study says is kept. ``raw`` is not changed.
        - The learning rate is filled for plain SGD only: it bounds a step's length for no other optimiser.
        - Where a number that the rule needs is absent or breaks its own rule, reading the study names that number
          alone, not those that depend on it.
    """
    privacy = raw.get("privacy")
    if not isinstance(privacy, Mapping):
        return dict(raw)
    try:
        return _filled(raw, privacy)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        placeholders = {"clip-norm": CLIP_NORM, "sampling-rate": 1.0, "steps-per-round": 1}
        return {**raw, "privacy": {**placeholders, **privacy}}


def _filled(raw: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    data_kind, num_rounds = raw["schema"]["kind"], operator.index(raw["num-rounds"])
    privacy = {
        "clip-norm": CLIP_NORM,
        "sampling-rate": SAMPLING_RATES.get(data_kind, SAMPLING_RATE),
        "steps-per-round": steps_per_round(data_kind, num_rounds=num_rounds),
        **stated,
    }
    training = dict(raw["training"])
    if training.get("optimizer", "SGD") == "SGD" and not training.get("optimizer-options"):
        filled = private_learning_rate(
            raw["model"]["kind"],
            epsilon=privacy["epsilon"],
            clip_norm=privacy["clip-norm"],
            total_steps=privacy["steps-per-round"] * num_rounds,
        )
        if not 0 < filled < math.inf:
            raise ValueError
        training.setdefault("private-learning-rate", filled)
    return {**raw, "privacy": privacy, "training": training}
