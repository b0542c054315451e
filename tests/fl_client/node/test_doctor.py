"""Promise: the hospital's doctor names what keeps it from taking part, in the order in which it is put right."""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from tls_ports import Authority, https_port
from typer.testing import CliRunner

from fl_client.cli import app
from fl_client.node.enrolment import check_invitation, enroll, join
from fl_client.node.node_folder import NodeFolder
from fl_client.node.registration import judge
from fl_contract.enrolment import EnrolmentRequest, Invitation
from fl_host.endpoint import Answer

Checks = dict[str, dict[str, str]]


@pytest.fixture
def site_file(write_site_file: Callable[..., Path]) -> Path:
    return write_site_file("st-anna")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "coordinator").mkdir()
    return Authority(tmp_path / "coordinator")


@pytest.fixture
def port(authority: Authority) -> Iterator[int]:
    with https_port(*authority.issue("127.0.0.1")) as port:
        yield port


@pytest.fixture
def joined(site_file: Path, authority: Authority, port: int, tmp_path: Path) -> NodeFolder:
    """The folder of a node that has joined a coordinator on this port."""
    made = enroll(site_file, tmp_path / "request.json")
    lead = ed25519.Ed25519PrivateKey.generate().public_key()
    line = lead.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    raw = {
        "federation": "cardio",
        "site": EnrolmentRequest.read(made.request).site,
        "address": f"127.0.0.1:{port}",
        "authority": authority.certificate.read_text(),
        "lead-public-key": line,
        "node-key": made.fingerprint,
    }
    invitation = tmp_path / "invitation.json"
    invitation.write_text(Invitation.parse(raw, origin="test").to_json())
    join(site_file, check_invitation(site_file, invitation))
    return NodeFolder.of(site_file)


def _ask(*arguments: str) -> tuple[int, Checks]:
    result = CliRunner().invoke(app, ["doctor", *arguments, "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, {check["name"]: check for check in json.loads(result.output)["checks"]}


def test_settings_that_cannot_be_read_end_it_with_2(tmp_path: Path) -> None:
    code, checks = _ask(str(tmp_path / "site.toml"))

    assert code == 2
    assert checks["settings"]["status"] == "failed"
    assert checks["certificate"]["status"] == checks["budget"]["status"] == "skipped"


def test_a_hospital_that_did_not_enrol_is_told_to(site_file: Path) -> None:
    code, checks = _ask(str(site_file))

    assert code == 1
    assert checks["node key"]["advice"] == f"fl-client enroll {site_file}"
    assert checks["route"]["status"] == "skipped"
    assert checks["data source"]["status"] == checks["budget"]["status"] == checks["journal"]["status"] == "ok"


def test_a_hospital_that_joined_reaches_its_coordinator(joined: NodeFolder, site_file: Path) -> None:
    _, checks = _ask(str(site_file))

    for name in ("private files", "node key", "invitation", "name", "route", "certificate", "clock", "node"):
        assert checks[name]["status"] == "ok", checks[name]
    # What answers here is no SuperLink.
    assert checks["admitted"]["finding"] == "the coordinator answered 403, error code None"
    assert checks["approvals"]["advice"] == f"fl-client approve {site_file} BUNDLE.fab"


def test_a_certificate_file_that_is_not_the_invitations_is_noticed(joined: NodeFolder, site_file: Path) -> None:
    joined.authority.write_text(joined.authority.read_text() * 2)

    assert _ask(str(site_file))[1]["invitation"]["status"] == "failed"


def test_with_a_study_the_records_are_read_and_held_against_it(site_file: Path) -> None:
    _, fits = _ask(str(site_file), "--study", "breast-cancer")
    _, breaks = _ask(str(site_file), "--study", "digits")

    assert fits["data source"]["status"] in ("ok", "warning")
    assert breaks["data source"]["status"] == "failed"
    assert f"fl-client check {site_file} --study digits" in breaks["data source"]["advice"]


@pytest.mark.parametrize(
    ("state", "status", "told"),
    [
        ("connected", "ok", "runs, connected"),
        ("refused: this node's key is not known", "warning", "runs: refused"),
        (None, "warning", "not connected yet"),
    ],
)
def test_a_running_node_says_how_it_is_connected(
    joined: NodeFolder, site_file: Path, state: str | None, status: str, told: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _set_runtime_port(site_file, listener.getsockname()[1])
        if state is not None:
            joined.connection.write_text(state)
        holder = os.open(joined.lock, os.O_RDWR | os.O_CREAT)
        fcntl.flock(holder, fcntl.LOCK_EX)
        _, checks = _ask(str(site_file))
        os.close(holder)

    assert checks["node"]["status"] == status
    assert told in checks["node"]["finding"]


def test_another_program_on_the_runtime_port_is_named(joined: NodeFolder, site_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _set_runtime_port(site_file, listener.getsockname()[1])
        _, checks = _ask(str(site_file))

    assert checks["node"]["status"] == "failed"
    assert "another program's" in checks["node"]["finding"]


@pytest.mark.parametrize(
    ("status", "body", "verdict", "told"),
    [
        (400, {"code": 2003}, "ok", "knows"),
        (412, {"code": 2004}, "failed", "does not know"),
        (401, {"detail": "Invalid SuperNode authentication"}, "failed", "signature"),
        (200, [], "failed", "answered 200"),
    ],
)
def test_what_the_coordinator_answers_says_whether_it_knows_the_key(
    status: int, body: Any, verdict: str, told: str
) -> None:
    answer = Answer(status=status, server_time=None, local_time=0.0, body=json.dumps(body).encode())

    finding = judge(answer)

    assert finding.status == verdict
    assert told in finding.text


def _set_runtime_port(site_file: Path, port: int) -> None:
    site_file.write_text(f"{site_file.read_text()}\n[node]\nruntime-port = {port}\n")
