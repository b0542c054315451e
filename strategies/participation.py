"""The only place that decides which hospitals take part in a round and how much each counts."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from flwr.serverapp import Grid

from fl_contract.errors import SettingError
from strategies.attendance import Attendance, Presence
from strategies.regions import Regions, draw


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The hospitals of a run, and the Flower node that each is reached at.

    Attributes:
        nodes: Node id by hospital; one node may speak for several hospitals in a simulation.
        trainers: Hospitals that train.
        evaluators: Hospitals that measure the model on their held-out patients.
    """

    nodes: Mapping[str, int]
    trainers: tuple[str, ...]
    evaluators: tuple[str, ...]

    def of_those(self, agreed: Collection[str]) -> "Roster":
        """The same roster without the hospitals that did not agree."""
        return Roster(
            nodes={site: node for site, node in self.nodes.items() if site in agreed},
            trainers=tuple(site for site in self.trainers if site in agreed),
            evaluators=tuple(site for site in self.evaluators if site in agreed),
        )

    @classmethod
    def of_grid(cls, grid: Grid) -> Self:
        """One hospital for each connected node, named by its id: for use with plain Flower."""
        nodes = {str(node): node for node in sorted(grid.get_node_ids())}
        return cls(nodes=nodes, trainers=tuple(nodes), evaluators=tuple(nodes))


@dataclass(frozen=True, kw_only=True)
class SiteSampling:
    """Which hospitals are asked to train in a round, how many must answer, and how far each may move the model.

    Attributes:
        min_sites: The quorum: usable replies that a round needs; at least 1.
        max_update_norm: Largest accepted L2 norm of an update, in weight units; None accepts any finite one.
        fraction: Share of the hospitals asked, in (0, 1]; never fewer than the quorum.
        generator: Draws the hospitals; its state is part of a checkpoint.
        regions: How many of each region are asked at least; None asks whoever is drawn.
        attendance: Who may be asked in the round; None asks all.
    """

    min_sites: int
    generator: np.random.Generator
    fraction: float = 1.0
    max_update_norm: float | None = None
    regions: Regions | None = None
    attendance: Attendance | None = None

    def choose(self, sites: Sequence[str]) -> tuple[str, ...]:
        """Hospitals for one round, sorted by name; draws nothing when all are asked.

        The share is of all hospitals. Those that are set aside are never drawn: whoever of them is due, or needed by a
        region, is asked beside those drawn.
        """
        ordered = sorted(sites)
        presence = self.attendance.sort(ordered) if self.attendance else Presence(here=tuple(ordered))
        share = math.ceil(round(self.fraction * len(ordered), 9))  # 0.28 * 25 is 7.000000000000001 in floating point
        count = min(len(presence.here), max(self.min_sites, share))
        beside = {*presence.due, *(self.regions.short_of(presence.here, presence.aside) if self.regions else ())}
        return tuple(sorted({*self._draw(presence.here, count), *beside}))

    def _draw(self, sites: Sequence[str], count: int) -> list[str]:
        if count == len(sites) or self.regions is None:
            return draw(sites, count, self.generator)
        return self.regions.draw(sites, count, self.generator)


@dataclass(frozen=True, kw_only=True)
class SiteWeighting:
    """How much a hospital counts in an average.

    Attributes:
        kind: By its ``examples`` (n_k / n, McMahan 2017), ``equal``, or by a weight set for each ``institution``.
        institution_weights: For ``institution``: a positive weight by hospital; they need not add up to 1.
    """

    kind: Literal["examples", "equal", "institution"] = "examples"
    institution_weights: Mapping[str, float] | None = None

    def weigh(self, site: str, num_examples: float) -> float:
        """The weight of one reply, before it is divided by the sum of weights.

        Raises:
            SettingError: No weight is set for this hospital.
        """
        if self.kind == "equal":
            return 1.0
        if self.kind == "examples":
            return num_examples
        weights = self.institution_weights or {}
        if site not in weights:
            raise SettingError(
                f"strategy.institution-weights has no weight for {site!r}; expected one for every hospital"
            )
        return weights[site]
