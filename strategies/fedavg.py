"""FedAvg: the weighted mean of hospitals' models (McMahan et al. 2017, algorithm 1; arXiv 1602.05629)."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import INFO
from typing import TypedDict

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log
from numpy.typing import NDArray

from fl_contract.array_record import Arrays, ArrayViews, take_array_record, to_array_record, view_array_record
from fl_contract.errors import QuorumError, ReplyError, RunError
from fl_contract.messages import (
    ARRAYS,
    CONFIG,
    CONTROL,
    EVALUATE,
    METRICS,
    NUM_EXAMPLES,
    TRAIN,
    refusal_of_reply,
    site_of_reply,
)
from fl_contract.npy import NpyBuffer
from strategies.arrivals import each_once
from strategies.blocks import Blocks, Mean, Resident, flatten, is_finite, places, resident
from strategies.participation import Roster, SiteSampling, SiteWeighting
from strategies.reply_check import check_finite, check_update_norm, read_num_examples, read_reply
from strategies.running_mean import ModelMean, mean_type, reading_only
from strategies.spool import Spool
from strategies.turns import Turns


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

    def admits(self, site: str, reply: Message) -> bool:
        """Whether a reply may be read: not a refusal, and the only one of a hospital that was asked; else says why."""
        if reply.has_error():
            self.left_out[site] = refusal_of_reply(reply)
        elif site not in self.asked or site in self.examples or site in self.left_out:
            reason = f"The reply names site {site!r}; expected one that was asked and has not replied yet."
            self.left_out[str(reply.metadata.src_node_id)] = ("unusable-reply", reason)
        else:
            return True
        return False

    def leave_out(self, site: str, error: Exception) -> None:
        """Say why a hospital's reply is not used."""
        self.examples.pop(site, None)
        self.left_out[site] = ("unusable-reply", str(error))

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
        self._kept: Arrays = {}
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
        self._global, self._nodes, self._server_round = view_array_record(arrays), roster.nodes, server_round
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
        buffers = {name: NpyBuffer(old.shape, old.dtype) for name, old in self._global.items()}
        self._aggregate(replies, flatten({name: buffer.array for name, buffer in buffers.items()}))
        metrics = MetricRecord({NUM_EXAMPLES: int(math.fsum(self.outcome.examples.values()))})
        return take_array_record(buffers), metrics

    def _aggregate(self, replies: Iterable[Message], stepped: Arrays) -> None:
        """Write the new model, flat, where its bytes are sent from; until then the sums are there."""
        with Spool() as spool, reading_only(), np.errstate(over="ignore", invalid="ignore"):  # overflow is refused
            mean = self._combine(replies, spool, stepped)
            try:
                self._step(mean, stepped)
            except RunError:
                if not self._leave_out_odd(mean.unchecked):
                    raise
                self._step(self._lazy_mean(mean.unchecked, stepped), stepped)

    def _combine(self, replies: Iterable[Message], spool: Spool, totals: Arrays) -> Mean:
        """The weighted mean of the usable replies, taken in the order of hospitals' names as they arrive."""
        if isinstance(replies, Sequence):
            return self._combine_resident(replies, totals)
        mean = ModelMean(flatten(self._global), self._trained(), totals)
        turns = Turns(self.outcome.asked, self.outcome.left_out, spool, lambda ready: self._add(mean, ready))
        self._fold_all(replies, turns.arrive)
        turns.finish()
        return mean

    def _combine_resident(self, replies: Sequence[Message], totals: Arrays) -> Mean:
        """As `_combine`, of replies that are in memory anyway: in one pass, and if that meets NaN again without it."""
        models = self._keep_resident(replies)
        if self._takes_mean():
            return self._lazy_mean(models, totals)
        mean = self._mean_of(models, totals)
        return self._mean_of(models, totals) if mean.is_odd and self._leave_out_odd(models) else mean

    def _keep_resident(self, replies: Sequence[Message]) -> dict[str, Blocks]:
        models: dict[str, Blocks] = {}
        self._fold_all(replies, lambda site, arrays: models.update({site: resident(arrays)}), checked=False)
        return models

    def _lazy_mean(self, models: dict[str, Blocks], totals: Arrays) -> Mean:
        """Of models that are in memory and may hold NaN, worked out number by number as the model is stepped."""
        return self._mean_of(models, totals, is_lazy=True)

    def _mean_of(self, models: dict[str, Blocks], totals: Arrays, *, is_lazy: bool = False) -> ModelMean:
        mean = ModelMean(flatten(self._global), self._trained(), totals, unchecked=models, is_lazy=is_lazy)
        self._add(mean, sorted(models.items()))
        return mean

    def _add(self, mean: ModelMean, ready: Sequence[tuple[str, Blocks]]) -> None:
        mean.add([model for _, model in ready], [self._weights(site, self.outcome.examples[site]) for site, _ in ready])

    def _weights(self, site: str, num_examples: float) -> tuple[float, float]:
        """How much a hospital's update counts: of the trained arrays, and of all others."""
        weight = self.weighting.weigh(site, num_examples)
        return weight, weight

    def _leave_out_odd(self, models: dict[str, Blocks]) -> bool:
        """Drop the models with NaN or infinity in them; false if there are none.

        Raises:
            QuorumError: Fewer than the quorum are left.
        """
        odd = {}
        for site, model in models.items():
            try:
                check_finite(model, self._global)
            except ReplyError as error:
                odd[site] = error
        for site, reason in odd.items():
            self.outcome.leave_out(site, reason)
            del models[site]
        self._check_quorum()
        return bool(odd)

    def _fold_all(
        self, replies: Iterable[Message], add: Callable[[str, ArrayViews], None], *, checked: bool = True
    ) -> None:
        """Hand on the usable replies as they arrive; their numbers may not be finite where that is not checked.

        Raises:
            QuorumError: There are fewer than the quorum.
        """
        for reply in each_once(replies):
            self._fold(reply, add, checked=checked)
        self._check_quorum()

    def _check_quorum(self) -> None:
        if len(self.outcome.examples) < self.sampling.min_sites:
            raise QuorumError(self.outcome.describe_quorum(self._server_round, self.sampling.min_sites))

    def result(self, arrays: Arrays) -> Arrays:
        """What is measured, and is a run's result, of the model that travels; the model itself."""
        return arrays

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
        return dict(self._kept)

    def load_state(self, state: Arrays) -> None:
        """Take back what `state` gave."""
        self._kept = {name: np.array(array) for name, array in state.items()}

    def summary(self) -> None:
        """Log the settings, for Flower's own loop."""
        log(INFO, "\t├──> Quorum: %d, fraction: %s", self.sampling.min_sites, self.sampling.fraction)
        log(INFO, "\t└──> Weights: %s, server rate: %s", self.weighting.kind, self.server_learning_rate)

    def _step(self, mean: Mean, stepped: Arrays) -> None:
        """Write the new model, block by block.

        Raises:
            RunError: It would hold an infinite number.
        """
        trained, takes_mean = self._trained(), self._takes_mean()
        self._begin_step()
        room = np.empty((2, 0 if takes_mean else mean.block))
        for name, old in flatten(self._global).items():
            for place in places(old.size, mean.block):
                after = mean.mean(name, place, mean_type(old.dtype) if name in trained else np.float64)
                if name in trained and not takes_mean:
                    pair = room[:, : after.size]
                    pair[0], pair[1] = old[place], after
                    after = self._step_block(name, place, *pair)
                new = stepped[name][place]
                new[...] = after if old.dtype.kind == "f" else np.rint(after)
                if not is_finite(new):
                    raise RunError(
                        f"round {self._server_round}: array {name!r} of the new model is not finite; "
                        "the updates diverge, lower the learning rates or the server's momentum"
                    )

    def _trained(self) -> set[str]:
        floats = {name for name, array in self._global.items() if array.dtype.kind == "f"}
        return floats - self.buffer_names

    def _takes_mean(self) -> bool:
        """Whether the new model is the mean itself, which then needs no float64."""
        return self.server_learning_rate == 1.0 and type(self)._step_block is FedAvg._step_block

    def _starts(self) -> Mapping[str, float]:
        """Where the numbers start that the step keeps of each trained one, by a prefix of its name; none for FedAvg."""
        return {}

    def _begin_step(self) -> None:
        """Make room for what the step keeps, in float64; later rounds have it."""
        if not self._kept:
            for prefix, value in self._starts().items():
                for name in (name for name in self._global if name in self._trained()):
                    self._kept[f"{prefix}{name}"] = room = np.zeros(self._global[name].shape)
                    if value:
                        room.fill(value)

    def _kept_block(self, name: str, place: slice) -> NDArray[np.float64]:
        """What is kept of some numbers, flat; what is written to it stays."""
        return self._kept[name].reshape(-1)[place]

    def _step_block(
        self, name: str, place: slice, old: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """New values of some numbers of a trained array, flat; each follows from the same number of old and mean.

        Old and mean may be written to: blocks that stay in the cache are half of the speed.

        This form gives the mean itself, to the last bit, for a rate of 1.
        """
        del name, place
        return (1.0 - self.server_learning_rate) * old + self.server_learning_rate * mean

    def _fold(self, reply: Message, add: Callable[[str, ArrayViews], None], *, checked: bool) -> None:
        site = self._site(reply)
        if not self.outcome.admits(site, reply):
            return
        try:
            arrays, num_examples = self._read(reply, checked=checked)
        except ReplyError as error:
            self.outcome.leave_out(site, error)
            return
        self.outcome.examples[site] = num_examples
        add(site, arrays)

    def _read(self, reply: Message, *, checked: bool) -> tuple[ArrayViews, float]:
        """Arrays and examples of a reply.

        Raises:
            ReplyError: It may not enter the mean.
        """
        arrays, num_examples = read_reply(reply, self._global)
        largest = self.sampling.max_update_norm
        if checked or largest is not None:
            check_finite(Resident(arrays), self._global)
        if largest is not None:
            check_update_norm(arrays, self._started_from(self._site(reply)), trained=self._trained(), largest=largest)
        return arrays, num_examples

    def _started_from(self, site: str) -> Arrays:
        """What a hospital's own update is measured from."""
        del site
        return self._global

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
