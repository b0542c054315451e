"""The way to a coordinator's port, straight or through a proxy: the only place that connects without Flower."""

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509

from fl_contract.errors import ConsiliumError, SettingError

TIMEOUT_SECONDS = 10.0
MOST_BYTES = 65_536


class ProxyError(ConsiliumError):
    """A proxy did not open the way to the coordinator."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server said to one request.

    Attributes:
        status: HTTP status.
        server_time: Of its ``Date`` header, seconds since 1970, in whole seconds; None if it has none.
        local_time: Of this host, half-way between request and answer.
        body: At most `MOST_BYTES` of it.
    """

    status: int
    server_time: float | None
    local_time: float
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a coordinator is, and the way there.

    Attributes:
        host: Name or IP address.
        port: Its port.
        proxy: URL of an HTTP proxy, ``http://host:port``; None for a straight way.
        at: IP address to connect to instead of looking up the host, as on the coordinator itself.
    """

    host: str
    port: int
    proxy: str | None = None
    at: str | None = None

    @classmethod
    def parse(cls, address: str, proxy: str | None = None) -> "Endpoint":
        """From ``host:port``; an IPv6 address may stand in brackets.

        >>> Endpoint.parse("fl.example.org:8443").host
        'fl.example.org'
        """
        host, _, port = address.rpartition(":")
        return cls(host=host.strip("[]"), port=int(port), proxy=proxy)

    @property
    def first_hop(self) -> tuple[str, int]:
        """Host and port that this host connects to: the proxy, if there is one.

        Raises:
            SettingError: The proxy is spoken to by TLS, which is not tested here.
        """
        if self.proxy is None:
            return self.at or self.host, self.port
        parts = urlsplit(self.proxy)
        if parts.scheme != "http" or not parts.hostname:
            raise SettingError(f"proxy={self.proxy}; only http://host:port can be tested from here; try it with curl")
        return parts.hostname, parts.port or 80

    @contextmanager
    def connect(self) -> Iterator[socket.socket]:
        """A TCP connection to the coordinator, through the proxy if there is one.

        Raises:
            OSError: No connection.
            ProxyError: The proxy refused.
        """
        with socket.create_connection(self.first_hop, timeout=TIMEOUT_SECONDS) as connection:
            if self.proxy is not None:
                self._ask_proxy(connection)
            yield connection

    def _ask_proxy(self, connection: socket.socket) -> None:
        target = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        status = _read_head(connection).partition("\r\n")[0]
        if status.split(" ")[1:2] != ["200"]:
            raise ProxyError(f"the proxy answered {status!r} to CONNECT {target}")

    @contextmanager
    def connect_tls(self, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
        """A TLS connection; what it verifies is the context's.

        Raises:
            OSError: No connection, or no TLS: `ssl.SSLError` is one.
            ProxyError: The proxy refused.
        """
        with self.connect() as plain, context.wrap_socket(plain, server_hostname=self.host) as connection:
            yield connection

    def read_certificate(self) -> x509.Certificate:
        """The certificate that the port shows, whether or not it can be trusted.

        Raises:
            OSError: No connection, or no TLS.
            ProxyError: The proxy refused.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # only looked at: nothing is sent over it
        with self.connect_tls(context) as connection:
            shown = connection.getpeercert(binary_form=True)
        if shown is None:
            raise ConsiliumError(f"{self.host}:{self.port} showed no certificate")
        return x509.load_der_x509_certificate(shown)

    def ask(
        self,
        authority: Path,
        path: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """One request over verified TLS.

        Raises:
            OSError: No connection, or no trusted TLS.
            ProxyError: The proxy refused.
            ConsiliumError: What answered does not speak HTTP.
        """
        with self.connect_tls(trusting(authority)) as connection:
            fields = {"Host": self.host, "Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
            head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
            started = time.time()
            connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
            response = HTTPResponse(connection, method=method)
            try:
                response.begin()
            except HTTPException as error:
                raise ConsiliumError(f"{self.host}:{self.port} answers no HTTP ({type(error).__name__})") from error
            local_time = (started + time.time()) / 2
            date = response.getheader("Date")
            server_time = parsedate_to_datetime(date).timestamp() if date else None
            told = response.read(MOST_BYTES)
            return Answer(status=response.status, server_time=server_time, local_time=local_time, body=told)


def trusting(authority: Path) -> ssl.SSLContext:
    """A context that trusts what this file's authorities signed, for the name that was asked for, and nothing else.

    Raises:
        OSError: The file cannot be read, or holds no certificate.
    """
    return ssl.create_default_context(cafile=str(authority))


def _read_head(connection: socket.socket) -> str:
    head = b""
    while b"\r\n\r\n" not in head:
        part = connection.recv(1)  # not one byte more: what follows belongs to TLS
        if not part or len(head) > 16_384:
            raise ProxyError("the proxy closed the connection, or answered something else than HTTP")
        head += part
    return head.decode("latin-1")
