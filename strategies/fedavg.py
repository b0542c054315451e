"""FedAvg: the weighted mean of hospitals' models (McMahan et al. 2017, algorithm 1; arXiv 1602.05629)."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from logging import INFO
from typing import TypedDict

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log
from numpy.typing import NDArray

from fl_contract.errors import QuorumError, ReplyError, RunError
from fl_contract.messages import (
    ARRAYS,
    CONFIG,
    CONTROL,
    EVALUATE,
    METRICS,
    NUM_EXAMPLES,
    TRAIN,
    Arrays,
    from_array_record,
    refusal_of_reply,
    site_of_reply,
    to_array_record,
)
from strategies.exact_sum import ExactSum
from strategies.participation import Roster, SiteSampling, SiteWeighting
from strategies.reply_check import check_reply, check_update_norm, read_num_examples


@dataclass
class RoundOutcome:
    """What became of the replies of one round.

    Attributes:
        asked: Hospitals that were asked.
        examples: Examples of each hospital whose reply was used.
        left_out: Code and sentence for each hospital whose reply was not used.
        quorum_key: Setting that says how many a round needs.
    """

    asked: tuple[str, ...] = ()
    examples: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, tuple[str, str]] = field(default_factory=dict)
    quorum_key: str = "federation.min-sites"

    def describe_quorum(self, server_round: int, min_sites: int) -> str:
        """Why a round had too few usable replies, hospital by hospital."""
        reasons = [f"{site}: {code} ({reason})" for site, (code, reason) in sorted(self.left_out.items())]
        silent = sorted(set(self.asked) - set(self.examples) - set(self.left_out))
        reasons += [f"{site}: no reply before the deadline" for site in silent]
        return (
            f"round {server_round}: {len(self.examples)} usable replies; expected at least {min_sites} "
            f"({self.quorum_key}). " + "; ".join(reasons)
        )


class Common(TypedDict, total=False):
    """What all strategies take; see `FedAvg`."""

    sampling: SiteSampling | None
    weighting: SiteWeighting | None
    buffer_names: Collection[str]
    roster: Roster | None


class FedAvg(Strategy):
    """The weighted mean of the hospitals' models, folded up as replies arrive.

    Guarantees:
        - A reply that breaks a rule of `strategies.reply_check` is left out with a recorded reason; so is one that
          names a hospital that was not asked or has replied already.
        - Fewer usable replies than the quorum are a `QuorumError`, never a smaller mean.
        - Buffers and whole-number arrays are averaged; the server's rate and momentum never touch them, since an
          extrapolated BatchNorm variance can be negative.

    Args:
        sampling: Which hospitals train in a round, and the quorum.
        weighting: How much each counts.
        server_learning_rate: Share of the mean update that is applied; 1 takes the mean itself.
        buffer_names: Arrays that are state but not trained, such as BatchNorm's statistics.
        roster: Hospitals and their nodes; None takes every connected node (plain Flower).
    """

    def __init__(
        self,
        *,
        sampling: SiteSampling | None = None,
        weighting: SiteWeighting | None = None,
        server_learning_rate: float = 1.0,
        buffer_names: Collection[str] = (),
        roster: Roster | None = None,
    ) -> None:
        self.sampling = sampling or SiteSampling(min_sites=1, generator=np.random.default_rng())
        self.weighting = weighting or SiteWeighting()
        self.server_learning_rate = server_learning_rate
        self.buffer_names = frozenset(buffer_names)
        self.roster = roster
        self.outcome = RoundOutcome()
        self._global: Arrays = {}
        self._nodes: Mapping[str, int] = {}
        self._server_round = 0
        self.num_trainers = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One train request for each hospital that was chosen for this round."""
        roster = self.roster or Roster.of_grid(grid)
        return self._ask(self.sampling.choose(roster.trainers), roster, server_round, arrays, config)

    def _ask(
        self, sites: tuple[str, ...], roster: Roster, server_round: int, arrays: ArrayRecord, config: ConfigRecord
    ) -> list[Message]:
        """Train requests for these hospitals; whatever they answer counts for this round."""
        self._global, self._nodes, self._server_round = from_array_record(arrays), roster.nodes, server_round
        self.num_trainers = len(roster.trainers)
        self.outcome = RoundOutcome(asked=sites)
        requests = make_requests(TRAIN, sites, roster, server_round, arrays, config)
        if control := self.control():
            record = to_array_record(control)
            for request in requests:
                request.content[CONTROL] = record
        return requests

    def control(self) -> Arrays:
        """What hospitals get beside the model in the round that begins; empty for FedAvg."""
        return {}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies into one mean as they arrive, then step the model.

        Raises:
            QuorumError: Fewer usable replies than the quorum; the model is not changed.
            RunError: The new model would hold an infinite number.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
            combined = self._collect(replies)
            stepped = self._step(combined)
        for name, array in stepped.items():
            if not np.isfinite(array).all():
                raise RunError(
                    f"round {server_round}: array {name!r} of the new model is not finite; "
                    "the updates diverge, lower the learning rates or the server's momentum"
                )
        metrics = MetricRecord({NUM_EXAMPLES: int(math.fsum(self.outcome.examples.values()))})
        return to_array_record(stepped), metrics

    def _collect(self, replies: Iterable[Message]) -> Arrays:
        """The weighted mean of the usable replies, trained arrays in float64."""
        trained = self._trained()
        total = ExactSum({
            name: np.broadcast_to(np.float64(0), array.shape) if name in trained else array
            for name, array in self._global.items()
        })  # fmt: skip
        self._fold_all(replies, lambda _, arrays, weight: total.add(arrays, weight))
        return total.mean()

    def _fold_all(self, replies: Iterable[Message], add: Callable[[str, Arrays, float], None]) -> None:
        """Hand on the usable replies as they arrive.

        Raises:
            QuorumError: There are fewer than the quorum.
        """
        for reply in replies:
            self._fold(reply, add)
        if len(self.outcome.examples) < self.sampling.min_sites:
            raise QuorumError(self.outcome.describe_quorum(self._server_round, self.sampling.min_sites))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One evaluate request for each hospital that measures."""
        roster = self.roster or Roster.of_grid(grid)
        return make_requests(EVALUATE, sorted(roster.evaluators), roster, server_round, arrays, config)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The weighted mean of every fractional number that all hospitals report; None when none replied.

        Weights are those of training; a reply without a number of examples is left out. Pooled areas under curves are
        not means: `fl_contract.metrics` merges them.
        """
        weighted: list[tuple[float, dict[str, float]]] = []
        for reply in replies:
            if reply.has_content() and METRICS in reply.content.metric_records:
                record = reply.content.metric_records[METRICS]
                numbers = {key: value for key, value in record.items() if isinstance(value, float)}
                try:
                    num_examples = read_num_examples(reply)
                except ReplyError:
                    continue
                weighted.append((self.weighting.weigh(self._site(reply), num_examples), numbers))
        if not weighted:
            return None
        shared = set.intersection(*(set(numbers) for _, numbers in weighted))
        return MetricRecord(
            {key: weighted_mean([(w, numbers[key]) for w, numbers in weighted]) for key in sorted(shared)}
        )

    def state(self) -> Arrays:
        """What a checkpoint must hold beside the model, the round and the generator; empty for FedAvg."""
        return {}

    def load_state(self, state: Arrays) -> None:
        """Take back what `state` gave."""

    def summary(self) -> None:
        """Log the settings, for Flower's own loop."""
        log(INFO, "\t├──> Quorum: %d, fraction: %s", self.sampling.min_sites, self.sampling.fraction)
        log(INFO, "\t└──> Weights: %s, server rate: %s", self.weighting.kind, self.server_learning_rate)

    def _step(self, mean: Arrays) -> Arrays:
        stepped, trained = {}, self._trained()
        for name, old in self._global.items():
            if name in trained:
                moved = self._step_array(name, old.astype(np.float64), mean[name])
                stepped[name] = moved.astype(old.dtype)
            else:
                stepped[name] = mean[name].astype(old.dtype)
        return stepped

    def _trained(self) -> set[str]:
        floats = {name for name, array in self._global.items() if array.dtype.kind == "f"}
        return floats - self.buffer_names

    def _step_array(self, name: str, old: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """The new value of one trained array; this form gives the mean itself, to the last bit, for a rate of 1."""
        return (1.0 - self.server_learning_rate) * old + self.server_learning_rate * mean

    def _fold(self, reply: Message, add: Callable[[str, Arrays, float], None]) -> None:
        site = self._site(reply)
        if reply.has_error():
            self.outcome.left_out[site] = refusal_of_reply(reply)
            return
        if site not in self.outcome.asked or site in self.outcome.examples:
            reason = f"The reply names site {site!r}; expected one that was asked and has not replied yet."
            self.outcome.left_out[str(reply.metadata.src_node_id)] = ("unusable-reply", reason)
            return
        try:
            arrays, num_examples = check_reply(reply, self._global)
            if (largest := self.sampling.max_update_norm) is not None:
                check_update_norm(arrays, self._started_from(site), trained=self._trained(), largest=largest)
        except ReplyError as error:
            self.outcome.left_out[site] = ("unusable-reply", str(error))
            return
        add(site, self._normalise(arrays, num_examples), self.weighting.weigh(site, num_examples))
        self.outcome.examples[site] = num_examples

    def _started_from(self, site: str) -> Arrays:
        """The model that a hospital began its training with."""
        del site
        return self._global

    def _normalise(self, arrays: Arrays, num_examples: float) -> Arrays:
        """What of a hospital's model goes into the mean; the model itself."""
        del num_examples
        return arrays

    def _site(self, reply: Message) -> str:
        """The hospital that a reply names; else the one asked at that node, or the node's id if there are several."""
        named = site_of_reply(reply)
        if named is not None:
            return named
        node = reply.metadata.src_node_id
        here = [site for site in self.outcome.asked if self._nodes[site] == node]
        return here[0] if len(here) == 1 else str(node)


def weighted_mean(weighted: Iterable[tuple[float, float]]) -> float:
    """The mean of (weight, value) pairs; does not depend on their order.

    >>> weighted_mean([(0.6, 0.1), (0.4, 0.2)])
    0.14
    """
    pairs = list(weighted)
    return math.fsum(weight * value for weight, value in pairs) / math.fsum(weight for weight, _ in pairs)


def make_requests(
    message_type: str,
    sites: Iterable[str],
    roster: Roster,
    server_round: int,
    arrays: ArrayRecord,
    config: ConfigRecord,
) -> list[Message]:
    """One request for each of these hospitals."""
    return [
        Message(
            RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({**config, "site": site, "server-round": server_round})}),
            roster.nodes[site],
            message_type,
            group_id=str(server_round),
        )
        for site in sites
    ]
