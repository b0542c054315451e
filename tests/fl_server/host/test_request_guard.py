"""What reaches the SuperLink: by the hospitals' socket Fleet requests, by the operator's Control ones of the lead."""

import asyncio
import base64
import hashlib
import json
import logging
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from fl_server.host import request_guard
from fl_server.host.control_signature import BODY, NONCE, SIGNATURE, TIME, Checker, sign, signed_text
from fl_server.host.request_guard import RequestGuard

LEAD = Ed25519PrivateKey.generate()
OPERATOR = ("127.0.0.1", 8444)
PUBLIC = ("127.0.0.1", 8443)
START_RUN = "/v1/control/start-run"
PUSH = "/v1/fleet/push-object"
HOSPITAL = ec.generate_private_key(ec.SECP384R1())
P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


class _App:
    """Keeps what reached it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.status = 200
        self.works = 0.0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(body)
        await asyncio.sleep(self.works)
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


class _Guarded:
    def __init__(self) -> None:
        self.app = _App()
        self.time = datetime.now(UTC)
        checker = Checker(lambda: [LEAD.public_key()], now=lambda: self.time)
        self.guard = RequestGuard(
            self.app,
            operator=OPERATOR,
            checker=checker,
            nodes={public_key_to_bytes(HOSPITAL.public_key())},
            log=logging.getLogger("guard-test"),
        )

    def ask(
        self,
        path: str,
        *,
        server: tuple[str, int] = OPERATOR,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        method: str = "POST",
        scope: Mapping[str, Any] | None = None,
        pause: float = 0.0,
    ) -> tuple[int, str]:
        sent: list[MutableMapping[str, Any]] = []
        pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]
        incoming = [
            {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}
            for number, piece in enumerate(pieces)
        ]

        async def receive() -> MutableMapping[str, Any]:
            await asyncio.sleep(pause)
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        target, _, query = path.partition("?")
        full = {
            "type": "http",
            "method": method,
            "path": unquote(target),
            "raw_path": target.encode(),
            "query_string": query.encode(),
            "server": server,
            "client": ("10.0.0.9", 4242),
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
            **(scope or {}),
        }
        asyncio.run(self.guard(full, receive, send))
        if not sent:
            return 0, ""
        return sent[0]["status"], sent[1]["body"].decode().strip()


@pytest.fixture
def guarded() -> _Guarded:
    return _Guarded()


def signed(body: bytes = b"bundle", *, key: Ed25519PrivateKey = LEAD, path: str = START_RUN) -> dict[str, str]:
    return sign(key, method="POST", path=path, body=body)


def signed_by_node(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    time = datetime.now(UTC).isoformat()
    signature = sign_message(key, time.encode())
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER.lower(): base64.b64encode(public_key_to_bytes(key.public_key())).decode(),
        TIMESTAMP_HEADER.lower(): time,
        FLEET_HTTP_SIGNATURE_HEADER.lower(): base64.b64encode(signature).decode(),
    }


def signed_at(time: datetime, body: bytes = b"bundle") -> dict[str, str]:
    text, nonce, digest = time.isoformat(timespec="milliseconds"), "0" * 32, hashlib.sha256(body).hexdigest()
    signature = LEAD.sign(signed_text(method="POST", path=START_RUN, time=text, nonce=nonce, digest=digest))
    return {TIME: text, NONCE: nonce, BODY: digest, SIGNATURE: base64.b64encode(signature).decode()}


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/fleet/push-object", "/health"])
@pytest.mark.parametrize("server", [PUBLIC, OPERATOR, ("10.0.0.1", 8443)])
def test_hospitals_requests_pass_by_every_socket(guarded: _Guarded, path: str, server: tuple[str, int]) -> None:
    assert guarded.ask(path, server=server, body=b"hello") == (200, "done")
    assert guarded.app.bodies == [b"hello"]


@pytest.mark.parametrize(
    "path",
    [
        START_RUN,
        "/v1/control/stream-logs",
        "/v1/runtime/acquire-task",
        "/v1/runtime/responses",
        "/docs",
        "/openapi.json",
        "/",
        "//v1/control/start-run",
        "/v1//control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol%2fstart-run",
        "/v1/fleet%2fpull-messages",
        "/v1/%66leet/pull-messages",
        "/v1/%63ontrol/start-run",
        "/V1/FLEET/pull-messages",
        "/v1/fleet/",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull-messages%0a",
        "/v1/fleet/pull-messages;/v1/control",
        "/health/",
        "/healthz",
        "/health/../docs",
    ],
)
@pytest.mark.parametrize("server", [PUBLIC, ("10.0.0.1", 8443), ("10.0.0.1", 8444), ("127.0.0.1", 8443)])
def test_nothing_else_passes_by_the_hospitals_socket_even_signed(
    guarded: _Guarded, path: str, server: tuple[str, int]
) -> None:
    headers = signed(path=path)

    status, _ = guarded.ask(path, server=server, headers=headers, body=b"bundle")

    assert status == 403
    assert guarded.app.bodies == []


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/redoc", "/", "//v1/runtime/acquire-task", "/v1/control"])
def test_the_operators_socket_serves_no_other_page(guarded: _Guarded, path: str) -> None:
    assert guarded.ask(path, method="GET")[0] == 403


@pytest.mark.parametrize(
    "scope", [{"server": None}, {"server": ("localhost", 8444)}, {"root_path": "/v1"}, {"raw_path": None}]
)
def test_a_request_of_unknown_origin_is_a_strangers(guarded: _Guarded, scope: dict[str, Any]) -> None:
    assert guarded.ask(START_RUN, headers=signed(), body=b"bundle", scope=scope)[0] == 403


def test_runtime_requests_pass_by_the_operators_socket_alone(guarded: _Guarded) -> None:
    assert guarded.ask("/v1/runtime/acquire-task", server=OPERATOR)[0] == 200
    assert guarded.ask("/v1/runtime/acquire-task", server=PUBLIC)[0] == 403


def test_a_signed_request_passes_with_its_body_whole(guarded: _Guarded) -> None:
    body = bytes(range(256)) * 20

    assert guarded.ask(START_RUN, headers=signed(body), body=body) == (200, "done")
    assert guarded.app.bodies == [body]


def test_an_unsigned_request_is_refused_with_a_sentence_and_a_line_of_the_log(
    guarded: _Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    status, sentence = guarded.ask(START_RUN, body=b"bundle")

    assert (status, sentence) == (
        401,
        "the request is not signed; only the study lead may ask this, by fl-server",
    )
    (line,) = caplog.records
    assert (vars(line)["peer"], vars(line)["path"], vars(line)["status"]) == ("10.0.0.9:4242", START_RUN, 401)


@pytest.mark.parametrize("missing", [TIME, NONCE, BODY, SIGNATURE])
def test_a_request_without_one_of_the_headers_is_unsigned(guarded: _Guarded, missing: str) -> None:
    headers = {name: value for name, value in signed().items() if name != missing}

    assert guarded.ask(START_RUN, headers=headers, body=b"bundle")[0] == 401


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (TIME, "yesterday"),
        (TIME, "2026-11-29T10:00:00"),
        (TIME, "2026-11-29T10:00:00+02:00"),
        (NONCE, "short"),
        (BODY, "A" * 64),
        (SIGNATURE, "no base64"),
        (SIGNATURE, ""),
        (SIGNATURE, base64.b64encode(bytes(64)).decode()),
    ],
)
def test_headers_that_cannot_be_read_are_refused(guarded: _Guarded, name: str, value: str) -> None:
    assert guarded.ask(START_RUN, headers={**signed(), name: value}, body=b"bundle")[0] == 401


def test_somebody_elses_signature_is_refused(guarded: _Guarded) -> None:
    status, sentence = guarded.ask(START_RUN, headers=signed(key=Ed25519PrivateKey.generate()), body=b"bundle")

    assert (status, "signed by nobody who may" in sentence) == (401, True)


def test_a_request_is_good_for_once(guarded: _Guarded) -> None:
    headers = signed()

    first = guarded.ask(START_RUN, headers=headers, body=b"bundle")
    again = guarded.ask(START_RUN, headers=headers, body=b"bundle")

    assert (first[0], again) == (200, (401, "the request was seen before; each is good for once"))


@pytest.mark.parametrize("seconds", [-61, 61, -3600, 3600])
def test_an_old_or_early_request_is_refused(guarded: _Guarded, seconds: int) -> None:
    headers = signed_at(guarded.time)
    guarded.time += timedelta(seconds=seconds)

    status, sentence = guarded.ask(START_RUN, headers=headers, body=b"bundle")

    assert (status, f"{abs(seconds)} s {'ago' if seconds > 0 else 'ahead'}" in sentence) == (401, True)


@pytest.mark.parametrize("seconds", [0, 59])
def test_a_request_of_the_last_minute_passes(guarded: _Guarded, seconds: int) -> None:
    headers = signed_at(guarded.time)
    guarded.time += timedelta(seconds=seconds)

    assert guarded.ask(START_RUN, headers=headers, body=b"bundle")[0] == 200


def test_a_nonce_is_remembered_as_long_as_its_request_would_pass(guarded: _Guarded) -> None:
    headers = signed_at(guarded.time + timedelta(seconds=59))
    guarded.ask(START_RUN, headers=headers, body=b"bundle")
    guarded.time += timedelta(seconds=118)
    guarded.ask(START_RUN, headers=sign(LEAD, method="POST", path=START_RUN, body=b""))  # forgets what may be forgotten

    assert guarded.ask(START_RUN, headers=headers, body=b"bundle")[1] == (
        "the request was seen before; each is good for once"
    )


def test_a_request_from_before_the_guard_is_refused_as_its_nonce_may_be_used(guarded: _Guarded) -> None:
    status, sentence = guarded.ask(START_RUN, headers=signed_at(guarded.time - timedelta(seconds=5)), body=b"bundle")

    assert (status, sentence) == (401, "the request is older than this SuperLink; send it again")


@pytest.mark.parametrize("body", [b"", b"bundlf", b"bundle "])
def test_another_body_than_the_signed_one_is_refused(guarded: _Guarded, body: bytes) -> None:
    assert guarded.ask(START_RUN, headers=signed(b"bundle"), body=body) == (
        401,
        "the request's body is not the one that was signed",
    )


@pytest.mark.parametrize(("path", "method"), [("/v1/control/stop-run", "POST"), (START_RUN, "PUT"), (START_RUN, "GET")])
def test_a_signature_is_for_its_path_and_method_alone(guarded: _Guarded, path: str, method: str) -> None:
    assert guarded.ask(path, method=method, headers=signed(), body=b"bundle")[0] == 401


def test_a_query_is_not_signed_and_therefore_refused(guarded: _Guarded) -> None:
    assert guarded.ask(f"{START_RUN}?federation=other", headers=signed(), body=b"bundle")[0] == 403


def test_a_body_over_the_limit_is_refused(guarded: _Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_guard, "MAX_CONTROL_BYTES", 1500)
    body = bytes(2000)

    assert guarded.ask(START_RUN, headers=signed(body), body=body)[0] == 413


def test_a_hospitals_body_over_the_limit_is_cut_off(guarded: _Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_guard, "MAX_STRANGERS_BYTES", 1500)
    monkeypatch.setattr(request_guard, "MAX_FLEET_BYTES", 2500)

    within = guarded.ask(PUSH, server=PUBLIC, headers=signed_by_node(HOSPITAL), body=bytes(2500))
    beyond = guarded.ask(PUSH, server=PUBLIC, headers=signed_by_node(HOSPITAL), body=bytes(2600))

    assert (within, beyond) == ((200, "done"), (0, ""))
    assert guarded.app.bodies == [bytes(2500)]


def test_a_strangers_large_body_is_not_read_into_memory(
    guarded: _Guarded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Flower reads a request whole before it looks who sent it: a few of these would take the coordinator's memory."""
    monkeypatch.setattr(request_guard, "MAX_STRANGERS_BYTES", 1500)
    stranger, forged = ec.generate_private_key(ec.SECP384R1()), signed_by_node(HOSPITAL)
    forged[FLEET_HTTP_SIGNATURE_HEADER.lower()] = signed_by_node(stranger)[FLEET_HTTP_SIGNATURE_HEADER.lower()]

    answers = [
        guarded.ask(PUSH, server=PUBLIC, headers=headers, body=bytes(2000))
        for headers in ({}, signed_by_node(stranger), forged)
    ]

    assert answers == [(0, "")] * 3
    assert guarded.app.bodies == []
    assert [vars(line)["status"] for line in caplog.records] == [413] * 3


