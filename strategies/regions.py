"""The only place that knows of regions: how many hospitals of each are asked at least, and who."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from fl_contract.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Regions:
    """A region for each hospital, and how many of each region a round asks at least.

    Attributes:
        of: Region by hospital.
        min_each: Hospitals of each region among those asked; at least 1.
    """

    of: Mapping[str, str]
    min_each: int

    @classmethod
    def for_sites(cls, of: Mapping[str, str], min_each: int, sites: Sequence[str]) -> Self:
        """Regions that these hospitals can keep.

        Raises:
            SettingError: A hospital has no region, or a region has fewer hospitals than the minimum.
        """
        if missing := sorted(set(sites) - set(of)):
            raise SettingError(f"federation.regions has no region for {missing}; expected one for every hospital")
        members = {region: sorted(site for site in sites if of[site] == region) for region in sorted(set(of.values()))}
        for region, names in members.items():
            if len(names) < min_each:
                raise SettingError(
                    f"federation.min-per-region={min_each}; region {region!r} has {len(names)} hospitals that train, "
                    f"{names}; lower it, or join regions"
                )
        return cls(of=of, min_each=min_each)

    def draw(self, sites: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
        """Draw hospitals: the minimum of each region first, then from all that are left.

        Within a region every hospital is equally likely. A region with fewer than the minimum is drawn as a whole.

        Args:
            sites: To draw from, in a fixed order.
            count: To draw; more are drawn if the minima together are more.
            generator: Draws region by region in the order of their names, then the rest.
        """
        drawn: list[str] = []
        for region in sorted({self.of[site] for site in sites}):
            members = [site for site in sites if self.of[site] == region]
            drawn += draw(members, min(self.min_each, len(members)), generator)
        left = [site for site in sites if site not in drawn]
        return drawn + draw(left, max(0, count - len(drawn)), generator)

    def short_of(self, here: Sequence[str], aside: Sequence[str]) -> tuple[str, ...]:
        """Those set aside whom a region needs, because it has fewer than the minimum without them."""
        present = Counter(self.of[site] for site in here)
        return tuple(site for site in aside if present[self.of[site]] < self.min_each)


def draw(sites: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
    """So many hospitals, each equally likely; draws nothing where there is no choice."""
    if count in (0, len(sites)):
        return list(sites[:count])
    return [sites[index] for index in generator.choice(len(sites), size=count, replace=False)]
