"""Time series on a grid of equal steps: the only place that averages measurements in a step and cuts windows.

Shape legend: P = patients, T = steps of all patients' grids together, C = channels, L = steps of a window, W = windows.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_contract.errors import RefusalCode, RefusalError

MAX_BYTES = 4 * 1024**3
"""Most memory that the grids and windows of a hospital may take."""

BYTES_A_CELL = 12
"""Of the grid: the sum in float64 and the number of measurements in uint32."""

Windows = Literal["first", "last", "all"]


class WindowGrid:
    """The steps of every patient that lie in a window.

    Args:
        num_steps: [P] steps from a patient's start to the last measurement, that one included; 0 for a patient without
            measurements, who has no window.
        num_channels: C.
        length: L.
        windows: ``first`` steps, ``last`` ones, or ``all`` whole windows from the start on, and one where a series is
            shorter than a window.
        stride: Steps from one window to the next, at most ``length``.

    Raises:
        RefusalError: INVALID_DATA: they would take more memory than `MAX_BYTES`.
    """

    def __init__(
        self, num_steps: NDArray[np.int64], *, num_channels: int, length: int, windows: Windows, stride: int
    ) -> None:
        self._length, self._stride = length, stride
        further = (num_steps - length) // stride if windows == "all" else np.zeros_like(num_steps)
        self._num_windows = np.where(num_steps > 0, 1 + np.maximum(further, 0), 0)
        used = np.minimum(num_steps, (self._num_windows - 1) * stride + length)
        self._size = np.where(num_steps > 0, used, 0)
        self._first = num_steps - self._size if windows == "last" else np.zeros_like(num_steps)
        cells = num_channels * (float(self._size.sum()) + float(self._num_windows.sum()) * length)
        if cells * BYTES_A_CELL > MAX_BYTES:
            raise RefusalError(
                RefusalCode.INVALID_DATA,
                f"windows of {int(self._num_windows.sum())} x {num_channels} x {length} values, and the steps they are "
                f"cut from, take more than {MAX_BYTES} bytes; look at the unit of the times, or take fewer windows",
            )
        self._offset = np.concatenate([[0], np.cumsum(self._size)])
        self._sums = np.zeros((int(self._offset[-1]), num_channels))
        self._counts = np.zeros(self._sums.shape, np.uint32)

    def add(
        self,
        patients: NDArray[np.int64],
        steps: NDArray[np.int64],
        channels: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> int:
        """Add measurements, each of one patient in one step of one channel.

        Returns:
            How many lie outside all windows and were not added.
        """
        position = steps - self._first[patients]
        is_inside = (position >= 0) & (position < self._size[patients])
        cells = (self._offset[patients] + position)[is_inside], channels[is_inside]
        np.add.at(self._sums, cells, values[is_inside])
        np.add.at(self._counts, cells, 1)
        return int((~is_inside).sum())

    def cut(self, start: int, stop: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The windows of the patients from ``start`` up to ``stop``.

        Returns:
            [W, C, L], the mean of each step and NaN where nothing was measured; and [W] whose window it is, counted
            from ``start``.
        """
        owners = np.repeat(np.arange(start, stop), self._num_windows[start:stop])
        number = np.arange(len(owners)) - np.repeat(
            np.cumsum(self._num_windows[start:stop]) - self._num_windows[start:stop], self._num_windows[start:stop]
        )
        result = np.full((len(owners), self._sums.shape[1], self._length), np.nan)
        for step in range(self._length):
            position = number * self._stride + step
            is_there = position < self._size[owners]
            rows = (self._offset[owners] + position)[is_there]
            counts = self._counts[rows]
            means = np.full(counts.shape, np.nan)
            np.divide(self._sums[rows], counts, out=means, where=counts > 0)
            result[is_there, :, step] = means
        return result, owners - start
