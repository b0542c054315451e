"""FedBN: normalisation layers stay at the hospital, all else is averaged (Li et al. 2021; arXiv 2102.07623).

The paper's layers are BatchNorm; the same is done with weights and statistics of every kind of normalisation, since
models here mostly have GroupNorm. The server's half is FedAvg's, over the arrays that travel.
"""

from strategies.own_part import OwnPart


class FedBNClient(OwnPart):
    """The hospital's half; the own arrays are those of the normalisation layers."""
