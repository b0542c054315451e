"""Promise: each way in which a coordinator's port cannot be reached or trusted is named, with what to do about it."""

import socket
import threading
from pathlib import Path

import pytest
from tls_ports import Authority, connect_proxy, https_port

from fl_host.checks import Finding, Status
from fl_host.endpoint import Endpoint
from fl_host.network_checks import check_address, check_certificate, check_clock, check_route, judge_clock


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_a_trusted_port_passes_every_check(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost", "127.0.0.1")

    with https_port(certificate, key) as port:
        endpoint = Endpoint(host="127.0.0.1", port=port)
        findings = [
            check_address(endpoint),
            check_route(endpoint),
            check_certificate(endpoint, authority.certificate),
            check_clock(endpoint, authority.certificate),
        ]

    assert [finding.status for finding in findings] == [Status.OK] * 4
    assert "names localhost, 127.0.0.1" in findings[2].text
    assert "valid for 99 days" in findings[2].text


def test_with_a_proxy_every_connection_goes_through_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")

    with https_port(certificate, key) as port, connect_proxy() as (proxy_port, heads):
        endpoint = Endpoint(host="127.0.0.1", port=port, proxy=f"http://127.0.0.1:{proxy_port}")
        findings = [check_route(endpoint), check_clock(endpoint, authority.certificate)]

    assert [finding.status for finding in findings] == [Status.OK] * 2
    assert all(head.startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n") for head in heads)


@pytest.mark.parametrize("refusal", ["407 Proxy Authentication Required", "403 Forbidden"])
def test_a_proxy_that_refuses_is_quoted(refusal: str) -> None:
    with connect_proxy(refuses=refusal) as (proxy_port, _):
        finding = check_route(Endpoint(host="fl.example.org", port=8443, proxy=f"http://127.0.0.1:{proxy_port}"))

    assert finding.status is Status.FAILED
    assert refusal in finding.text
    assert "without a password" in finding.advice


def test_a_port_that_nobody_listens_on_is_said_to_refuse() -> None:
    finding = check_route(Endpoint(host="127.0.0.1", port=_free_port()))

    assert finding.status is Status.FAILED
    assert "refused" in finding.text


def test_a_name_without_address_fails() -> None:
    finding = check_address(Endpoint(host="coordinator.invalid", port=8443))

    assert finding.status is Status.FAILED
    assert "coordinator.invalid has no address" in finding.text


@pytest.mark.parametrize(
    ("names", "days", "days_old", "status", "told"),
    [
        (("fl.example.org", "10.0.0.5"), 100, 1, Status.FAILED, "for fl.example.org, 10.0.0.5, not for 127.0.0.1"),
        (("127.0.0.1",), -0.5, 1, Status.FAILED, "expired at"),
        (("127.0.0.1",), 5, -1, Status.FAILED, "this host's clock says"),
        (("127.0.0.1",), 29.5, 1, Status.WARNING, "valid for 29 days"),
        (("127.0.0.1",), 30.5, 1, Status.OK, "valid for 30 days"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_named(
    tmp_path: Path, names: tuple[str, ...], days: float, days_old: float, status: Status, told: str
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue(*names, days=days, days_old=days_old)

    with https_port(certificate, key) as port:
        finding = check_certificate(Endpoint(host="127.0.0.1", port=port), authority.certificate)

    assert finding.status is status
    assert told in finding.text


def test_another_authority_is_named(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs", name="inspection proxy")
    certificate, key = theirs.issue("127.0.0.1")

    with https_port(certificate, key) as port:
        finding = check_certificate(Endpoint(host="127.0.0.1", port=port), ours.certificate)

    assert finding.status is Status.FAILED
    assert "CN=inspection proxy" in finding.text


def test_a_port_without_tls_is_said_to_be_none(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1024)
                client.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        finding = check_certificate(Endpoint(host="127.0.0.1", port=listener.getsockname()[1]), authority.certificate)
        thread.join()

    assert finding.status is Status.FAILED
    assert "no TLS" in finding.text


@pytest.mark.parametrize(("ahead", "told"), [(3600, "behind"), (-3600, "ahead of")])
def test_a_clock_an_hour_off_fails(tmp_path: Path, ahead: float, told: str) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")

    with https_port(certificate, key, ahead=ahead) as port:
        finding = check_clock(Endpoint(host="127.0.0.1", port=port), authority.certificate)

    assert finding.status is Status.FAILED
    assert told in finding.text


@pytest.mark.parametrize(
    ("ahead", "status"),
    [
        (0.0, Status.OK),
        (2.0, Status.OK),
        (2.1, Status.WARNING),
        (5.0, Status.WARNING),
        (5.1, Status.FAILED),
        (-2.1, Status.WARNING),
        (-300.0, Status.WARNING),
        (-300.1, Status.FAILED),
    ],
)
def test_a_clock_fails_where_flower_refuses_and_warns_before(ahead: float, status: Status) -> None:
    finding: Finding = judge_clock(ahead)

    assert finding.status is status