def test_a_body_that_trickles_in_is_not_waited_for(
    guarded: _Guarded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(request_guard, "STRANGERS_SECONDS", 0.05)

    assert guarded.ask(PUSH, server=PUBLIC, body=bytes(2000), pause=0.04) == (0, "")
    assert [vars(line)["status"] for line in caplog.records] == [408]


def test_an_answer_may_take_longer_than_a_body(guarded: _Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_guard, "STRANGERS_SECONDS", 0.05)
    guarded.app.works = 0.1

    assert guarded.ask(PUSH, server=PUBLIC, body=b"small") == (200, "done")


def test_a_websocket_is_closed(guarded: _Guarded) -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/fleet/pull-messages", "raw_path": b"/v1/fleet/pull-messages"}
    asyncio.run(guarded.guard(scope, receive, send))

    assert json.dumps(sent) == json.dumps([{"type": "websocket.close", "code": 1008}])


def test_a_hospitals_signed_request_is_answered_once(guarded: _Guarded) -> None:
    headers = signed_by_node(HOSPITAL)

    first = guarded.ask("/v1/fleet/pull-messages", server=PUBLIC, headers=headers)
    second = guarded.ask("/v1/fleet/pull-messages", server=PUBLIC, headers=headers)

    assert first[0] == 200
    assert second[0] == 409
    assert len(guarded.app.bodies) == 1


def test_another_spelling_of_a_signature_is_the_same_request(guarded: _Guarded) -> None:
    """ECDSA takes (r, n - s) for (r, s), and base64 leaves bits of its last letter unused."""
    name, headers = FLEET_HTTP_SIGNATURE_HEADER.lower(), signed_by_node(HOSPITAL)
    r, s = decode_dss_signature(base64.b64decode(headers[name]))
    turned = encode_dss_signature(r, P384_ORDER - s)
    HOSPITAL.public_key().verify(turned, headers[TIMESTAMP_HEADER.lower()].encode(), ec.ECDSA(hashes.SHA256()))

    first = guarded.ask("/v1/fleet/pull-messages", server=PUBLIC, headers=headers)
    again = guarded.ask(
        "/v1/fleet/pull-messages", server=PUBLIC, headers={**headers, name: base64.b64encode(turned).decode()}
    )

    assert (first[0], again[0]) == (200, 409)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_a_stranger_signed_is_not_kept(guarded: _Guarded, status: int) -> None:
    """Else anybody could fill the coordinator's memory."""
    guarded.app.status = status
    headers = signed_by_node(ec.generate_private_key(ec.SECP384R1()))

    answers = [guarded.ask("/v1/fleet/pull-messages", server=PUBLIC, headers=headers)[0] for _ in range(2)]

    assert answers == [status, status]


def test_a_signature_is_not_kept_where_nobody_checks_it(guarded: _Guarded) -> None:
    headers = signed_by_node(ec.generate_private_key(ec.SECP384R1()))

    assert [guarded.ask("/health", server=PUBLIC, headers=headers)[0] for _ in range(2)] == [200, 200]


def test_a_hospitals_request_that_flower_refused_is_kept(guarded: _Guarded) -> None:
    guarded.app.status = 412
    headers = signed_by_node(HOSPITAL)

    answers = [guarded.ask("/v1/fleet/pull-messages", server=PUBLIC, headers=headers)[0] for _ in range(2)]

    assert answers == [412, 409]
