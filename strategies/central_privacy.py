"""Hospital-level differential privacy round any strategy (DP-FedAvg: McMahan et al. 2018, algorithm 1; 1710.06963)."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from logging import INFO

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from fl_contract.array_record import Arrays, ArrayViews, from_array_record, to_array_record
from fl_contract.errors import QuorumError, ReplyError, RunError, SettingError
from fl_contract.messages import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES, site_of_reply
from privacy.central import CentralPlan
from privacy.errors import PrivacySettingError
from strategies.arrivals import each_once
from strategies.fedavg import FedAvg, RoundOutcome
from strategies.reply_check import check_reply, check_update_norm

_ROUNDS = "central-privacy/rounds"


@dataclass(frozen=True, kw_only=True)
class CentralSpend:
    """What the run has spent for a whole hospital so far.

    Attributes:
        unit: What is protected.
        neighbouring: The neighbouring relation.
        accountant: How epsilon was computed.
        epsilon: Of all noised rounds up to here.
        delta: Of the same guarantee.
        rounds: Noised rounds, those run twice counted twice.
        noise_multiplier: Standard deviation of the noise over the largest contribution of a hospital.
    """

    unit: str
    neighbouring: str
    accountant: str
    epsilon: float
    delta: float
    rounds: int
    noise_multiplier: float

    def to_json(self) -> dict[str, str | float | int]:
        """For the record."""
        return asdict(self)


@dataclass(kw_only=True)
class SpentRounds:
    """How many rounds were noised, in this run and before it was last stopped.

    Attributes:
        count: So far; a round that was run twice counts twice.
        store: Given the next count before that round is noised; must have stored it when it returns.
    """

    count: int = 0
    store: Callable[[int], object] = lambda count: None

    def add(self) -> None:
        """Count one more round, durably first."""
        self.store(self.count + 1)
        self.count += 1


class CentralPrivacy(Strategy):
    """Clip each hospital's update, add them up with fixed weights, add noise once, and let a strategy use the mean.

    The inner strategy chooses and asks the hospitals. It then gets one reply in place of theirs: the model moved by the
    noised mean update. Whatever it makes of that, such as momentum, costs no privacy. It never sees a hospital's reply.

    Guarantees:
        - A model, or a reply, with an array that is not trained floating point is refused: it would leave without
          noise. So BatchNorm's statistics and whole-number buffers cannot be in the model.
        - A hospital that is left out, by a rule of `strategies.reply_check` or because it did not reply, counts as one
          whose update is zero; the weights of the others do not change.
        - Each round is counted, durably, before its noise is drawn. More rounds than the plan has are refused.
        - The order of replies does not matter: updates are added up as whole numbers.

    What is not protected: who replied with something usable, what hospitals declare, and what they measure.

    Args:
        inner: Any Flower strategy that asks each hospital once a round and makes a model of the replies' weighted mean.
            Quorum and bound on updates are set here, not there.
        plan: Clip norm, weights, noise and rounds.
        buffer_names: Arrays of the model that are not trained; there may be none.
        min_sites: The quorum: usable replies that a round needs.
        max_update_norm: Largest accepted L2 norm of an update before it is clipped; None accepts any finite one.
        spent_rounds: The count to go on with; None begins at 0 and stores nothing beyond `state`.
    """

    def __init__(
        self,
        inner: Strategy,
        plan: CentralPlan,
        *,
        buffer_names: Collection[str] = (),
        min_sites: int = 1,
        max_update_norm: float | None = None,
        spent_rounds: SpentRounds | None = None,
    ) -> None:
        if buffer_names:
            raise SettingError(
                f"the model has arrays that are not trained, {sorted(buffer_names)}; they would leave without noise; "
                "use a model without them, with GroupNorm in place of BatchNorm"
            )
        if isinstance(inner, FedAvg) and (inner.sampling.min_sites > 1 or inner.sampling.max_update_norm is not None):
            raise SettingError("the inner strategy gets one noised reply; set min-sites and max-update-norm round it")
        self.inner = inner
        self.plan = plan
        self.min_sites = min_sites
        self.outcome = RoundOutcome()
        self.max_update_norm = max_update_norm
        self.spent_rounds = spent_rounds or SpentRounds()
        self._global: Arrays = {}
        self._requests: dict[str, Message] = {}

    @property
    def spent(self) -> CentralSpend:
        """What is spent so far."""
        return CentralSpend(
            unit=self.plan.unit,
            neighbouring=self.plan.neighbouring,
            accountant="closed form of the Gaussian mechanism",
            epsilon=self.plan.epsilon_after(self.spent_rounds.count),
            delta=self.plan.delta,
            rounds=self.spent_rounds.count,
            noise_multiplier=self.plan.noise_multiplier,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The inner strategy's requests.

        Raises:
            SettingError: The model does not fit the plan, or a hospital that is asked has no weight.
            RunError: All rounds of the plan are spent.
        """
        self._global = from_array_record(arrays)
        self._check_model()
        self._check_rounds_left(server_round)
        requests = list(self.inner.configure_train(server_round, arrays, config, grid))
        self._requests = {_asked_site(request): request for request in requests}
        if unknown := sorted(set(self._requests) - set(self.plan.weights)):
            raise SettingError(f"central privacy has no weight for {unknown}; expected {sorted(self.plan.weights)}")
        self.outcome = RoundOutcome(asked=tuple(self._requests))
        return requests

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up the clipped updates, noise the sum once, and hand the mean to the inner strategy.

        Raises:
            QuorumError: Fewer usable replies than the quorum; nothing was noised and nothing spent.
            RunError: All rounds of the plan are spent, or the new model would hold an infinite number.
        """
        self._check_rounds_left(server_round)
        total = np.zeros(self.plan.num_coordinates, np.int64)
        for reply in each_once(replies):
            self._fold(reply, total)
        if len(self.outcome.examples) < self.min_sites:
            raise QuorumError(self.outcome.describe_quorum(server_round, self.min_sites))
        self.spent_rounds.add()
        total += self.plan.draw_noise()
        moved = self._move(self.plan.restore(total))
        if odd := [name for name, array in moved.items() if not np.isfinite(array).all()]:
            raise RunError(f"round {server_round}: arrays {odd} of the new model are not finite; lower the clip norm")
        content = RecordDict({
            ARRAYS: to_array_record(moved),
            METRICS: MetricRecord({NUM_EXAMPLES: len(self.outcome.examples)}),
        })  # fmt: skip
        request = next(iter(self._requests.values()))
        return self.inner.aggregate_train(server_round, [Message(content, reply_to=request)])

    def result(self, arrays: Arrays) -> Arrays:
        """The model itself."""
        return arrays

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The inner strategy's requests."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The inner strategy's figures; not noised."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def state(self) -> Arrays:
        """What a checkpoint must hold: the rounds spent, and the inner strategy's state if it is one of ours."""
        inner = self.inner.state() if isinstance(self.inner, FedAvg) else {}
        return {_ROUNDS: np.array(self.spent_rounds.count), **inner}

    def load_state(self, state: Arrays) -> None:
        """Take back what `state` gave; never to fewer rounds than are known to be spent."""
        self.spent_rounds.count = max(self.spent_rounds.count, int(state[_ROUNDS]))
        if isinstance(self.inner, FedAvg):
            self.inner.load_state({name: array for name, array in state.items() if name != _ROUNDS})

    def summary(self) -> None:
        """Log the settings, for Flower's own loop."""
        plan = self.plan
        log(
            INFO, "\t├──> Central privacy: epsilon %s, delta %s, clip norm %s", plan.epsilon, plan.delta, plan.clip_norm
        )
        self.inner.summary()

    def _check_rounds_left(self, server_round: int) -> None:
        if self.spent_rounds.count >= self.plan.num_rounds:
            raise RunError(
                f"round {server_round}: all {self.plan.num_rounds} rounds of central privacy are spent, those that "
                "were run twice after a stop counted twice; start a new run"
            )

    def _check_model(self) -> None:
        if odd := sorted(name for name, array in self._global.items() if array.dtype.kind != "f"):
            raise SettingError(f"arrays {odd} are not floating point; they would leave without noise")
        if (size := sum(array.size for array in self._global.values())) != self.plan.num_coordinates:
            raise SettingError(f"the model has {size} numbers; expected {self.plan.num_coordinates}, as in the plan")

    def _fold(self, reply: Message, total: np.ndarray) -> None:
        site = site_of_reply(reply) or self._site_at(reply.metadata.src_node_id)
        if not self.outcome.admits(site, reply):
            return
        try:
            with np.errstate(over="ignore"):  # what overflows is refused
                arrays, num_examples = check_reply(reply, self._global)
                if self.max_update_norm is not None:
                    check_update_norm(arrays, self._global, trained=self._global, largest=self.max_update_norm)
                total += self.plan.quantise(site, _flatten(arrays) - _flatten(self._global))
        except (ReplyError, PrivacySettingError) as error:
            self.outcome.leave_out(site, error)
            return
        self.outcome.examples[site] = num_examples

    def _site_at(self, node: int) -> str:
        here = [site for site, request in self._requests.items() if request.metadata.dst_node_id == node]
        return here[0] if len(here) == 1 else str(node)

    def _move(self, update: np.ndarray) -> Arrays:
        """The model plus an update, in the model's shapes and types.

        Everything here follows from the noised update, so rounding to the model's types costs no privacy.
        """
        moved, position = {}, 0
        with np.errstate(over="ignore"):
            for name, old in self._global.items():
                part = update[position : position + old.size].reshape(old.shape)
                moved[name] = (old.astype(np.float64) + part).astype(old.dtype).reshape(old.shape)
                position += old.size
        return moved


def _flatten(arrays: ArrayViews) -> np.ndarray:
    return np.concatenate([array.ravel().astype(np.float64) for array in arrays.values()])


def _asked_site(request: Message) -> str:
    """The hospital that a request names; its node, in one of another framework's strategies."""
    configs = request.content.config_records
    site = configs[CONFIG].get("site") if CONFIG in configs else None
    return site if isinstance(site, str) else str(request.metadata.dst_node_id)
