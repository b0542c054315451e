"""Robust rules against NumPy, SciPy and brute force, and against hospitals that send what they should not."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import trim_mean

from fl_contract.array_record import Arrays
from strategies import blocks
from strategies.centred_clipping import CentredClipping
from strategies.fedavg import FedAvg
from strategies.geometric_median import GeometricMedian
from strategies.krum import Krum
from strategies.median import Median
from strategies.norm_bounding import NormBounding
from strategies.participation import Roster
from strategies.robust import RobustStrategy
from strategies.sorting_network import comparators, gather, sorted_rows
from strategies.trimmed_mean import TrimmedMean

RunRound = Callable[..., Arrays]
MakeRoster = Callable[..., Roster]


def sites(count: int) -> tuple[str, ...]:
    return tuple(f"h{number:02}" for number in range(count))


def answers(rows: NDArray[np.float32]) -> dict[str, Arrays]:
    return {site: {"w": row} for site, row in zip(sites(len(rows)), rows, strict=True)}


def rows_of(count: int, *, size: int = 7, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


@pytest.mark.parametrize("count", range(1, 10))
def test_the_network_sorts_every_pattern_of_noughts_and_ones(count: int) -> None:
    """Which is enough: the 0-1 principle (Knuth 5.3.4, theorem Z)."""
    patterns = np.array(list(itertools.product([0.0, 1.0], repeat=count))).T.copy()
    expected = np.sort(patterns, axis=0)

    assert np.array_equal(np.array(sorted_rows(gather(list(patterns), float), range(count))), expected)


@given(st.integers(10, 70))
def test_the_network_sorts_more_rows(count: int) -> None:
    block = rows_of(count, size=33, seed=count)
    expected = np.sort(block, axis=0)

    assert np.array_equal(np.array(sorted_rows(gather(list(block), np.float32), range(count))), expected)
    assert len(comparators(count)) < count * np.log2(count) ** 2 / 2 + count


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10, 50])
@pytest.mark.parametrize("block", [16, 1 << 15])
def test_the_median_is_numpys(
    count: int, block: int, run_round: RunRound, roster_of: MakeRoster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    rows = rows_of(count, size=50)

    model = run_round(Median(roster=roster_of(*sites(count))), {"w": np.zeros(50, np.float32)}, answers(rows))

    assert model["w"] == pytest.approx(np.median(rows, axis=0), abs=1e-7)


@pytest.mark.parametrize("count", [9, 41])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_model_with_a_number_that_is_not_finite_does_not_count_as_one_of_the_median(
    count: int, odd: float, run_round: RunRound, roster_of: MakeRoster
) -> None:
    rows = rows_of(count)
    rows[3, 5] = odd
    strategy = Median(roster=roster_of(*sites(count)))

    model = run_round(strategy, {"w": np.zeros(7, np.float32)}, answers(rows))

    assert model["w"] == pytest.approx(np.median(np.delete(rows, 3, axis=0), axis=0), abs=1e-7)
    assert list(strategy.outcome.left_out) == [sites(count)[3]]


@pytest.mark.parametrize("count", [1, 4, 5, 10, 11, 50])
@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4])
def test_the_trimmed_mean_is_scipys(count: int, fraction: float, run_round: RunRound, roster_of: MakeRoster) -> None:
    rows = rows_of(count)
    strategy = TrimmedMean(trim_fraction=fraction, roster=roster_of(*sites(count)))

    model = run_round(strategy, {"w": np.zeros(7, np.float32)}, answers(rows))

    assert model["w"] == pytest.approx(trim_mean(rows.astype(float), fraction, axis=0), abs=1e-6)


@pytest.mark.parametrize(("num_hostile", "num_chosen"), [(0, 1), (1, 1), (2, 3), (5, 2)])
def test_krum_is_brute_force(num_hostile: int, num_chosen: int, run_round: RunRound, roster_of: MakeRoster) -> None:
    rows = rows_of(7)
    strategy = Krum(num_hostile=num_hostile, num_chosen=num_chosen, roster=roster_of(*sites(7)))

    model = run_round(strategy, {"w": np.full(7, 0.5, np.float32)}, answers(rows))

    scores = []
    for row in rows:
        distances = sorted(float(np.square(row - other).sum()) for other in rows)[1:]
        scores.append(sum(distances[: max(1, 7 - num_hostile - 2)]))
    chosen = np.argsort(scores)[:num_chosen]
    assert model["w"] == pytest.approx(rows[chosen].mean(axis=0), abs=1e-6)


def test_the_geometric_median_is_the_least_summed_distance(run_round: RunRound, roster_of: MakeRoster) -> None:
    rows = rows_of(6, size=3)

    model = run_round(GeometricMedian(roster=roster_of(*sites(6))), {"w": np.zeros(3, np.float32)}, answers(rows))

    best = minimize(
        lambda x: float(np.linalg.norm(rows.astype(float) - x, axis=1).sum()),
        rows.mean(axis=0),
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-12},
    )
    assert model["w"] == pytest.approx(best.x, abs=1e-3)


def test_norm_bounding_shortens_long_updates_only(run_round: RunRound, roster_of: MakeRoster) -> None:
    start = np.array([1.0, 1.0], np.float32)
    rows = np.array([[1.0 + 6.0, 1.0 + 8.0], [1.0, 1.0 + 0.5]], np.float32)  # updates of length 10 and 0.5

    model = run_round(NormBounding(update_bound=2.0, roster=roster_of(*sites(2))), {"w": start}, answers(rows))

    assert model["w"] == pytest.approx([1 + (6 * 0.2) / 2, 1 + (8 * 0.2 + 0.5) / 2], abs=1e-6)


def test_centred_clipping_follows_its_formula(run_round: RunRound, roster_of: MakeRoster) -> None:
    rows, radius = rows_of(5) * 3, 1.5

    model = run_round(
        CentredClipping(clip_radius=radius, roster=roster_of(*sites(5))), {"w": np.ones(7, np.float32)}, answers(rows)
    )

    v = np.ones(7)
    for _ in range(5):
        v = v + np.mean([(u - v) * min(1.0, radius / float(np.linalg.norm(u - v))) for u in rows.astype(float)], axis=0)
    assert model["w"] == pytest.approx(v, abs=1e-6)


ROBUST: dict[str, Callable[..., RobustStrategy]] = {
    "median": Median,
    "trimmed mean": lambda **common: TrimmedMean(trim_fraction=0.2, **common),
    "krum": lambda **common: Krum(num_hostile=1, **common),
    "multi-krum": lambda **common: Krum(num_hostile=1, num_chosen=3, **common),
    "geometric median": GeometricMedian,
    "centred clipping": lambda **common: CentredClipping(clip_radius=3.0, **common),
}


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("attack", ["ten times backwards", "random", "huge"])
def test_one_hostile_hospital_of_five_moves_the_model_little(
    name: str, attack: str, run_round: RunRound, roster_of: MakeRoster
) -> None:
    honest = 1.0 + rows_of(4, size=40) * 0.1
    hostile = {
        "ten times backwards": -10 * honest.mean(axis=0),
        "random": np.random.default_rng(1).normal(size=40) * 20,
        "huge": np.full(40, 1e30),
    }[attack].astype(np.float32)
    sent = answers(np.vstack([honest, hostile]).astype(np.float32))
    start = {"w": np.zeros(40, np.float32)}

    model = run_round(ROBUST[name](roster=roster_of(*sites(5))), start, sent)["w"]
    mean = run_round(FedAvg(roster=roster_of(*sites(5))), start, sent)["w"]

    spread = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
    off = np.linalg.norm(model.astype(float) - honest.mean(axis=0))
    assert off < 4 * spread
    assert off < np.linalg.norm(mean.astype(float) - honest.mean(axis=0)) / 2


@pytest.mark.parametrize("name", [name for name in ROBUST if "median" not in name and name != "trimmed mean"])
def test_counters_do_not_decide_who_is_near(name: str, run_round: RunRound, roster_of: MakeRoster) -> None:
    rows = rows_of(5) * 0.1
    plain = run_round(ROBUST[name](roster=roster_of(*sites(5))), {"w": np.zeros(7, np.float32)}, answers(rows))
    counted = {
        site: arrays | {"batches": np.array(1000 * number)}
        for number, (site, arrays) in enumerate(answers(rows).items())
    }
    start = {"w": np.zeros(7, np.float32), "batches": np.array(0)}

    strategy = ROBUST[name](roster=roster_of(*sites(5)), buffer_names={"batches"})

    assert np.array_equal(run_round(strategy, start, counted)["w"], plain["w"])
