"""FedAdagrad: FedAdam whose second moment only grows (Reddi et al. 2021, algorithm 2; arXiv 2003.00295)."""

import numpy as np
from numpy.typing import NDArray

from strategies.fedadam import FedAdam


class FedAdagrad(FedAdam):
    """As `FedAdam`, with v = v + u * u; c is not used."""

    def _next_second(self, second: NDArray[np.float64], update: NDArray[np.float64]) -> NDArray[np.float64]:
        return second + update**2
