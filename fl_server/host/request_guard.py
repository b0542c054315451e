"""The only place that decides which request reaches Flower's SuperLink: by its socket, its path, and its signature."""

import hashlib
import re
from collections.abc import Awaitable, Callable, MutableMapping
from logging import Logger
from typing import Any, TypeAlias

from flwr.supercore.constant import FLEET_HTTP_SIGNATURE_HEADER

from fl_server.host.control_signature import Checker, UnsignedError
from fl_server.host.replays import Replays

FLEET = re.compile(r"/v1/fleet/[a-z-]+|/health")
"""What hospitals need. Whole and literal: no encoded letter, double slash or dot gets by."""
RUNTIME = re.compile(r"/v1/runtime/[a-z-]+")
CONTROL = re.compile(r"/v1/control/[a-z-]+")
SIGNATURE_HEADER = FLEET_HTTP_SIGNATURE_HEADER.lower().encode()
UNAUTHORIZED = 401
MAX_CONTROL_BYTES = 16 * 2**20
"""A bundle is at most 10 MiB."""
MAX_FLEET_BYTES = 64 * 2**20
"""Flower cuts models into pieces of about 5 MB, and reads a request whole before it looks who sent it."""

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
        - Nothing else is answered by either, Flower's documentation pages included.
        - Each refusal is one line of the log: who asked what, and why not.

    Args:
        app: What it guards.
        operator: Address and port of the operator's socket; the scope's own say by which socket a request came in.
        checker: Of signatures.
        log: Of refusals.
    """

    def __init__(self, app: App, *, operator: tuple[str, int], checker: Checker, log: Logger) -> None:
        self._app = app
        self._operator = operator
        self._checker = checker
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
            await _answer(scope, send, refused)
            return
        await self._app(scope, replayed, self._forgetting(scope, send))

    def _forgetting(self, scope: Scope, send: Send) -> Send:
        """Forget the signature of a request that Flower refuses as unsigned: nobody fills memory without a key."""
        signature = _signature_of(scope)
        if signature is None:
            return send

        async def forgetting(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] == UNAUTHORIZED:
                self._replays.forget(signature)
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
            self._admit_fleet(scope)
            return _limited(receive)
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
        if signature is not None and not self._replays.is_new(signature):
            raise _RefusedError(409, "the request was seen before; each is good for once")

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


def _signature_of(scope: Scope) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == SIGNATURE_HEADER), None)


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


def _limited(receive: Receive) -> Receive:
    """Pass a body on up to a limit; beyond it the app sees a peer that has gone."""
    seen = 0

    async def limited() -> MutableMapping[str, Any]:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > MAX_FLEET_BYTES else message

    return limited


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
