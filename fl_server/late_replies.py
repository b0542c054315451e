"""The only place that waits for replies to earlier rounds, and makes them fit the round in which they arrive."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fl_contract.array_record import Arrays, to_array_record
from fl_contract.messages import ARRAYS, CONFIG, TRAIN, Request, request_arrays
from fl_server.exchange import exchange
from strategies.reply_check import check_reply

MAX_STALENESS = 4
"""Rounds after its own in which a late reply is still waited for; then it is given up and its hospital asked again."""


@dataclass(frozen=True, kw_only=True)
class LateReply:
    """A reply that came after its round.

    Attributes:
        site: The hospital that was asked.
        server_round: In which it was asked.
        request: What it was asked.
        reply: What came; not checked yet.
    """

    site: str
    server_round: int
    request: Message
    reply: Message


class LateReplies:
    """Requests of earlier rounds that may still be answered, at most one a hospital.

    Each keeps the model that was sent with it. On a resumed run the requests are sent again: a hospital answers a round
    that it was asked for twice with the same reply and charges it once.

    Args:
        buffer_names: Arrays of the model that are not trained.
    """

    def __init__(self, *, buffer_names: Collection[str] = ()) -> None:
        self._buffer_names = frozenset(buffer_names)
        self._requests: dict[str, Message] = {}
        self._arrived: dict[str, Message] = {}
        self._to_send: list[Message] = []

    @property
    def sites(self) -> frozenset[str]:
        """Hospitals whose reply is awaited, or has arrived since the last `take`."""
        return frozenset(self._requests)

    @property
    def num_arrived(self) -> int:
        """Replies that `take` would hand on."""
        return len(self._arrived)

    def round_of(self, site: str) -> int:
        """The round that a hospital's awaited reply belongs to."""
        return Request.from_message(self._requests[site]).server_round

    def expect(self, site: str, request: Message) -> None:
        """Wait for the reply to a request whose deadline has passed."""
        self._requests[site] = request

    def give_up(self, server_round: int) -> list[str]:
        """Stop waiting for what would be more than `MAX_STALENESS` rounds old in this round; whose it was."""
        old = [
            site
            for site in self._requests
            if site not in self._arrived and server_round - self.round_of(site) > MAX_STALENESS
        ]
        for site in old:
            del self._requests[site]
        return sorted(old)

    def exchange(
        self,
        grid: Grid,
        requests: Sequence[Message],
        *,
        timeout_seconds: float,
        is_enough: Callable[[], bool] = lambda: True,
    ) -> Iterator[tuple[int, Message]]:
        """`fl_server.exchange.exchange`, which also keeps what arrives for earlier rounds."""
        for request in self._to_send:
            list(grid.push_messages([request]))
        self._to_send = []
        waiting = [site for site in sorted(self._requests) if site not in self._arrived]
        earlier = [self._requests[site].metadata.message_id for site in waiting]
        replies = exchange(grid, requests, timeout_seconds=timeout_seconds, earlier=earlier, is_enough=is_enough)
        for position, reply in replies:
            if position < len(requests):
                yield position, reply
            else:
                self._arrived[waiting[position - len(requests)]] = reply

    def take(self) -> Iterator[LateReply]:
        """Hand on each late reply that has arrived; its hospital can be asked again in the next round."""
        for site in sorted(self._arrived):
            late = LateReply(
                site=site, server_round=self.round_of(site), request=self._requests[site], reply=self._arrived.pop(site)
            )
            del self._requests[site]
            yield late

    def fit(self, late: LateReply, current: Arrays) -> Message:
        """The reply that the hospital would have given had it moved the current model by the same update.

        Buffers, such as BatchNorm's statistics, and whole numbers are taken as they are: an extrapolated variance can
        be negative.

        Raises:
            ReplyError: The reply breaks a rule of `strategies.reply_check`, held against the model that was sent.
        """
        sent = request_arrays(late.request)
        arrays, _ = check_reply(late.reply, sent)
        moved = dict(arrays)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by the strategy
            for name, array in arrays.items():
                if array.dtype.kind == "f" and name not in self._buffer_names:
                    update = array.astype(np.float64) - sent[name].astype(np.float64)
                    moved[name] = (current[name].astype(np.float64) + update).astype(array.dtype)
        content = RecordDict({**late.reply.content, ARRAYS: to_array_record(moved)})
        return Message(content, reply_to=late.request)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, with `arrays`; a reply that arrived and was not taken counts as awaited."""
        requests = {site: Request.from_message(request) for site, request in sorted(self._requests.items())}
        return {
            site: {"server_round": request.server_round, "local_steps": request.local_steps}
            for site, request in requests.items()
        }

    def arrays(self) -> Arrays:
        """The models that were sent, each once, by round and name."""
        by_round = {self.round_of(site): request for site, request in self._requests.items()}
        return {
            f"{number}/{name}": array
            for number, request in sorted(by_round.items())
            for name, array in request_arrays(request).items()
        }

    def load_state(self, state: Mapping[str, Any], arrays: Arrays, request: Request, nodes: Mapping[str, int]) -> None:
        """Take back what `state` and `arrays` gave; the requests are sent again with the next ones.

        Args:
            state: From `state`.
            arrays: From `arrays`.
            request: What every request of the run names.
            nodes: Node of each hospital that takes part; others are no longer waited for.
        """
        for site, kept in state.items():
            if site in nodes:
                again = Request(
                    run=request.run,
                    fingerprint=request.fingerprint,
                    site=site,
                    server_round=kept["server_round"],
                    local_steps=kept["local_steps"],
                )
                prefix = f"{again.server_round}/"
                sent = {name.removeprefix(prefix): each for name, each in arrays.items() if name.startswith(prefix)}
                content = RecordDict({ARRAYS: to_array_record(sent), CONFIG: again.to_config()})
                message = Message(content, nodes[site], TRAIN, group_id=str(again.server_round))
                self._requests[site] = message
                self._to_send.append(message)
