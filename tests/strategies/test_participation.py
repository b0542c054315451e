"""Who is asked, how many must answer and how much each counts follow the settings, and are repeatable from a seed."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from flwr.serverapp import Grid

from fl_contract.errors import SettingError
from strategies.attendance import Attendance
from strategies.participation import Roster, SiteSampling, SiteWeighting
from strategies.regions import Regions

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


REGIONS = {site: "north" if index < 7 else "south" for index, site in enumerate(TEN)}


def by_region(*, min_each: int, fraction: float, regions: dict[str, str] | None = None) -> SiteSampling:
    of = REGIONS if regions is None else regions
    kept = Regions.for_sites(of, min_each, sorted(of))
    return SiteSampling(min_sites=1, fraction=fraction, generator=np.random.default_rng(7), regions=kept)


@pytest.mark.parametrize(
    ("min_each", "fraction", "num_asked"),
    [(1, 0.2, 2), (1, 0.5, 5), (2, 0.2, 4), (3, 0.3, 6), (3, 0.9, 9), (3, 1.0, 10)],  # the minima may ask for more
)
def test_every_round_asks_the_minimum_of_each_region(min_each: int, fraction: float, num_asked: int) -> None:
    choice = by_region(min_each=min_each, fraction=fraction)

    for _ in range(50):
        chosen = choice.choose(TEN)
        regions = [REGIONS[site] for site in chosen]
        assert (len(set(chosen)), chosen) == (num_asked, tuple(sorted(chosen)))
        assert min(regions.count("north"), regions.count("south")) >= min_each


def test_within_a_region_every_site_is_asked_equally_often_and_the_draw_is_repeatable() -> None:
    first, second = by_region(min_each=1, fraction=0.4), by_region(min_each=1, fraction=0.4)

    asked = [site for _ in range(2000) for site in first.choose(TEN)]

    assert asked == [site for _ in range(2000) for site in second.choose(TEN[::-1])]
    # One of 7 and one of 3, then two of the 8 that are left: north has 6 of these, south 2.
    north, south = (1 + 2 * 6 / 8) / 7, (1 + 2 * 2 / 8) / 3
    for site in TEN:
        share = north if REGIONS[site] == "north" else south
        # Five standard errors over 2,000 rounds; another seed would exceed them less than once in 10^5 times.
        assert abs(asked.count(site) / 2000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5


def test_a_region_whose_hospitals_are_set_aside_asks_them_and_those_that_are_not_there_are_not_drawn() -> None:
    attendance = Attendance(set_aside_after=1, min_sites=1)
    for site in ("site-7", "site-8"):
        attendance.observe(site, "deadline", server_round=1)
    attendance.begin(2, awaited={"site-0"})
    one = replace(by_region(min_each=1, fraction=0.2), attendance=attendance)
    two = replace(by_region(min_each=2, fraction=0.2), attendance=attendance)

    asked_one, asked_two = one.choose(TEN), two.choose(TEN)

    assert "site-9" in asked_one  # the only one of the south that is well
    assert not {"site-0", "site-7", "site-8"} & set(asked_one)
    assert {"site-7", "site-8", "site-9"} < set(asked_two)  # two of the south are needed
    assert "site-0" not in asked_two


@pytest.mark.parametrize(
    ("regions", "min_each", "rule"),
    [
        ({"a": "north"}, 1, r"federation\.regions has no region for \['b'\]; expected one for every hospital"),
        (
            {"a": "north", "b": "south"},
            2,
            r"min-per-region=2; region 'north' has 1 hospitals that train, \['a'\]; lower it, or join regions",
        ),
        ({"a": "north", "b": "north", "c": "south"}, 1, r"region 'south' has 0 hospitals that train, \[\]"),
    ],
)
def test_regions_that_cannot_be_kept_are_an_error(regions: dict[str, str], min_each: int, rule: str) -> None:
    with pytest.raises(SettingError, match=rule):
        Regions.for_sites(regions, min_each, ["a", "b"])


def test_a_share_is_of_all_sites_and_those_set_aside_come_on_top() -> None:
    attendance = Attendance(set_aside_after=1, min_sites=1)
    for site in ("site-0", "site-1"):
        attendance.observe(site, "deadline", server_round=1 if site == "site-0" else 2)
    attendance.begin(3)
    choice = replace(sampling(fraction=0.5), attendance=attendance)

    chosen = choice.choose(TEN)

    assert len(chosen) == 5 + 1
    assert "site-0" in chosen  # due
    assert "site-1" not in chosen
