"""A run has converged once no round of the last `patience` was better by more than the smallest improvement."""

from typing import Any

import numpy as np
import pytest

from fl_contract.study_tables import StoppingSettings
from fl_server.stopping import Stopping


def _watch(losses: list[float], *, patience: int, min_improvement: float = 0.0) -> Stopping:
    raw = {"patience": patience, "min-improvement": min_improvement}
    stopping = Stopping(StoppingSettings.parse(raw, origin="test"))
    for loss in losses:
        stopping.observe(loss)
    return stopping


@pytest.mark.parametrize(
    ("losses", "patience", "min_improvement", "has_converged"),
    [
        pytest.param([], 1, 0.0, False, id="nothing seen"),
        pytest.param([1.0], 1, 0.0, False, id="the first is always better"),
        pytest.param([1.0, 1.0], 1, 0.0, True, id="equal is not better"),
        pytest.param([1.0, 0.9, 0.8], 1, 0.0, False, id="falling"),
        pytest.param([1.0, 0.95, 0.91], 1, 0.1, True, id="falls by less than asked"),
        pytest.param([1.0, 0.95, 0.89], 2, 0.1, False, id="falls by more than asked since the best"),
        pytest.param([1.0, 1.1, 0.9, 1.0], 2, 0.0, False, id="patience starts again at the best"),
        pytest.param([1.0, 1.1, 1.2, 1.3], 0, 0.0, False, id="patience 0 never stops"),
        pytest.param([1.0, float("nan")], 1, 0.0, True, id="NaN is not better"),
    ],
)
def test_convergence_by_table(losses: list[float], patience: int, min_improvement: float, has_converged: bool) -> None:
    assert _watch(losses, patience=patience, min_improvement=min_improvement).has_converged is has_converged


def test_the_state_goes_on_where_it_was() -> None:
    resumed = _watch([], patience=3)
    resumed.load_state(_watch([1.0, 1.2, 1.1], patience=3).state())

    resumed.observe(1.0)

    assert resumed.has_converged


def _watch_steps(steps: list[float], **settings: Any) -> Stopping:
    """Rounds that each move a model of norm 5 by so much of it, and a buffer by a lot."""
    raw = {"min-relative-step": 0.1, "small-steps": 2, **settings}
    stopping = Stopping(StoppingSettings.parse(raw, origin="test"), ["w", "b"])
    before = {"w": np.array([3.0, 0.0], np.float32), "b": np.array(4.0), "mean": np.zeros(2)}
    for step in steps:
        after = {"w": np.array([3.0, 5 * step], np.float32), "b": np.array(4.0), "mean": np.full(2, 99.0)}
        stopping.observe_step(before, after)
    return stopping


@pytest.mark.parametrize(
    ("steps", "settings", "has_converged"),
    [
        pytest.param([], {}, False, id="nothing seen"),
        pytest.param([0.05], {}, False, id="once"),
        pytest.param([0.05, 0.05], {}, True, id="twice in a row"),
        pytest.param([0.05, 0.2, 0.05], {}, False, id="not in a row"),
        pytest.param([0.2, 0.0, 0.0], {}, True, id="no step at all"),
        pytest.param([0.2, 0.2], {}, False, id="large steps"),
        pytest.param([0.05] * 9, {"min-relative-step": 0.0}, False, id="0 never stops"),
        pytest.param([0.0] * 9, {"min-relative-step": 0.0}, False, id="0 never stops a model that stands still"),
        pytest.param([0.05] * 2, {"small-steps": 3}, False, id="three are asked for"),
        pytest.param([float("nan")] * 2, {}, False, id="NaN is not small"),
    ],
)
def test_small_steps_by_table(steps: list[float], settings: dict[str, Any], has_converged: bool) -> None:
    assert _watch_steps(steps, **settings).has_converged is has_converged


def test_the_norms_are_over_all_trained_arrays_together() -> None:
    # |x| = sqrt(3^2 + 4^2) = 5, |y - x| = 0.5: 0.1 of it; of w alone it would be 0.17, and the buffer moved by 140.
    assert _watch_steps([0.0999, 0.0999]).has_converged
    assert not _watch_steps([0.1001, 0.1001]).has_converged


@pytest.mark.parametrize(
    ("stopping", "reason"),
    [
        (_watch([1.0, 1.0], patience=1), "No better loss in 1 rounds."),
        (_watch_steps([0.05, 0.05]), "2 steps in a row of at most 0.1 of the model."),
        (_watch([1.0], patience=1), ""),
    ],
    ids=["loss", "steps", "neither"],
)
def test_the_reason_names_the_criterion(stopping: Stopping, reason: str) -> None:
    assert stopping.reason == reason


def test_the_count_of_small_steps_goes_on_where_it_was() -> None:
    resumed = _watch_steps([])
    resumed.load_state(_watch_steps([0.05]).state())

    still = {"w": np.ones(2, np.float32), "b": np.array(4.0)}
    resumed.observe_step(still, still)

    assert resumed.has_converged
