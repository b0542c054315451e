"""FedAdagrad: FedAdam whose second moment only grows (Reddi et al. 2021, algorithm 2; arXiv 2003.00295)."""

import numpy as np
from numpy.typing import NDArray

from strategies.fedadam import FedAdam


class FedAdagrad(FedAdam):
    """As `FedAdam`, with v = v + u * u; c is not used."""

    def _take_in(self, second: NDArray[np.float64], square: NDArray[np.float64]) -> None:
        second += square
