"""Whoever is not of the federation is refused, and the side that refuses writes it down."""

import base64
import hashlib
import json
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_ssh_public_key, ssh_key_fingerprint
from deployed_federation import Federation, federation
from flwr.cli.build import build_fab_from_disk
from heart_hospitals import DATA, file_hospital

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(not DATA.exists(), reason=f"{DATA.name}: the four hospitals' files are not beside us"),
]

PLAIN = ("--set", "privacy.mechanism=none", "--set", "num-rounds=1", "--set", "stopping.patience=0")


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A coordinator with one hospital that is online, one that is expelled, and one that was never admitted."""
    with federation(tmp_path_factory.mktemp("outsiders")) as made:
        made.init()
        made.start_coordinator()
        made.enrol("cleveland", file_hospital("cleveland"))
        made.enrol("hungarian", file_hospital("hungarian"))
        made.start_hospital("cleveland")
        yield made


def _logged(made: Federation, where: str) -> str:
    """What a host wrote into its logs: ``federation`` or a hospital's name."""
    folder = (
        made.folder / "federation" / "logs" if where == "federation" else made.site_file(where).parent / "node" / "logs"
    )
    return "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.jsonl*")))


def _copy_of(made: Federation, name: str, copy: str) -> Path:
    """A second place with a hospital's files, its own runtime port."""
    folder = made.folder / "hospitals" / copy
    shutil.copytree(made.site_file(name).parent, folder)
    site = folder / "site.toml"
    fresh = re.search(r"runtime-port = \d+", file_hospital("va"))
    assert fresh is not None
    site.write_text(re.sub(r"runtime-port = \d+", fresh[0], site.read_text()))
    return site


def _change_invitation(site: Path, **changes: str) -> None:
    path = site.parent / "node" / "invitation.json"
    named = {key.replace("_", "-"): value for key, value in changes.items()}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))


