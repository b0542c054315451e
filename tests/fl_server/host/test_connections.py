"""A connection on which no request comes ends, so that nobody without a key keeps hospitals out by holding many."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from fl_server.host import connections
from fl_server.host.connections import PunctualProtocol

REQUEST = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"


async def _app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(PunctualProtocol, "log", logging.getLogger("connections-test"), raising=False)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        _app, loop="asyncio", http=PunctualProtocol, ws="none", lifespan="off", log_level="critical", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)
    assert not PunctualProtocol._waiting, "a connection that has ended is still waited for"


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def answer_on(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"hi") and (piece := connection.recv(1000)):
        received += piece
    return received.rpartition(b"\r\n\r\n")[2]


def is_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1000) == b""
    except ConnectionResetError:
        return True


def test_a_whole_request_is_answered_and_another_after_it(port: int) -> None:
    with connect(port) as connection:
        for _ in range(2):
            connection.sendall(REQUEST + b"\r\nhi")
            assert answer_on(connection) == b"hi"


def test_a_connection_without_a_request_ends(port: int, caplog: pytest.LogCaptureFixture) -> None:
    started = time.monotonic()

    with connect(port) as connection:
        assert is_ended(connection)

    assert 0.4 < time.monotonic() - started < 3
    assert [line.getMessage() for line in caplog.records] == ["refused: no request came in time"]


def test_a_head_that_trickles_in_is_not_waited_for(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(REQUEST)
        time.sleep(0.3)
        connection.sendall(b"X-Slow: 1\r\n")
        assert is_ended(connection)


def test_the_head_of_a_later_request_is_not_waited_for_longer(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(REQUEST + b"\r\nhi")
        assert answer_on(connection) == b"hi"
        connection.sendall(REQUEST)
        assert is_ended(connection)


def test_a_head_of_any_length_is_not_kept_in_memory(port: int, caplog: pytest.LogCaptureFixture) -> None:
    endless = REQUEST + b"X-Long: " + b"A" * 64 * 2**20

    with connect(port) as connection, pytest.raises(OSError, match=r"reset|Broken pipe"):
        connection.sendall(endless)

    assert [line.getMessage() for line in caplog.records] == ["refused: the head of the request is too large"]


def test_a_body_of_unknown_length_is_refused(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Trailer: 1\r\n"
        )
        assert is_ended(connection)


def test_when_there_are_too_many_the_one_that_waits_longest_makes_room(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60)
    monkeypatch.setattr(connections, "most_connections", lambda: 2)

    with connect(port) as first, connect(port) as second, connect(port) as hospital:
        hospital.sendall(REQUEST + b"\r\nhi")
        assert answer_on(hospital) == b"hi"
        assert is_ended(first)
        second.sendall(REQUEST + b"\r\nhi")
        assert answer_on(second) == b"hi"


def test_half_of_the_files_that_may_be_open_are_left_for_the_rest() -> None:
    limits = Path("/proc/self/limits").read_text(encoding="ascii").splitlines()
    allowed = next(int(line.split()[3]) for line in limits if line.startswith("Max open files"))

    assert connections.most_connections() == allowed // 2
