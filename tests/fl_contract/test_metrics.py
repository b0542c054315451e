"""Merged measurements are those of all patients together, and areas under curves are as exact as their bins."""

import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from fl_contract.metrics import measurement_from_json
from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.histogram import NUM_BINS, ScoreHistogram, centres
from fl_contract.metrics.noised import NoisedCounts, cells_of_patients, cells_sensitivity, count_scored_classes

Logits = NDArray[np.float64]
Labels = NDArray[np.int64]


def histogram(logits: Sequence[float], labels: Sequence[int]) -> ScoreHistogram:
    return ScoreHistogram.from_logits(np.array(logits, dtype=float).reshape(-1, 1), np.array(labels, dtype=np.int64))


def half_the_tied_share(counts: NDArray[np.int64]) -> float:
    """Of one class: half the share of pairs, one with and one without the class, that fall in one bin."""
    without, with_class = counts.astype(float)
    return float((without * with_class).sum() / (without.sum() * with_class.sum()) / 2)


def evaluate(logits: Logits, labels: Labels) -> Evaluation:
    """A measurement with a loss of its own kind, which only has to add up."""
    return Evaluation.of(logits, labels, loss_sum=float(np.abs(logits).sum()))


@st.composite
def binary_patients(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """Scores on both sides of the histogram's range, at least one patient with and one without the class."""
    patients = st.lists(st.tuples(st.floats(-12, 12), st.integers(0, 1)), max_size=60)
    drawn = [(draw(st.floats(-12, 12)), 0), (draw(st.floats(-12, 12)), 1), *draw(patients)]
    return [score for score, _ in drawn], [label for _, label in drawn]


@settings(deadline=None, max_examples=50)
@given(binary_patients())
def test_the_area_is_exact_up_to_half_the_tied_share(patients: tuple[list[float], list[int]]) -> None:
    logits, labels = patients
    scores = histogram(logits, labels)

    exact = roc_auc_score(labels, logits)

    assert abs(scores.auroc() - exact) <= half_the_tied_share(scores.counts[0]) + 1e-12


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, NUM_BINS - 1), min_size=40, max_size=40, unique=True),
    st.lists(st.integers(0, 1), min_size=38, max_size=38),
)
def test_areas_are_exact_when_no_two_patients_share_a_bin(bins: list[int], middle: list[int]) -> None:
    logits = [centres(NUM_BINS)[number] for number in bins]
    labels = [0, *middle, 1]

    scores = histogram(logits, labels)

    assert scores.auroc() == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert scores.auprc_with_error()[0] == pytest.approx(average_precision_score(labels, logits), abs=1e-12)


@st.composite
def multiclass_patients(draw: st.DrawFn) -> tuple[Logits, Labels]:
    """Outputs of a model for three to five classes, each with at least one patient."""
    num_classes = draw(st.integers(3, 5))
    labels = [*range(num_classes), *draw(st.lists(st.integers(0, num_classes - 1), max_size=30))]
    row = st.lists(st.floats(-4, 4), min_size=num_classes, max_size=num_classes)
    outputs = np.array(draw(st.lists(row, min_size=len(labels), max_size=len(labels))))
    return outputs, np.array(labels, dtype=np.int64)


@settings(deadline=None, max_examples=50)
@given(multiclass_patients())
def test_several_classes_give_the_macro_mean_of_one_against_the_rest(patients: tuple[Logits, Labels]) -> None:
    outputs, labels = patients
    exponentials = np.exp(outputs)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    scores = ScoreHistogram.from_logits(np.log(probabilities / (1 - probabilities)), labels)

    exact = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")

    allowed = float(np.mean([half_the_tied_share(counts) for counts in scores.counts]))
    assert abs(scores.auroc() - exact) <= allowed + 1e-9


def test_a_perfect_a_reversed_and_a_tied_ranking() -> None:
    assert histogram([-1, 1], [0, 1]).auroc() == 1.0
    assert histogram([-1, 1], [1, 0]).auroc() == 0.0
    assert histogram([0.01, 0.02], [0, 1]).auroc() == 0.5  # one bin