def _fingerprint(public_line: bytes) -> str:
    digest = ssh_key_fingerprint(load_ssh_public_key(public_line), hashes.SHA256())
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def test_a_connection_without_tls_is_refused(inside: Federation) -> None:
    with socket.create_connection(("127.0.0.1", inside.port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")

        answer = connection.recv(1000)

    assert not answer.startswith(b"HTTP")
    assert "TLS" in _logged(inside, "federation")


def test_a_coordinator_of_another_authority_is_refused_by_the_hospital(inside: Federation) -> None:
    inside.run("fl-server", "init", "--name", "other", "--address", "localhost", "--folder", "other")
    site = _copy_of(inside, "hungarian", "wrong-authority")
    authority = (inside.folder / "other" / "pki" / "ca.crt").read_text()
    _change_invitation(site, authority=authority)
    (site.parent / "node" / "ca.crt").write_text(authority)

    service = inside.start("wrong-authority", "fl-client", "start", str(site))

    service.await_text("CERTIFICATE_VERIFY_FAILED|certificate", seconds=60)
    service.end()
    assert "ertificate" in _logged(inside, "wrong-authority")


def test_a_key_that_was_never_admitted_is_refused(inside: Federation) -> None:
    site = _copy_of(inside, "hungarian", "stranger")
    done = inside.run("fl-client", "enroll", str(site), "--new-key", "--out", "stranger.json", check=False)
    assert done.returncode == 0, done.stderr
    for ending in ("key", "pub"):  # as if it had been joined
        (site.parent / "node" / f"next.{ending}").rename(site.parent / "node" / f"node.{ending}")
    line = (site.parent / "node" / "node.pub").read_bytes()
    _change_invitation(site, node_key=_fingerprint(line))

    service = inside.start("stranger", "fl-client", "start", str(site))

    service.await_text("does not know this node.s key", seconds=60)
    service.end()
    assert re.search("2004|activate", _logged(inside, "federation"))


def test_an_expelled_hospital_is_refused(inside: Federation) -> None:
    service = inside.start_hospital("hungarian")

    inside.run("fl-server", "expel", "hungarian", "--yes")

    assert service.process.wait(90) != 0 or "expelled" in service.printed()
    assert "expelled" in service.printed()
    assert "expelled" in inside.run("fl-server", "sites").stdout


@pytest.mark.chaos  # a node waits for more than a minute, as it has to after a crash of its own
def test_a_second_node_with_a_copied_key_is_refused_while_the_first_is_there(inside: Federation) -> None:
    site = _copy_of(inside, "cleveland", "copied")

    service = inside.start("copied", "fl-client", "start", str(site))

    service.await_text("another node with this key is online", seconds=110)
    service.end()
    assert inside.run_study("heart-disease", *PLAIN, "--set", "federation.min-sites=1").returncode == 0


def test_a_bundle_without_a_signature_is_not_approved(inside: Federation) -> None:
    bundle = inside.folder / "unsigned.fab"
    shutil.copyfile(inside.bundle, bundle)

    done = inside.run("fl-client", "approve", str(inside.site_file("cleveland")), str(bundle), "--yes", check=False)

    assert done.returncode != 0
    assert "signature" in done.stderr


def _altered(made: Federation) -> Path:
    """A whole bundle, of the same sources with one more line."""
    tree = made.folder / "consilium"
    if not tree.exists():
        tree.mkdir()
        for name in ("fl_contract", "privacy", "strategies", "fl_client", "fl_server", "studies"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "LICENSE"):
            shutil.copy(ROOT / name, tree / name)
        with (tree / "fl_client" / "training.py").open("a") as stream:
            stream.write("\n# more\n")
    path = made.folder / "altered.fab"
    path.write_bytes(build_fab_from_disk(tree))
    return path


def test_an_altered_bundle_is_not_approved(inside: Federation) -> None:
    bundle = _altered(inside)
    shutil.copyfile(f"{inside.bundle}.sig", f"{bundle}.sig")

    done = inside.run("fl-client", "approve", str(inside.site_file("cleveland")), str(bundle), "--yes", check=False)

    assert done.returncode != 0
    assert "sha256" in done.stderr


def test_a_bundle_that_was_not_approved_does_not_run(inside: Federation) -> None:
    """The lead asks for it, by a signed request: approval is the hospital's, and it has not given it."""
    bundle = _altered(inside)

    done = inside.run(
        "fl-server",
        "run",
        "heart-disease",
        "--bundle",
        str(bundle),
        *PLAIN,
        "--set",
        "federation.min-sites=1",
        check=False,
    )

    sha256 = hashlib.sha256(bundle.read_bytes()).hexdigest()
    entries = [entry["content"] for entry in inside.journal("cleveland")]
    assert done.returncode == 1
    assert any(entry["kind"] == "refusal" and entry.get("bundle") == sha256 for entry in entries), entries[-3:]
    assert not any(entry["kind"] == "run" and entry["bundle"] == sha256 for entry in entries)


def test_a_run_that_somebody_else_signs_is_refused(inside: Federation) -> None:
    inside.run("fl-server", "init", "--name", "third", "--address", "localhost", "--folder", "third")

    done = inside.run(
        *("fl-server", "run", "heart-disease", "--bundle", str(inside.bundle)),
        *("--lead-key", str(inside.folder / "third" / "lead" / "lead.key"), *PLAIN),
        check=False,
    )

    assert done.returncode == 1
    assert "signed by nobody who may" in done.stderr
    assert "signed by nobody who may" in _logged(inside, "federation")


@pytest.mark.parametrize("path", ["/v1/control/list-runs", "/v1/runtime/acquire-task", "/docs", "/openapi.json"])
def test_hospitals_port_answers_nothing_but_fleet_and_health(inside: Federation, path: str) -> None:
    answer = _post(inside.port, path, inside.folder / "federation" / "pki" / "ca.crt")

    assert answer.startswith(b"HTTP/1.1 403")
    assert path in _logged(inside, "federation")


@pytest.mark.parametrize("path", ["/v1/control/list-runs", "/v1/control/start-run", "/v1/control/stream-logs"])
def test_the_operators_port_answers_nothing_that_is_not_signed(inside: Federation, path: str) -> None:
    answer = _post(inside.operator_port, path, inside.folder / "federation" / "pki" / "ca.crt")

    assert answer.startswith(b"HTTP/1.1 401")


def _post(port: int, path: str, authority: Path) -> bytes:
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n"
            "Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
    return answer
