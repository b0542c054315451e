"""The only place that decides which request reaches Flower's SuperLink: by its socket, its path, and its signature."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Container, MutableMapping
from logging import Logger
from typing import Any, TypeAlias

from fl_server.host.control_signature import Checker, UnsignedError
from fl_server.host.node_signature import NodeSignature
from fl_server.host.replays import Replays

HEALTH = "/health"
FLEET = re.compile(rf"/v1/fleet/[a-z-]+|{HEALTH}")
"""What hospitals need. Whole and literal: no encoded letter, double slash or dot gets by."""
RUNTIME = re.compile(r"/v1/runtime/[a-z-]+")
CONTROL = re.compile(r"/v1/control/[a-z-]+")
MAX_CONTROL_BYTES = 16 * 2**20
"""A bundle is at most 10 MiB."""
MAX_FLEET_BYTES = 64 * 2**20
"""Flower cuts models into pieces of about 5 MB."""
MAX_STRANGERS_BYTES = 64 * 2**10
STRANGERS_SECONDS = 30.0
"""For a body of at most that size, or the first so many bytes of one that a hospital signed: Flower reads a request
whole before it looks who sent it."""

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class _RefusedError(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class RequestGuard:
    """ASGI middleware around the whole SuperLink.

    Guarantees:
        - By any socket but the operator's, only Fleet paths and ``/health`` are answered.
        - By the operator's, Runtime paths too; Control paths only where the study lead signed the request.
        - A hospital's signed request is answered once.
        - A large or slow body is read only of a request that a hospital signed.
        - Nothing else is answered by either, Flower's documentation pages included.
        - Each refusal is one line of the log: who asked what, and why not.

    Args:
        app: What it guards.
        operator: Address and port of the operator's socket; the scope's own say by which socket a request came in.
        checker: Of the study lead's signatures.
        nodes: Public keys of hospitals, PEM.
        log: Of refusals.
    """

    def __init__(
        self, app: App, *, operator: tuple[str, int], checker: Checker, nodes: Container[bytes], log: Logger
    ) -> None:
        self._app = app
        self._operator = operator
        self._checker = checker
        self._nodes = nodes
        self._replays = Replays()
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            replayed = await self._admit(scope, receive)
        except _RefusedError as refused:
            self._write_refusal(scope, refused)
            await _answer(scope, send, refused)
            return
        await self._app(scope, replayed, self._forgetting(scope, send))

    def _write_refusal(self, scope: Scope, refused: _RefusedError) -> None:
        self._log.warning(
            "refused: %s",
            refused,
            extra={
                "status": refused.status,
                "peer": _peer(scope),
                "method": scope.get("method", scope["type"]),
                "path": str(scope["path"])[:200],
                "socket": "operator" if self._is_operators(scope) else "public",
            },
        )

    def _forgetting(self, scope: Scope, send: Send) -> Send:
        """Forget a stranger's signature when Flower has refused it: nobody fills memory without a key."""
        signature = _signature_of(scope)
        if signature is None:
            return send

        async def forgetting(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400 and not self._is_hospitals(scope):
                self._replays.forget(signature.identity)
            await send(message)

        return forgetting

    async def _admit(self, scope: Scope, receive: Receive) -> Receive:
        """What the app may read the request's body from.

        Raises:
            _RefusedError: The request may not pass.
        """
        path = str(scope["path"])
        if scope["type"] != "http" or scope.get("raw_path") != path.encode() or scope.get("root_path"):
            raise _RefusedError(403, "this is not served here")
        if FLEET.fullmatch(path):
            if path != HEALTH:
                self._admit_fleet(scope)
            return self._limited(scope, receive)
        if not self._is_operators(scope):
            raise _RefusedError(403, "only hospitals' requests are served here")
        if RUNTIME.fullmatch(path):
            return receive
        if CONTROL.fullmatch(path) and not scope.get("query_string"):
            return await self._admit_control(scope, receive)
        raise _RefusedError(403, "this is not served here")

    def _admit_fleet(self, scope: Scope) -> None:
        """Flower checks the signature; here it is only held against those that were seen."""
        signature = _signature_of(scope)
        if signature is not None and not self._replays.is_new(signature.identity):
            raise _RefusedError(409, "the request was seen before; each is good for once")

    def _is_hospitals(self, scope: Scope) -> bool:
        signature = _signature_of(scope)
        return signature is not None and signature.public_key in self._nodes and signature.fits()

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Pass a body on up to the limits; beyond them the app sees a peer that has gone."""
        deadline: float | None = asyncio.get_running_loop().time() + STRANGERS_SECONDS
        limit, seen, is_whole = MAX_STRANGERS_BYTES, 0, False

        def cut_off(status: int, sentence: str) -> MutableMapping[str, Any]:
            self._write_refusal(scope, _RefusedError(status, sentence))
            return {"type": "http.disconnect"}

        async def limited() -> MutableMapping[str, Any]:
            nonlocal deadline, limit, seen, is_whole
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                return cut_off(408, "the request's body did not come in time")
            seen += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if seen > limit == MAX_STRANGERS_BYTES and self._is_hospitals(scope):
                deadline, limit = None, MAX_FLEET_BYTES
            return message if seen <= limit else cut_off(413, f"the request's body is larger than {limit} bytes")

        return limited

    async def _admit_control(self, scope: Scope, receive: Receive) -> Receive:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            digest = self._checker.check(headers, method=scope["method"], path=scope["path"])
        except UnsignedError as error:
            raise _RefusedError(401, str(error)) from error
        body = await _read_body(receive)
        if hashlib.sha256(body).hexdigest() != digest:
            raise _RefusedError(401, "the request's body is not the one that was signed")
        return _replay(body, receive)

    def _is_operators(self, scope: Scope) -> bool:
        server = scope.get("server") or ("", 0)
        return (server[0], server[1]) == self._operator


def _signature_of(scope: Scope) -> NodeSignature | None:
    return NodeSignature.of(scope["headers"])


async def _read_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _RefusedError(400, "the request ended before its body did")
        body += message.get("body", b"")
        if len(body) > MAX_CONTROL_BYTES:
            raise _RefusedError(413, f"the request's body is larger than {MAX_CONTROL_BYTES} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body once; then what comes after it, such as that the peer has gone."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> MutableMapping[str, Any]:
        return pending.pop() if pending else await receive()

    return replayed


async def _answer(scope: Scope, send: Send, refused: _RefusedError) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    text = f"{refused}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def _peer(scope: Scope) -> str:
    client = scope.get("client") or ("unknown", 0)
    return f"{client[0]}:{client[1]}"
