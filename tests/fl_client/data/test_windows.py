"""Measurements are averaged in their step, and windows hold what was measured in them and nothing else."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_client.data import windows
from fl_client.data.windows import WindowGrid
from fl_contract.errors import RefusalError

NAN = np.nan


def grid_of(num_steps: list[int], *, channels: int = 1, length: int = 3, **options: Any) -> WindowGrid:
    raw: dict[str, Any] = {"windows": "first", "stride": length} | options
    return WindowGrid(np.array(num_steps), num_channels=channels, length=length, **raw)


def add(grid: WindowGrid, *rows: tuple[int, int, int, float]) -> int:
    """Rows of patient, step, channel and value."""
    patients, steps, channels, values = zip(*rows, strict=True)
    return grid.add(np.array(patients), np.array(steps), np.array(channels), np.array(values, np.float64))


def same(found: NDArray[np.float64], expected: list[Any]) -> bool:
    return np.array_equal(found, np.array(expected), equal_nan=True)


def test_values_of_one_step_are_averaged_and_a_step_without_one_is_missing() -> None:
    grid = grid_of([3], channels=2)

    add(grid, (0, 0, 0, 60.0), (0, 0, 0, 70.0), (0, 0, 0, 80.0), (0, 2, 1, 5.0))

    assert same(grid.cut(0, 1)[0], [[[70.0, NAN, NAN], [NAN, NAN, 5.0]]])


@pytest.mark.parametrize(
    ("options", "num_steps", "expected"),
    [
        # Each step s of the series holds s.
        ({"windows": "first"}, 7, [[0, 1, 2]]),
        ({"windows": "first"}, 2, [[0, 1, NAN]]),
        ({"windows": "last"}, 7, [[4, 5, 6]]),
        ({"windows": "last"}, 2, [[0, 1, NAN]]),
        ({"windows": "all"}, 7, [[0, 1, 2], [3, 4, 5]]),
        ({"windows": "all"}, 6, [[0, 1, 2], [3, 4, 5]]),
        ({"windows": "all"}, 2, [[0, 1, NAN]]),
        ({"windows": "all", "stride": 1}, 5, [[0, 1, 2], [1, 2, 3], [2, 3, 4]]),
        ({"windows": "all", "stride": 2}, 6, [[0, 1, 2], [2, 3, 4]]),
    ],
)
def test_windows_hold_their_steps(options: dict[str, Any], num_steps: int, expected: list[list[float]]) -> None:
    grid = grid_of([num_steps], **options)

    outside = add(grid, *((0, step, 0, float(step)) for step in range(num_steps)))
    cut, owners = grid.cut(0, 1)

    assert same(cut[:, 0], expected)
    assert owners.tolist() == [0] * len(expected)
    assert outside == num_steps - len({step for window in expected for step in window if not np.isnan(step)})


def test_each_patient_s_windows_are_their_own() -> None:
    grid = grid_of([6, 0, 1], windows="all")

    add(grid, (0, 0, 0, 1.0), (0, 3, 0, 2.0), (2, 0, 0, 3.0))
    cut, owners = grid.cut(0, 3)
    tail, tail_owners = grid.cut(1, 3)

    # The second patient was never measured and has no window.
    assert owners.tolist() == [0, 0, 2]
    assert same(cut[:, 0], [[1, NAN, NAN], [2, NAN, NAN], [3, NAN, NAN]])
    assert (tail_owners.tolist(), same(tail[:, 0], [[3, NAN, NAN]])) == ([1], True)


def test_measurements_before_the_start_and_after_the_end_are_counted_and_not_added() -> None:
    grid = grid_of([9])

    assert add(grid, (0, -1, 0, 7.0), (0, 3, 0, 7.0), (0, 8, 0, 7.0), (0, 1, 0, 1.0)) == 3
    assert same(grid.cut(0, 1)[0][0], [[NAN, 1, NAN]])


def test_windows_that_would_not_fit_into_memory_are_refused_before_room_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "MAX_BYTES", 100)

    # 3 steps and 3 values of a window take 12 bytes each.
    grid_of([3])
    with pytest.raises(RefusalError, match="windows of 2 x 1 x 3 values"):
        grid_of([6], windows="all")
