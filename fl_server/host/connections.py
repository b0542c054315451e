"""Who may keep a connection: the only place that ends those on which no request comes."""

import asyncio
import resource
from logging import Logger
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 20.0
"""For a request's head to come, and for a TLS handshake."""
MAX_HEAD_BYTES = 64 * 2**10


class PunctualProtocol(HttpToolsProtocol):
    """uvicorn's own connection, which would wait for a request for ever, and keep one of any length in memory.

    Guarantees:
        - A connection ends if the head of a request takes longer than `HEAD_SECONDS`, or is larger than
          `MAX_HEAD_BYTES`, or announces a body of unknown length, which no client of ours sends.
        - When connections take up half of the files that the process may open, a new one ends the one that has been
          waiting longest for its request; a hospital's comes at once.
    """

    log: ClassVar[Logger]
    _waiting: ClassVar[dict["PunctualProtocol", asyncio.TimerHandle]] = {}
    """Those whose request's head has not come, the one that waits longest first."""
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A peer connected."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > most_connections():
            next(iter(self._waiting)).give_up("too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._wait_no_longer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A piece came."""
        super().data_received(data)
        if self in self._waiting:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.give_up("the head of the request is too large")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head has come."""
        self._wait_no_longer()
        if any(name == b"transfer-encoding" for name, _ in self.headers):
            self.give_up("a body of unknown length")
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body came."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is whole."""
        if not self.transport.is_closing():
            super().on_message_complete()

    def give_up(self, reason: str) -> None:
        """End the connection, and say why."""
        self._wait_no_longer()
        peer = self.client or ("unknown", 0)
        self.log.warning("refused: %s", reason, extra={"peer": f"{peer[0]}:{peer[1]}"})
        self.transport.abort()

    def _wait(self) -> None:
        if self not in self._waiting:
            self._head_bytes = 0
            self._waiting[self] = self.loop.call_later(HEAD_SECONDS, self.give_up, "no request came in time")

    def _wait_no_longer(self) -> None:
        if (timer := self._waiting.pop(self, None)) is not None:
            timer.cancel()


def most_connections() -> int:
    """Half of the files that this process may open: the rest is for the database, logs and handshakes."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
