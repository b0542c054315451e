"""A link between hospitals and their coordinator that can be read, slowed and cut: it ends TLS on either side.

It holds the coordinator's own certificate, so hospitals cannot tell. All that a hospital sends is seen in clear.
"""

import asyncio
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


@dataclass
class TlsTap:
    """Forwards connections on 127.0.0.1 to another port of it.

    Attributes:
        port: It listens on.
        target: It forwards to.
        certificate: The coordinator's, PEM.
        key: Of that certificate.
        authority: That the coordinator's certificate is checked against.
        sent: Each connection's bytes towards the coordinator.
        received: Each connection's bytes towards the hospital.
        bytes_per_second: Of either direction of a connection; None for as fast as it goes.
        is_cut: Whether connections are dropped.
    """

    port: int
    target: int
    certificate: Path
    key: Path
    authority: Path
    sent: list[bytearray] = field(default_factory=list)
    received: list[bytearray] = field(default_factory=list)
    bytes_per_second: float | None = None
    is_cut: bool = False
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    def __enter__(self) -> Self:
        """Listen."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls-tap", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        """Drop everything."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self) -> None:
        """Drop every connection, and refuse new ones until `mend`."""
        self.is_cut = True
        asyncio.run_coroutine_threadsafe(self._drop(), self._loop).result(10)

    def mend(self) -> None:
        """Let connections through again."""
        self.is_cut = False

    def all_sent(self) -> bytes:
        """Everything that left hospitals until now."""
        return b"\n".join(bytes(each) for each in self.sent)

    async def _listen(self) -> None:
        inward = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        inward.load_cert_chain(self.certificate, self.key)
        self._outward = ssl.create_default_context(cafile=str(self.authority))
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port, ssl=inward)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(
                "127.0.0.1", self.target, ssl=self._outward, server_hostname="localhost"
            )
        except OSError:
            writer.transport.abort()
            return
        self.sent.append(sent := bytearray())
        self.received.append(received := bytearray())
        self._open |= {writer, far_writer}
        await asyncio.gather(self._copy(reader, far_writer, sent), self._copy(far_reader, writer, received))
        self._open -= {writer, far_writer}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: bytearray) -> None:
        try:
            while chunk := await reader.read(1 << 16):
                seen += chunk
                if self.bytes_per_second is not None:
                    await asyncio.sleep(len(chunk) / self.bytes_per_second)
                writer.write(chunk)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def _drop(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        await self._drop()
