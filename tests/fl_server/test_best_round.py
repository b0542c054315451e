"""The best round is the one with the lowest pooled held-out loss, the first of equals."""

import pytest

from fl_server.best_round import BestRound


def watch(losses: list[float]) -> BestRound:
    best = BestRound()
    for number, loss in enumerate(losses, start=1):
        best.observe(number, loss)
    return best


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        pytest.param([], (0, float("inf")), id="nothing measured"),
        pytest.param([0.5], (1, 0.5), id="one"),
        pytest.param([0.5, 0.3, 0.4], (2, 0.3), id="the lowest"),
        pytest.param([0.5, 0.3, 0.3], (2, 0.3), id="the first of equals"),
        pytest.param([float("nan"), 0.3, float("nan")], (2, 0.3), id="NaN is never the best"),
        pytest.param([float("nan")], (0, float("inf")), id="nothing but NaN"),
        pytest.param([float("inf")], (0, float("inf")), id="infinite"),
        pytest.param([0.5, -2.0], (2, -2.0), id="a loss may be negative"),
    ],
)
def test_the_best_round_by_table(losses: list[float], expected: tuple[int, float]) -> None:
    best = watch(losses)

    assert (best.server_round, best.loss) == expected


def test_the_state_goes_on_where_it_was() -> None:
    resumed = BestRound()
    resumed.load_state(watch([0.5, 0.3]).state())

    resumed.observe(3, 0.4)

    assert resumed.to_json() == {"round": 2, "loss": 0.3}
