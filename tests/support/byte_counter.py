"""A TCP relay on loopback that counts what passes, and looks at nothing."""

import socket
import threading
from types import TracebackType
from typing import Self

CHUNK = 1 << 16


class ByteCounter:
    """Passes connections on to a port of 127.0.0.1.

    Attributes:
        port: To connect to.
        sent: Bytes from those who connect.
        received: Bytes to them.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self.sent = self.received = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def total(self) -> int:
        """Bytes both ways until now."""
        with self._lock:
            return self.sent + self.received

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            threading.Thread(target=self._copy, args=(near, far, "sent"), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, "received"), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        try:
            while chunk := source.recv(CHUNK):
                with self._lock:
                    setattr(self, direction, getattr(self, direction) + len(chunk))
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()
