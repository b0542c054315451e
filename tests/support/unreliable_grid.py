"""A local engine whose network loses requests and holds replies back, without waiting for any deadline."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from flwr.app import Message

import fl_server.exchange
import fl_server.turnout
from fl_contract.array_record import Arrays, from_array_record
from fl_contract.messages import ARRAYS, TRAIN, Request
from fl_server.local_grid import LocalGrid

Rule = Callable[[str, int], bool]
"""Of a hospital and a round."""


class Clock:
    """Stands for the time module where the coordinator waits; runs only when nothing can come any more."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.01))


class Network:
    """What happens to train and evaluate requests.

    Args:
        lose: Requests that never reach their hospital.
        hold: Train replies that come one round late: once the next round's requests are on their way.
        seconds_a_step: How long each hospital trains, on the clock of the coordinator; replies then come one by one.
    """

    def __init__(
        self,
        *,
        lose: Rule = lambda *_: False,
        hold: Rule = lambda *_: False,
        seconds_a_step: Mapping[str, float] | None = None,
    ) -> None:
        self.lose, self.hold, self.seconds_a_step = lose, hold, seconds_a_step or {}
        self.asked: dict[int, list[str]] = {}
        self.measured: dict[int, list[str]] = {}
        self.requests: dict[tuple[str, int], Message] = {}
        self.models: dict[tuple[str, int], Arrays] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Network":
        """Let federations of this test run over this network."""
        clock, network = Clock(), self
        monkeypatch.setattr(fl_server.exchange, "time", clock)
        monkeypatch.setattr(fl_server.turnout, "time", clock)

        class UnreliableGrid(LocalGrid):
            def __init__(self, *args: Any, **named: Any) -> None:
                super().__init__(*args, **named)
                self._of: dict[str, Request] = {}
                self._lost: set[str] = set()
                self._held: dict[str, Message] = {}

            def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
                identities = []
                for message in messages:
                    kind, request = message.metadata.message_type, Request.from_message(message)
                    site, server_round = request.site, request.server_round
                    if kind == TRAIN:
                        network.asked.setdefault(server_round, []).append(site)
                        network.requests[site, server_round] = message
                    elif server_round:
                        network.measured.setdefault(server_round, []).append(site)
                    if server_round and network.lose(site, server_round):
                        identity = f"lost-{len(self._lost)}"
                        message.metadata.__dict__["_message_id"] = identity
                        self._lost.add(identity)
                    else:
                        (identity,) = super().push_messages([message])
                    if kind == TRAIN:
                        self._of[identity] = request
                    identities.append(identity)
                return identities

            def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
                wanted = list(message_ids)
                self._held = {each: reply for each, reply in self._held.items() if each in wanted}  # as LocalGrid
                for reply in super().pull_messages(wanted):
                    identity = reply.metadata.reply_to_message_id
                    self._held[identity] = reply
                    if identity in self._of:
                        request = self._of[identity]
                        if reply.has_content() and ARRAYS in reply.content.array_records:
                            model = from_array_record(reply.content.array_records[ARRAYS])
                            network.models[request.site, request.server_round] = model
                free = [each for each in wanted if each in self._held and not self._is_held(each)]
                if not free and all(each in self._held or each in self._lost for each in wanted):
                    clock.now += 1e6
                if network.seconds_a_step:
                    free = free[:1]
                    for request in (self._of[each] for each in free if each in self._of):
                        clock.now += network.seconds_a_step[request.site] * (request.local_steps or 0)
                return [self._held.pop(each) for each in free]

            def _is_held(self, identity: str) -> bool:
                request = self._of.get(identity)
                if request is None or not network.hold(request.site, request.server_round):
                    return False
                return request.server_round + 1 not in network.asked

        monkeypatch.setattr("federation_harness.LocalGrid", UnreliableGrid)
        return self