def test_an_area_by_hand() -> None:
    # Cases at 3 and 1, controls at 2 and 0: of 4 pairs, 3 > 2, 3 > 0 and 1 > 0 are in order.
    assert histogram([3, 1, 2, 0], [1, 1, 0, 0]).auroc() == 0.75


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
def test_one_class_alone_has_no_area(labels: list[int]) -> None:
    assert math.isnan(histogram([0.0] * len(labels), labels).auroc())


def test_a_class_that_no_patient_has_is_left_out_of_the_macro_mean() -> None:
    logits = np.array([[2.0, -2.0, 0.0], [-2.0, 2.0, 0.0]])

    scores = ScoreHistogram.from_logits(logits, np.array([0, 1]))

    assert scores.auroc() == 1.0


@settings(deadline=None, max_examples=50)
@given(binary_patients())
def test_the_area_under_the_points_of_the_curve_is_the_area(patients: tuple[list[float], list[int]]) -> None:
    scores = histogram(*patients)

    false_rate, true_rate = scores.roc()

    assert (false_rate[0], true_rate[0]) == (0.0, 0.0)
    assert (false_rate[-1], true_rate[-1]) == (1.0, 1.0)
    assert false_rate.shape == true_rate.shape == (NUM_BINS + 1,)
    trapezoids = (np.diff(false_rate) * (true_rate[1:] + true_rate[:-1]) / 2).sum()
    assert scores.auroc() == pytest.approx(trapezoids, abs=1e-12)


def test_a_curve_of_one_class_is_nan_on_the_other_axis() -> None:
    false_rate, true_rate = histogram([0.0, 1.0], [1, 1]).roc()

    assert np.isnan(false_rate[1:]).all()
    assert true_rate[-1] == 1.0


@pytest.mark.parametrize(
    ("logit", "expected"),
    [
        (-1e30, 0),
        (-40.0, 0),
        (-38.5, 1),
        (-8.01, 31),
        (-8.0, 32),
        (-7.97, 32),
        (-7.96, 33),
        (-0.01, 287),
        (0.0, 288),
        (0.03, 288),
        (7.99, 543),
        (8.0, 544),
        (39.5, 575),
        (1e30, 575),
    ],
)
def test_scores_beyond_the_range_are_counted_in_the_last_bins(logit: float, expected: int) -> None:
    counts = histogram([logit], [1]).counts

    # A bin is a 32nd of a logit wide, or one beyond 8, and holds its lower edge.
    assert np.argwhere(counts).tolist() == [[0, 1, expected]]


def test_patients_are_counted_once_in_each_class() -> None:
    labels = np.array([0, 2, 2, 1, 0])
    scores = ScoreHistogram.from_logits(np.random.default_rng(0).normal(size=(5, 3)), labels)

    assert scores.counts.dtype == np.int64
    assert scores.counts.sum(axis=(1, 2)).tolist() == [5, 5, 5]
    assert scores.counts[:, 1].sum(axis=1).tolist() == [2, 1, 2]
    assert (scores.num_examples, scores.num_positive) == (5, 2)


@settings(deadline=None, max_examples=50)
@given(binary_patients(), st.integers(1, 20))
def test_calibration_groups_hold_every_patient_once(patients: tuple[list[float], list[int]], num_groups: int) -> None:
    logits, labels = patients

    predicted, observed, counts = histogram(logits, labels).calibration(num_groups)

    assert counts.sum() == len(labels)
    assert (counts > 0).all()
    assert (observed * counts).sum() == pytest.approx(sum(labels), abs=1e-9)
    assert (np.diff(predicted) > 0).all()
    group = np.minimum(np.floor(predicted * num_groups + 1e-9), num_groups - 1)
    assert len(set(group)) == len(group)


