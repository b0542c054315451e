"""Requests that stay open for longer than one round, while others are sent and waited for."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fl_contract.errors import RunError
from fl_server.exchange import LONGEST_WAIT_SECONDS, SHORTEST_WAIT_SECONDS


@dataclass(frozen=True, kw_only=True)
class OpenRequest:
    """A request that was sent.

    Attributes:
        message: The request.
        sent: When, by ``time.monotonic``.
    """

    message: Message
    sent: float

    @property
    def seconds(self) -> float:
        """Since it was sent."""
        return time.monotonic() - self.sent


class Mailbox(Grid):
    """A grid that keeps replies to open requests, whatever else it is asked for meanwhile.

    Guarantees:
        - Replies come out in the order in which the grid gave them, each once.
        - Whoever pulls other replies through it never loses one of an open request.

    Args:
        grid: Carries the messages.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._open: dict[str, OpenRequest] = {}
        self._arrived: list[tuple[OpenRequest, Message | None]] = []

    @property
    def has_open(self) -> bool:
        """Whether `receive` has something to wait for."""
        return bool(self._open or self._arrived)

    def send(self, message: Message) -> None:
        """Send a request and leave it open."""
        request = OpenRequest(message=message, sent=time.monotonic())
        identities = list(self._grid.push_messages([message]))
        if not identities:  # Flower could not send it
            self._arrived.append((request, None))
        self._open |= dict.fromkeys(identities, request)

    def receive(self, *, timeout_seconds: float) -> tuple[OpenRequest, Message | None]:
        """Wait for the next reply to an open request; there must be one, see `has_open`.

        Args:
            timeout_seconds: After which a request is given up.

        Returns:
            The request, which is not open any more, and its reply; None if it was given up.
        """
        wait = SHORTEST_WAIT_SECONDS
        while True:
            if self._open:
                self.pull_messages([])
            oldest = next(iter(self._open), None)
            if oldest is not None and self._open[oldest].seconds >= timeout_seconds:
                return self._open.pop(oldest), None
            if self._arrived:
                return self._arrived.pop(0)
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to these requests, as of any grid; those to open ones are kept."""
        others = []
        for reply in self._grid.pull_messages([*self._open, *message_ids]):
            identity = reply.metadata.reply_to_message_id
            if identity in self._open:
                self._arrived.append((self._open.pop(identity), reply))
            else:
                others.append(reply)
        return others

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As of the grid."""
        return self._grid.push_messages(messages)

    def get_node_ids(self) -> Iterable[int]:
        """As of the grid."""
        return self._grid.get_node_ids()

    @property
    def run(self) -> Run:
        """As of the grid."""
        return self._grid.run

    def set_run(self, run: Run) -> None:
        """As of the grid."""
        self._grid.set_run(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> NoReturn:
        """Is deprecated in Flower; construct a ``Message`` instead."""
        raise RunError("Grid.create_message is deprecated; construct flwr.app.Message instead")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As of the grid; a reply to an open request that comes meanwhile may be lost."""
        return self._grid.send_and_receive(messages, timeout=timeout)
