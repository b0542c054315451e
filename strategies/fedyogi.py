"""FedYogi: FedAdam whose second moment grows and shrinks by steps (Reddi et al. 2021, algorithm 2; 2003.00295)."""

import numpy as np
from numpy.typing import NDArray

from strategies.fedadam import FedAdam


class FedYogi(FedAdam):
    """As `FedAdam`, with v = v - (1 - c) * u * u * sign(v - u * u)."""

    def _take_in(self, second: NDArray[np.float64], square: NDArray[np.float64]) -> None:
        is_above = second - square
        np.sign(is_above, out=is_above)
        square *= 1.0 - self.server_betas[1]
        square *= is_above
        second -= square
