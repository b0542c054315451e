"""FedPer: hospitals share the body of the model, and each has a head of its own (Arivazhagan et al. 2019).

Source: arXiv 1912.00818, algorithm 1. The server's half is FedAvg's, over the arrays that travel.
"""

from strategies.own_part import OwnPart


class FedPerClient(OwnPart):
    """The hospital's half; head and body are trained together."""