def test_calibration_by_hand() -> None:
    # Logits 2.0 and 2.03 lie in [2, 2 + 1/32), of which the middle is 2 + 1/64; -0.01 lies in [-1/32, 0).
    predicted, observed, counts = histogram([2.0, 2.03, -0.01], [1, 0, 0]).calibration()

    right = 1 / (1 + math.exp(-2 - 1 / 64)), 1 / (1 + math.exp(1 / 64))
    assert predicted == pytest.approx(right[::-1], abs=1e-15)
    assert observed.tolist() == [0.0, 0.5]
    assert counts.tolist() == [1, 2]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(-12, 12), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=40), st.data()
)
def test_the_merged_measurement_is_that_of_the_pooled_patients(
    patients: list[tuple[float, int, int]], data: st.DataObject
) -> None:
    logits, labels, sites = (np.array(column) for column in zip(*patients, strict=True))
    logits = logits.reshape(-1, 1)
    parts = [evaluate(logits[sites == site], labels[sites == site]) for site in sorted(set(sites))]
    pooled = evaluate(logits, labels)

    merged = Evaluation.merge(parts)
    shuffled = Evaluation.merge(data.draw(st.permutations(parts)))
    nested = Evaluation.merge([Evaluation.merge(parts[:1]), Evaluation.merge(parts[1:] or parts[:1])])

    assert np.array_equal(merged.scores.counts, pooled.scores.counts)
    assert (merged.num_examples, merged.num_correct) == (pooled.num_examples, pooled.num_correct)
    assert merged.loss_sum == pytest.approx(pooled.loss_sum, rel=1e-12, abs=1e-12)
    assert merged.decisions == pooled.decisions
    assert merged.brier_sum == pytest.approx(pooled.brier_sum, abs=1e-12)
    assert merged.brier_square_sum == pytest.approx(pooled.brier_square_sum, abs=1e-12)
    assert shuffled.to_numbers() == merged.to_numbers()  # to the bit
    assert np.array_equal(shuffled.scores.counts, merged.scores.counts)
    if len(parts) > 1:
        assert np.array_equal(nested.scores.counts, merged.scores.counts)
        assert nested.loss_sum == pytest.approx(merged.loss_sum, rel=1e-12, abs=1e-12)


def test_one_measurement_alone_is_merged_to_itself() -> None:
    alone = evaluate(np.array([[0.3], [-2.0]]), np.array([1, 0]))

    merged = Evaluation.merge(iter([alone]))

    assert (merged.num_examples, merged.loss_sum, merged.num_correct) == (2, 2.3, 2)
    assert merged.auroc == alone.auroc == 1.0


def test_means_are_per_patient() -> None:
    small = Evaluation.of(np.ones((1, 1)), np.array([0]), loss_sum=4.0)
    large = Evaluation.of(np.ones((3, 1)), np.ones(3, dtype=np.int64), loss_sum=2.0)

    merged = Evaluation.merge([small, large])

    # (4 + 2) / (1 + 3); the mean of the two means would be 2.33.
    assert merged.loss == 1.5
    assert merged.accuracy == 0.75


def test_sums_of_losses_are_the_same_in_every_order() -> None:
    losses = [0.1, 0.2, 0.3]  # 0.1 + 0.2 + 0.3 is 0.6000000000000001 from the left, 0.6 from the right
    parts = [Evaluation.of(np.array([[loss]]), np.array([0]), loss_sum=loss) for loss in losses]

    merged = [Evaluation.merge(order) for order in itertools.permutations(parts)]

    assert len({(each.loss_sum, each.brier_sum, each.brier_square_sum) for each in merged}) == 1


@pytest.mark.parametrize(
    "shape",
    [
        (2, NUM_BINS),
        (NUM_BINS,),
        (0, 2, NUM_BINS),
        (1, 1, NUM_BINS),
        (1, 3, NUM_BINS),
        (1, 2, NUM_BINS - 1),
        (1, 2, 0),
        (),
    ],
)
def test_a_histogram_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"expected \[classes, 2, {NUM_BINS}\]$"):
        ScoreHistogram(counts=np.zeros(shape, np.int64))


def test_a_negative_count_is_refused() -> None:
    counts = np.zeros((1, 2, NUM_BINS), np.int64)
    counts[0, 1, 5] = -1

    with pytest.raises(ValueError, match="negative count; counts are at least 0"):
        ScoreHistogram(counts=counts)


def test_nothing_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="nothing to merge; expected at least one evaluation"):
        Evaluation.merge([])


def test_different_thresholds_cannot_be_merged() -> None:
    low, high = (
        Evaluation.of(np.zeros((1, 1)), np.array([0]), loss_sum=0.0, threshold=threshold) for threshold in (0.2, 0.5)
    )

    with pytest.raises(ValueError, match="decide by different thresholds; they cannot be merged"):
        Evaluation.merge([low, high])


def test_different_numbers_of_classes_cannot_be_merged() -> None:
    two = evaluate(np.zeros((1, 1)), np.array([0]))
    three = evaluate(np.zeros((1, 3)), np.array([0]))

    with pytest.raises(ValueError, match="different numbers of classes; they cannot be merged"):
        Evaluation.merge([two, three])


