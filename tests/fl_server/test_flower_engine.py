"""Nothing that a Flower run starts outlives it, and its traffic on loopback goes through no proxy."""

import http.server
import subprocess
import threading
import time
from pathlib import Path

import pytest

import fl_server.flower_engine as flower_engine
from fl_contract.errors import RunError
from fl_server.flower_engine import _Commands, _find_processes, _is_healthy, _past_any_proxy


class _Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        pass


def test_health_is_asked_past_any_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), _Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        healthy = _is_healthy(f"127.0.0.1:{server.server_port}")

        server.shutdown()
    assert healthy
    assert not _is_healthy("127.0.0.1:9")


def test_exceptions_from_a_proxy_are_kept_and_loopback_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "hub.internal")
    monkeypatch.setenv("no_proxy", "hub.internal")

    assert _past_any_proxy() == dict.fromkeys(("NO_PROXY", "no_proxy"), "hub.internal,127.0.0.1,localhost")


@pytest.mark.parametrize(
    "script",
    [
        "sleep 60 & wait",
        "setsid sleep 60 & wait",  # another session, as Ray's
        "env -i sleep 60 & wait",  # without our mark, as Ray's workers
        "setsid sh -c 'setsid sleep 60 & sleep 60' & exit 0",  # orphans
        "trap '' TERM; sleep 60 & sleep 60",  # does not end when it is asked to
    ],
)
def test_all_that_a_command_started_is_ended(tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_engine, "TERMINATE_SECONDS", 0.6)
    commands = _Commands(tmp_path, threading.Event())
    commands.start(["sh", "-c", script], subprocess.DEVNULL)
    time.sleep(0.3)
    before = _find_processes(commands._mark, set())

    commands.end()

    assert before
    assert _find_processes(commands._mark, before) == set()


def test_a_stop_ends_the_wait_for_a_command(tmp_path: Path) -> None:
    stop = threading.Event()
    commands = _Commands(tmp_path, stop)
    threading.Timer(0.2, stop.set).start()

    with (tmp_path / "log").open("wb") as log, pytest.raises(RunError, match="was stopped"):
        commands.run(["sleep", "60"], log)

    commands.end()
    assert _find_processes(commands._mark, set()) == set()
