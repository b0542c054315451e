"""The only place that attacks a trained model: from its losses, who was in its training data?

Everything here needs patients' own losses, so it belongs inside the hospital, and so do its results: no epsilon covers
them. A strong result convicts a model; a weak one acquits it of these attacks only.

Shape legend: N = records, S = shadow models.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privacy.bounds import require_count
from privacy.errors import PrivacySettingError
from privacy.lower_bounds import bound_from_rates, clopper_pearson

FALSE_POSITIVE_RATE = 0.01
"""At which the true positive rate is reported: few accusations, so those that are made count."""

SMALLEST_LOSS = 1e-15
"""In nats; below it the confidence of a record is taken as no higher."""

FEWEST_SHADOWS = 4

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MembershipResult:
    """How well scores told members from others.

    Attributes:
        num_members: Records that the model was trained on.
        num_others: Records that it was not.
        auc: Chance that a member scores higher than another; a tie counts half. 0.5 is blind.
        auc_interval: Of ``auc``, with the confidence asked for (DeLong).
        true_positive_rate: Share of members above the threshold.
        true_positive_interval: Of it (Clopper-Pearson).
        false_positive_rate: Share of others above the threshold, at most `FALSE_POSITIVE_RATE`.
        epsilon_lower_bound: See `privacy.lower_bounds.bound_from_rates`, with its caveat.
    """

    num_members: int
    num_others: int
    auc: float
    auc_interval: tuple[float, float]
    true_positive_rate: float
    true_positive_interval: tuple[float, float]
    false_positive_rate: float
    epsilon_lower_bound: float


def measure_attack(members: Scores, others: Scores, *, delta: float, confidence: float = 0.95) -> MembershipResult:
    """Measure an attack by its scores, higher for "member".

    The threshold is a score of ``others``, the first that at most 1 in 100 of them exceed. Choosing it from them costs
    nothing: the true rate above the k-th highest of n scores is distributed as Clopper-Pearson's upper end for k - 1.

    Guarantees:
        - Depends on the order of scores alone.

    Source: DeLong, DeLong, Clarke-Pearson, Biometrics 44 (1988), for the interval of the area.

    Args:
        members: Of at least two records that were trained on; finite.
        others: Of at least two that were not, from the same population.
        delta: At which epsilon is bounded.
        confidence: Of each interval and of the bound.

    >>> result = measure_attack(np.array([3.0, 4.0]), np.array([1.0, 2.0]), delta=1e-5)
    >>> result.auc, result.true_positive_rate, result.false_positive_rate
    (1.0, 1.0, 0.0)
    """
    for name, scores in (("members", members), ("others", others)):
        if len(scores) < 2 or not np.isfinite(scores).all():
            raise PrivacySettingError(f"{name} has {len(scores)} scores; expected at least two, all finite")
    rank = math.floor(FALSE_POSITIVE_RATE * len(others))  # others that may exceed the threshold
    threshold = np.sort(others)[-1 - rank]
    true_positives = int((members > threshold).sum())
    auc, auc_interval = _area(members, others, confidence)
    return MembershipResult(
        num_members=len(members),
        num_others=len(others),
        auc=auc,
        auc_interval=auc_interval,
        true_positive_rate=true_positives / len(members),
        true_positive_interval=clopper_pearson(true_positives, len(members), confidence=confidence),
        false_positive_rate=float((others > threshold).mean()),
        epsilon_lower_bound=bound_from_rates(
            true_positives=true_positives,
            num_members=len(members),
            false_positives=rank,
            num_others=len(others),
            delta=delta,
            confidence=confidence,
        ),
    )


def confidence_logits(losses: Scores) -> Scores:
    """Return the log-odds that the model gave to each record's own label: ln(p / (1 - p)) with p = exp(-loss).

    Close to normal over models, which `likelihood_ratios` takes them to be; higher for a smaller loss.

    Args:
        losses: Cross-entropies in nats, at least 0, of any shape.

    >>> confidence_logits(np.array([math.log(2), math.log(10 / 9)])).round(3)
    array([0.   , 2.197])
    """
    bounded = np.maximum(losses, SMALLEST_LOSS)
    logits: Scores = -bounded - np.log(-np.expm1(-bounded))
    return logits


def train_shadows(
    train_and_measure: Callable[[NDArray[np.int64]], Scores],
    num_records: int,
    *,
    num_shadows: int,
    generator: np.random.Generator,
    on_shadow: Callable[[], None] = lambda: None,
) -> tuple[Scores, NDArray[np.bool_]]:
    """Train shadow models, each on a random half of all records, and measure each on all of them.

    Guarantees:
        - Every record is in exactly half of the shadow models' training data.

    Args:
        train_and_measure: Trains a fresh model on these records, gives its ``confidence_logits`` of all N.
        num_records: N.
        num_shadows: An even number, at least `FEWEST_SHADOWS`.
        generator: Draws the halves; an attacker's coins need no secrecy.
        on_shadow: Called after each, to show progress.

    Returns:
        Confidences [S, N], and whether the record was in [S, N].

    >>> _, is_in = train_shadows(
    ...     lambda rows: np.zeros(6), 6, num_shadows=4, generator=np.random.default_rng(0)
    ... )
    >>> is_in.sum(axis=0)
    array([2, 2, 2, 2, 2, 2])
    """
    require_count("num_shadows", num_shadows, at_least=FEWEST_SHADOWS)
    if num_shadows % 2:
        raise PrivacySettingError(f"num_shadows={num_shadows}; expected an even number, for each half and its rest")
    is_in = np.zeros((num_shadows, num_records), dtype=np.bool_)
    confidences = np.empty((num_shadows, num_records))
    for shadow in range(num_shadows):
        if shadow % 2:
            is_in[shadow] = ~is_in[shadow - 1]
        else:
            is_in[shadow, generator.permutation(num_records)[: num_records // 2]] = True
        confidences[shadow] = train_and_measure(np.flatnonzero(is_in[shadow]))
        on_shadow()
    return confidences, is_in


def likelihood_ratios(target: Scores, shadows: Scores, is_in: NDArray[np.bool_]) -> Scores:
    """Score each record by how much likelier its confidence is among shadow models that had it than among the others.

    A record's confidences are taken as normal, with means of its own and standard deviations that all records share,
    which few shadow models estimate better than one for each.

    Source: Carlini et al., "Membership Inference Attacks From First Principles", arXiv 2112.03570 (LiRA, online).

    Args:
        target: [N] confidences of the attacked model.
        shadows: [S, N] of the shadow models.
        is_in: [S, N]; each record in at least one and out of at least one.

    Returns:
        [N] log-likelihood ratios.
    """
    with_record, without = (np.ma.masked_array(shadows, mask=mask) for mask in (~is_in, is_in))
    log_density = [
        stats.norm.logpdf(target, part.mean(axis=0).data, math.sqrt(part.var(axis=0).mean()) + 1e-9)
        for part in (with_record, without)
    ]
    scores: Scores = log_density[0] - log_density[1]
    return scores


def _area(members: Scores, others: Scores, confidence: float) -> tuple[float, tuple[float, float]]:
    """Area under the ROC curve and its interval, from the share of the other side that each score exceeds."""
    of_members, of_others = _placements(members, others), 1 - _placements(others, members)
    area = float(of_members.mean())
    error = math.sqrt(of_members.var(ddof=1) / len(members) + of_others.var(ddof=1) / len(others))
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * error
    return area, (max(0.0, area - reach), min(1.0, area + reach))


def _placements(scores: Scores, against: Scores) -> Scores:
    """Share of ``against`` that each score exceeds, ties half."""
    ordered = np.sort(against)
    below, up_to = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    shares: Scores = (below + up_to) / 2 / len(ordered)
    return shares