def without_noise(logits: Logits, labels: Labels, scale: float = 1e-9) -> Evaluation:
    """What a hospital would send if its noise were nil."""
    cells = cells_of_patients(logits, labels).sum(axis=0).astype(np.int64)
    return Evaluation.from_noised(NoisedCounts(cells=cells, noise_scale=scale))


@pytest.mark.parametrize("num_scored", [1, 3])
def test_each_patient_adds_the_stated_norm_to_the_cells(num_scored: int) -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 6, (50, num_scored))
    labels = generator.integers(0, max(2, num_scored), 50)

    rows = cells_of_patients(logits, labels)

    assert np.linalg.norm(rows, axis=1).max() <= cells_sensitivity(num_scored) * (1 + 1e-12)


@pytest.mark.parametrize("num_scored", [1, 3])
def test_coarse_counts_give_the_measurement_up_to_their_bins(num_scored: int) -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, max(2, num_scored), 400)
    positive = labels[:, np.newaxis] == (np.arange(num_scored) if num_scored > 1 else 1)
    logits = np.where(positive, 1.5, -1.5) + generator.normal(0, 1.5, (400, num_scored))

    coarse = without_noise(logits, labels)

    assert coarse.num_examples == 400
    assert coarse.num_correct == int(
        ((logits[:, 0] > 0) == labels).sum() if num_scored == 1 else (logits.argmax(axis=1) == labels).sum()
    )
    exact = ScoreHistogram.from_logits(logits, labels).auroc()
    assert abs(coarse.auroc - exact) < 0.03
    losses = np.logaddexp(0, np.where(positive, -logits, logits))
    exact_loss = losses.mean() if num_scored == 1 else losses[positive].mean()
    assert abs(coarse.loss - exact_loss) < 0.15  # a bin is two logits wide


def test_noised_counts_of_hospitals_add_up_before_they_are_made_possible() -> None:
    # Hospital 1 has 3 without and 3 with the class; noise took 2 off an empty cell, and gives 2 at hospital 2.
    one, two = np.zeros(16, np.int64), np.zeros(16, np.int64)
    one[[0, 3, 15]] = 3, -2, 3
    two[[0, 3, 15]] = 4, 2, 4
    parts = [Evaluation.from_noised(NoisedCounts(cells=cells, noise_scale=1.5)) for cells in (one, two)]

    merged = Evaluation.merge(parts)

    assert merged.noised is not None
    assert merged.noised.cells.tolist() == (one + two).tolist()
    assert merged.noised.noise_scale == pytest.approx(1.5 * math.sqrt(2))
    assert (merged.num_examples, merged.num_correct, merged.auroc) == (14, 14, 1.0)


def test_an_exact_measurement_merges_with_a_noised_one_at_the_coarser_bins() -> None:
    logits, labels = np.array([[-5.0], [-0.1], [3.0]]), np.array([0, 1, 1])

    merged = Evaluation.merge([evaluate(logits, labels), without_noise(logits, labels, scale=2.0)])

    assert merged.noised is not None
    assert merged.noised.cells.tolist() == (2 * cells_of_patients(logits, labels).sum(axis=0)).astype(int).tolist()
    assert merged.noised.noise_scale == 2.0


def test_noise_that_drowns_everybody_still_gives_a_measurement() -> None:
    drowned = Evaluation.from_noised(NoisedCounts(cells=np.full(16, -40), noise_scale=30.0))

    assert drowned.num_examples == 1
    assert 0 <= drowned.num_correct <= 1
    assert math.isfinite(drowned.loss)


def test_a_noised_measurement_survives_json() -> None:
    noised = Evaluation.from_noised(NoisedCounts(cells=np.arange(33) - 4, noise_scale=2.5))

    again = measurement_from_json(json.loads(json.dumps(noised.to_json())))

    assert again.to_json() == noised.to_json()
    assert again.noised is not None


@pytest.mark.parametrize("num_cells", [0, 1, 15, 17, 32, 34])
def test_a_number_of_cells_that_no_classes_have_is_refused(num_cells: int) -> None:
    with pytest.raises(ValueError, match=f"{num_cells} cells; expected 16"):
        count_scored_classes(num_cells)
