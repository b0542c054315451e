"""Areas under the ROC and the precision-recall curve of counts of patients by bin, with their standard errors.

Patients in one bin are taken as tied. Shape legend: B = bins of the score, in its order.
"""

import math

import numpy as np
from numpy.typing import NDArray

UNDEFINED = (math.nan, math.nan)


def area_under_roc(counts_2B: NDArray[np.int64]) -> tuple[float, float]:
    """The chance that a patient with the class scores above one without it, a tie counted half.

    It differs from that of the scores themselves by at most half the share of such pairs that fall in one bin.
    Sources: Hanley & McNeil (1982, Radiology 143) for the area; DeLong et al. (1988, Biometrics 44) for its error.

    Args:
        counts_2B: Patients without (0) and with (1) the class.

    Returns:
        Area and standard error; two NaN where either side is empty, a NaN error where either is a single patient.
    """
    without, with_class = counts_2B.astype(np.float64)
    num_without, num_with = without.sum(), with_class.sum()
    if num_without == 0 or num_with == 0:
        return UNDEFINED
    below = (np.cumsum(without) - without / 2) / num_without  # share of controls that a case of this bin beats
    above = (num_with - np.cumsum(with_class) + with_class / 2) / num_with  # share of cases that beat a control
    area = float((with_class * below).sum() / num_with)
    if min(num_without, num_with) == 1:
        return area, math.nan
    spread = (with_class * (below - area) ** 2).sum() / (num_with - 1) / num_with
    spread += (without * (above - area) ** 2).sum() / (num_without - 1) / num_without
    return area, math.sqrt(spread)


def average_precision(counts_2B: NDArray[np.int64]) -> tuple[float, float]:
    """Mean precision at each patient with the class: the area under the precision-recall curve, without interpolation.

    A patient with the class is taken in the middle of its bin, after half of those without the class that share it. It
    is exact where no two patients share a bin; tests hold it to 0.005 with 200 patients of the class or more. Source of
    the error: the infinitesimal jackknife (Efron 1982), how the area answers to one more patient of each bin.

    Args:
        counts_2B: Patients without (0) and with (1) the class.

    Returns:
        Area and standard error; two NaN where either side is empty.
    """
    without, with_class = (side[::-1].astype(np.float64) for side in counts_2B)
    num_with, num_all = with_class.sum(), counts_2B.sum()
    if num_with == 0 or num_with == num_all:
        return UNDEFINED
    true = np.cumsum(with_class) - with_class / 2 + 0.5
    false = np.cumsum(without) - without / 2
    found = true + false
    area = float((with_class * true / found).sum() / num_with)
    falls = with_class * true / found**2  # of all the precision in a bin, by one more patient without the class above
    rises = with_class * false / found**2
    by_case = (true / found + rises / 2 + _sum_after(rises) - area) / num_with
    by_control = -(falls / 2 + _sum_after(falls)) / num_with
    spread = (with_class * by_case**2).sum() + (without * by_control**2).sum()
    mean = (with_class * by_case).sum() + (without * by_control).sum()
    return area, math.sqrt(max(0.0, spread - mean**2 / num_all) * num_all / (num_all - 1))


def _sum_after(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each position, the sum of all later ones."""
    after: NDArray[np.float64] = values.sum() - np.cumsum(values)
    return after
