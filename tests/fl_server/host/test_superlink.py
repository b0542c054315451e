"""A real SuperLink behind the guard: each attack that Flower as shipped lets through is refused, and logged."""

import json
import socket
import ssl
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coordinators
import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest

from fl_contract.errors import RunError
from fl_server.host.control import open_control
from fl_server.host.control_signature import sign
from fl_server.host.federation import FederationFolder
from fl_server.host.lead import read_lead_key
from fl_server.host.provisioning import begin_authority_change, finish_authority_change, renew_certificate

pytestmark = pytest.mark.deployment

PROTOBUF = {"content-type": "application/protobuf", "accept": "application/protobuf"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationFolder]:
    root = tmp_path_factory.mktemp("coordinator")
    folder = coordinators.new_folder(root / "federation")
    command = [sys.executable, "-m", "fl_server.host.superlink", str(folder.root)]
    with coordinators.serving(folder, command, root / "output"):
        yield folder


def post(
    folder: FederationFolder,
    path: str,
    body: bytes = b"",
    *,
    operator: bool = False,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    settings = folder.settings()
    port = settings.operator_port if operator else settings.port
    return httpx.post(
        f"https://127.0.0.1:{port}{path}",
        content=body,
        headers={**PROTOBUF, **(headers or {})},
        verify=coordinators.trusting(folder),
        trust_env=False,
        timeout=20,
    )


def refusals(folder: FederationFolder) -> list[dict[str, Any]]:
    lines = (folder.logs / "guard.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["message"].startswith("refused")]


def wait_for_refusals(folder: FederationFolder, before: int, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 10
    while len(found := refusals(folder)[before:]) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_the_study_lead_reaches_the_control_api(folder: FederationFolder) -> None:
    with open_control(folder) as control:
        assert list(control.ListNodes(ListNodesRequest()).nodes_info) == []
        assert dict(control.ListRuns(ListRunsRequest()).run_dict) == {}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/control/stream-logs",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-task-input",
        "//v1/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1/%63ontrol/list-runs",
    ],
)
def test_the_hospitals_port_answers_no_control_or_runtime_request_even_signed(
    folder: FederationFolder, path: str
) -> None:
    before = len(refusals(folder))

    answer = post(folder, path, headers=sign(read_lead_key(folder), method="POST", path=path, body=b""))

    assert answer.status_code == 403
    logged = refusals(folder)[before:]
    assert [(line["status"], line["socket"]) for line in logged] == [(403, "public")]
    assert logged[0]["peer"].startswith("127.0.0.1:")


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/redoc"])
@pytest.mark.parametrize("operator", [False, True])
def test_neither_port_shows_what_the_superlink_offers(folder: FederationFolder, path: str, operator: bool) -> None:
    port = folder.settings().operator_port if operator else folder.settings().port

    answer = httpx.get(f"https://127.0.0.1:{port}{path}", verify=coordinators.trusting(folder), trust_env=False)

    assert answer.status_code == 403


def test_health_is_answered_by_both_ports(folder: FederationFolder) -> None:
    for port in (folder.settings().port, folder.settings().operator_port):
        url = f"https://127.0.0.1:{port}/health"
        assert httpx.get(url, verify=coordinators.trusting(folder), trust_env=False).status_code == 200


@pytest.mark.parametrize("path", ["start-run", "stop-run", "stream-logs", "register-node", "get-login-details"])
def test_an_unsigned_control_request_is_refused_on_the_operators_port(folder: FederationFolder, path: str) -> None:
    before = len(refusals(folder))

    answer = post(folder, f"/v1/control/{path}", operator=True)

    assert (answer.status_code, "not signed" in answer.text) == (401, True)
    assert [line["status"] for line in refusals(folder)[before:]] == [401]


def test_somebody_elses_key_starts_no_run(folder: FederationFolder, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.key"
    stranger.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    stranger.chmod(0o600)

    with pytest.raises(RunError, match="signed by nobody who may"), open_control(folder, stranger) as control:
        control.StartRun(StartRunRequest())


def test_a_lead_key_that_is_added_counts_at_once_and_one_that_is_taken_away_no_longer(
    folder: FederationFolder, tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "second.key", folder.lead_key.parent / "second.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    private.chmod(0o600)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )

    with open_control(folder, private) as control:
        control.ListRuns(ListRunsRequest())
    public.unlink()

    with pytest.raises(RunError, match="signed by nobody who may"), open_control(folder, private) as control:
        control.ListRuns(ListRunsRequest())


def test_a_signed_request_that_was_overheard_cannot_be_sent_again_or_altered(folder: FederationFolder) -> None:
    path, body = "/v1/control/list-runs", ListRunsRequest(limit=5).SerializeToString()
    headers = sign(read_lead_key(folder), method="POST", path=path, body=body)
    altered = sign(read_lead_key(folder), method="POST", path=path, body=body)

    answers = [
        post(folder, path, body, operator=True, headers=headers),
        post(folder, path, body, operator=True, headers=headers),
        post(folder, path, ListRunsRequest(limit=6).SerializeToString(), operator=True, headers=altered),
        post(folder, "/v1/control/stop-run", body, operator=True, headers=altered),
    ]

    assert [answer.status_code for answer in answers] == [200, 401, 401, 401]
    assert "seen before" in answers[1].text
    assert "not the one that was signed" in answers[2].text


@pytest.mark.parametrize("operator", [False, True])
def test_a_task_is_not_claimed_without_the_executors_secret(folder: FederationFolder, operator: bool) -> None:
    answer = post(folder, "/v1/runtime/acquire-task", AcquireTaskRequest().SerializeToString(), operator=operator)

    assert answer.status_code == (401 if operator else 403)


@pytest.mark.parametrize("path", ["pull-task-input", "get-nodes", "push-logs", "pull-messages", "create-task"])
def test_nothing_of_a_task_is_had_without_its_token(folder: FederationFolder, path: str) -> None:
    assert post(folder, f"/v1/runtime/{path}", operator=True).status_code in (401, 403)


def test_a_stranger_registers_no_node(folder: FederationFolder) -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    public = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    by_fleet = post(folder, "/v1/fleet/register-node", RegisterNodeFleetRequest(public_key=public).SerializeToString())
    by_control = post(
        folder, "/v1/control/register-node", RegisterNodeRequest(public_key=public).SerializeToString(), operator=True
    )

    assert (by_fleet.is_success, by_control.status_code) == (False, 401)
    with open_control(folder) as control:
        assert list(control.ListNodes(ListNodesRequest()).nodes_info) == []


def test_without_tls_nothing_is_answered(folder: FederationFolder) -> None:
    before = len(refusals(folder))

    for port in (folder.settings().port, folder.settings().operator_port):
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)

    assert [line["cause"] for line in wait_for_refusals(folder, before, 2)] == ["HTTP_REQUEST", "HTTP_REQUEST"]


def test_who_trusts_another_authority_does_not_connect(folder: FederationFolder, tmp_path: Path) -> None:
    other = coordinators.new_folder(tmp_path / "other")
    before = len(refusals(folder))

    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(
            f"https://127.0.0.1:{folder.settings().port}/health", verify=coordinators.trusting(other), trust_env=False
        )

    assert [line["cause"] for line in wait_for_refusals(folder, before, 1)] == ["TLSV1_ALERT_UNKNOWN_CA"]


def test_all_that_the_superlink_wrote_is_its_owners_alone(folder: FederationFolder) -> None:
    written = [path for path in folder.root.rglob("*") if not path.is_symlink()]

    assert folder.database in written
    assert [path for path in written if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def served_serial(folder: FederationFolder, context: ssl.SSLContext) -> str:
    port = folder.settings().port
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
    ):
        certificate = connection.getpeercert()
    assert certificate is not None
    return str(certificate["serialNumber"])


def wait_for_another(folder: FederationFolder, context: ssl.SSLContext, before: str) -> str:
    deadline = time.monotonic() + 15
    while (serial := served_serial(folder, context)) == before:
        assert time.monotonic() < deadline, "the new certificate was not taken up"
        time.sleep(0.2)
    return serial


def test_a_renewed_certificate_is_taken_up_and_open_connections_stay(folder: FederationFolder) -> None:
    context = coordinators.trusting(folder)
    before = served_serial(folder, context)

    with httpx.Client(verify=context, trust_env=False) as client:
        url = f"https://127.0.0.1:{folder.settings().port}/health"
        client.get(url)
        renewed = renew_certificate(folder)
        after = wait_for_another(folder, context, before)

        assert client.get(url).status_code == 200
    assert int(after, 16) == renewed.serial_number


def test_a_certificate_without_its_key_is_not_used(folder: FederationFolder) -> None:
    context = coordinators.trusting(folder)
    before, key = served_serial(folder, context), folder.server_key.read_bytes()
    renew_certificate(folder)
    wait_for_another(folder, context, before)

    folder.server_key.write_bytes(key)
    folder.server_certificate.touch()
    time.sleep(2.5)

    assert served_serial(folder, context)
    assert "the new certificate is not used" in (folder.logs / "guard.jsonl").read_text()
    renew_certificate(folder)


def test_while_the_authority_changes_who_trusts_the_old_one_is_served_and_after_it_the_new_one_counts(
    folder: FederationFolder,
) -> None:
    old = coordinators.trusting(folder)
    before = served_serial(folder, old)

    begin_authority_change(folder)
    during = wait_for_another(folder, old, before)
    both = coordinators.trusting(folder)
    assert served_serial(folder, both) == during
    finish_authority_change(folder)
    new = coordinators.trusting(folder)
    wait_for_another(folder, new, during)

    with pytest.raises(ssl.SSLCertVerificationError):
        served_serial(folder, old)
