"""The only place that averages the models of a run's rounds: what a private study measures and gives as its result.

Each round's model carries that round's noise; the mean of the last ones carries less. It is made of models that left
the hospitals already, so it costs no privacy. Source: Polyak, Juditsky 1992; for noisy steps Shamir, Zhang,
arXiv 1212.1824, section 3 (the mean of the last half).
"""

import numpy as np
from numpy.typing import NDArray

from fl_contract.array_record import Arrays
from fl_contract.study import Study

_COUNT = "count"
_SUM = "sum/"


def first_averaged_round(study: Study) -> int | None:
    """The first round whose model counts: the last half of the planned ones; None without privacy.

    None too where hospitals have parts of their own, which fit the last model and are not averaged.
    """
    return study.num_rounds // 2 + 1 if study.is_private and not study.is_personal else None


class ModelAverage:
    """The running mean of a run's models.

    Args:
        first_round: That counts; None averages nothing.
    """

    def __init__(self, first_round: int | None) -> None:
        self._first_round = first_round
        self._count = 0
        self._sums: dict[str, NDArray[np.float64]] = {}

    def observe(self, server_round: int, model: Arrays) -> None:
        """Take in the model after one more round."""
        if self._first_round is None or server_round < self._first_round:
            return
        self._count += 1
        for name, array in model.items():
            if array.dtype.kind == "f":
                self._sums[name] = self._sums.get(name, np.zeros(array.shape)) + array

    def of(self, model: Arrays) -> Arrays:
        """The mean of the models taken in; the given, latest one where there is none, and for its whole numbers."""
        means = {name: np.asarray(total / self._count) for name, total in self._sums.items()}
        return {name: means[name].astype(array.dtype) if name in means else array for name, array in model.items()}

    def state(self) -> Arrays:
        """For a checkpoint."""
        return {_COUNT: np.array(self._count), **{_SUM + name: total for name, total in self._sums.items()}}

    def load_state(self, state: Arrays) -> None:
        """Take back what `state` gave."""
        self._count = int(state[_COUNT])
        self._sums = {name.removeprefix(_SUM): total for name, total in state.items() if name.startswith(_SUM)}
