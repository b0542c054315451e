"""Who is asked, how many must answer and how much each counts follow the settings, and are repeatable from a seed."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.serverapp import Grid

from fl_contract.errors import SettingError
from strategies.participation import Roster, SiteSampling, SiteWeighting

TEN = tuple(f"site-{number}" for number in range(10))


def sampling(*, min_sites: int = 1, fraction: float = 1.0, seed: int = 7) -> SiteSampling:
    return SiteSampling(min_sites=min_sites, fraction=fraction, generator=np.random.default_rng(seed))


@pytest.mark.parametrize(("min_sites", "fraction"), [(1, 1.0), (10, 0.1), (11, 0.1), (1, 0.91)])
def test_asking_everybody_draws_nothing(min_sites: int, fraction: float) -> None:
    choice = sampling(min_sites=min_sites, fraction=fraction)
    before = choice.generator.bit_generator.state

    chosen = choice.choose(TEN[::-1])

    assert chosen == TEN  # sorted by name
    assert choice.generator.bit_generator.state == before


@pytest.mark.parametrize(
    ("num_sites", "fraction", "min_sites", "expected"),
    [
        (10, 0.5, 1, 5),
        (10, 0.41, 1, 5),  # 4.1 rounds up
        (10, 0.001, 1, 1),
        (10, 0.2, 4, 4),  # the quorum is the floor
        (3, 0.5, 5, 3),  # no more than there are
        (25, 0.28, 1, 7),  # 0.28 * 25 is 7, though not in floating point
        (50, 0.14, 1, 7),
        (0, 0.5, 2, 0),
    ],
)
def test_the_number_asked_is_the_share_rounded_up_and_at_least_the_quorum(
    num_sites: int, fraction: float, min_sites: int, expected: int
) -> None:
    chosen = sampling(min_sites=min_sites, fraction=fraction).choose([f"site-{n}" for n in range(num_sites)])

    assert len(chosen) == len(set(chosen)) == expected


def test_the_draw_is_repeated_by_the_seed_and_not_by_the_order_of_the_list() -> None:
    first, second = sampling(fraction=0.3), sampling(fraction=0.3)

    rounds = [first.choose(TEN) for _ in range(20)]

    assert rounds == [second.choose(TEN[::-1]) for _ in range(20)]
    assert len(set(rounds)) > 1
    assert all(list(chosen) == sorted(chosen) for chosen in rounds)


def test_every_site_is_asked_equally_often() -> None:
    choice = sampling(fraction=0.3)

    asked = [site for _ in range(2000) for site in choice.choose(TEN)]

    # Each is asked with chance 0.3. The standard error over 2,000 rounds is sqrt(0.3 * 0.7 / 2000) = 0.0102; another
    # seed would exceed 5 of them, at one of ten sites, less than once in 10^5 times.
    assert all(abs(asked.count(site) / 2000 - 0.3) < 5 * 0.0102 for site in TEN)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (SiteWeighting(), 40.0),
        (SiteWeighting(kind="examples"), 40.0),
        (SiteWeighting(kind="equal"), 1.0),
        (SiteWeighting(kind="institution", institution_weights={"a": 0.6, "b": 0.4}), 0.6),
    ],
)
def test_a_site_weighs_what_the_study_says(weighting: SiteWeighting, expected: float) -> None:
    assert weighting.weigh("a", 40.0) == expected


@pytest.mark.parametrize("weights", [None, {}, {"b": 0.4}])
def test_a_site_without_a_weight_is_an_error(weights: dict[str, float] | None) -> None:
    weighting = SiteWeighting(kind="institution", institution_weights=weights)

    with pytest.raises(
        SettingError, match="institution-weights has no weight for 'a'; expected one for every hospital"
    ):
        weighting.weigh("a", 40.0)


def test_a_grid_is_a_roster_of_its_nodes(grid_of: Callable[..., Grid]) -> None:
    roster = Roster.of_grid(grid_of(1002, 1001))

    assert roster.nodes == {"1001": 1001, "1002": 1002}
    assert roster.trainers == roster.evaluators == ("1001", "1002")
