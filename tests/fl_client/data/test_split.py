"""No patient is lost, none is in two places, and the same seed deals them out in the same way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_client.data.split import hold_out, split_by_class

labels_of_any_size = st.lists(st.sampled_from(["benign", "malignant", "unclear"]), max_size=60).map(
    lambda names: np.array(names, dtype=np.str_)
)
seeds = st.integers(0, 2**32 - 1)


@given(labels_of_any_size, st.integers(1, 7), st.floats(0.05, 50.0), seeds)
def test_every_row_is_in_exactly_one_part(labels: NDArray[np.str_], num_parts: int, alpha: float, seed: int) -> None:
    parts = split_by_class(labels, num_parts=num_parts, alpha=alpha, generator=np.random.default_rng(seed))

    assert len(parts) == num_parts
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


@given(labels_of_any_size, st.floats(0.01, 0.99), seeds)
def test_every_row_is_either_trained_on_or_held_out(labels: NDArray[np.str_], fraction: float, seed: int) -> None:
    rows = np.random.default_rng(seed).permutation(len(labels))[: len(labels) // 2]

    train, test = hold_out(labels, rows, fraction=fraction, generator=np.random.default_rng(seed))

    assert sorted([*train.tolist(), *test.tolist()]) == sorted(rows.tolist())


@given(labels_of_any_size, st.floats(0.01, 0.99), seeds)
def test_a_class_with_two_rows_is_on_both_sides(labels: NDArray[np.str_], fraction: float, seed: int) -> None:
    rows = np.arange(len(labels))

    train, test = hold_out(labels, rows, fraction=fraction, generator=np.random.default_rng(seed))

    names, counts = np.unique(labels, return_counts=True)
    several = set(names[counts >= 2])
    assert several <= set(labels[train])
    assert several <= set(labels[test])


@given(labels_of_any_size, seeds)
def test_the_same_seed_gives_the_same_split(labels: NDArray[np.str_], seed: int) -> None:
    def split() -> list[list[int]]:
        generator = np.random.default_rng(seed)
        parts = split_by_class(labels, num_parts=3, alpha=1.0, generator=generator)
        return [side.tolist() for rows in parts for side in hold_out(labels, rows, fraction=0.3, generator=generator)]

    assert split() == split()


def test_another_seed_gives_another_split() -> None:
    labels = np.array(["benign", "malignant"] * 50)

    splits = [
        split_by_class(labels, num_parts=3, alpha=1.0, generator=np.random.default_rng(seed))[0].tolist()
        for seed in (1, 2)
    ]

    assert splits[0] != splits[1]


@pytest.mark.parametrize(("alpha", "is_even"), [(0.5, False), (10_000.0, True)])
def test_a_small_alpha_makes_hospitals_unequal_in_size_and_prevalence(alpha: float, is_even: bool) -> None:
    labels = np.array(["benign"] * 600 + ["malignant"] * 400)

    parts = split_by_class(labels, num_parts=4, alpha=alpha, generator=np.random.default_rng(2026))

    sizes = [len(part) for part in parts]
    prevalences = [float(np.mean(labels[part] == "malignant")) for part in parts]
    # An even part has 250 rows, 40 % of them malignant.
    assert (max(sizes) < 1.1 * min(sizes)) == is_even
    assert (max(prevalences) - min(prevalences) < 0.05) == is_even


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"),
    [(10, 0.3, 3), (10, 0.01, 1), (10, 0.99, 9), (2, 0.5, 1), (1, 0.4, 0), (1, 0.6, 1)],
)
def test_the_share_that_is_held_out_is_rounded(count: int, fraction: float, held_out: int) -> None:
    labels = np.array(["benign"] * count)

    _, test = hold_out(labels, np.arange(count), fraction=fraction, generator=np.random.default_rng(0))

    assert len(test) == held_out
