"""A run has converged once no round of the last `patience` was better by more than the smallest improvement."""

import pytest

from fl_contract.study import StoppingSettings
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
