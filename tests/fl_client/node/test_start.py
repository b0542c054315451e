"""A node starts only when it is complete and private, and its processes see no more of the host than they need."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from probe_superlink import write_certificates

from fl_client.node.enrolment import check_invitation, enroll, join
from fl_client.node.node_folder import NodeFolder
from fl_client.node.start import check_ready, executor_environment, node_environment, start
from fl_contract.enrolment import Invitation
from fl_contract.errors import SettingError

LEAD = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
SQL = """
name = "st-anna"
declared-examples = 70

[source]
kind = "sql"
url = "postgresql://db.example.org:5432/research?sslmode=verify-full"
credentials = { environment = "DATABASE_LOGIN" }
query = "SELECT age, fold FROM patients"
fold = "fold"
label = "diagnosis"

[policy]
epsilon-budget = 10.0
delta = 0.001

[node]
proxy = "http://proxy.example.org:3128"
"""


@pytest.fixture
def site_file(write_site_file: Callable[..., Path], tmp_path: Path) -> Path:
    """Of a hospital that joined."""
    path = write_site_file("st-anna")
    made = enroll(path, tmp_path / "request.json")
    fields = {
        "federation": "cardio",
        "site": "st-anna",
        "address": "fl.example.org:8443",
        "authority": write_certificates(tmp_path),
        "lead-public-key": LEAD,
        "node-key": made.fingerprint,
    }
    invitation = tmp_path / "invitation.json"
    invitation.write_text(Invitation.parse(fields, origin="test").to_json(), encoding="utf-8")
    join(path, check_invitation(path, invitation))
    return path


def test_a_hospital_that_joined_may_start(site_file: Path) -> None:
    node = check_ready(site_file)

    assert (node.invitation.federation, node.settings.name) == ("cardio", "st-anna")


def open_key(site_file: Path) -> None:
    NodeFolder.of(site_file).key.chmod(0o644)


def open_folder(site_file: Path) -> None:
    NodeFolder.of(site_file).root.chmod(0o755)


def leave_out_invitation(site_file: Path) -> None:
    NodeFolder.of(site_file).invitation.unlink()


def rename_hospital(site_file: Path) -> None:
    text = site_file.read_text(encoding="utf-8")
    site_file.write_text(text.replace('name = "st-anna"', 'name = "st-josef"'), encoding="utf-8")


def replace_key(site_file: Path) -> None:
    folder = NodeFolder.of(site_file)
    enroll(site_file, site_file.parent / "again.json", new_key=True)
    folder.next_key.replace(folder.key)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (leave_out_invitation, "fl-client join come first"),
        (open_key, "mode=0644"),
        (open_folder, "mode=0755"),
        (rename_hospital, "enrol under this name"),
        (replace_key, "fl-client join again"),
    ],
)
def test_a_node_that_lacks_something_does_not_start(site_file: Path, spoil: Callable[[Path], None], rule: str) -> None:
    spoil(site_file)

    with pytest.raises(SettingError, match=rule):
        check_ready(site_file)


def test_a_port_that_is_taken_is_named(site_file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with site_file.open("a", encoding="utf-8") as stream:
            stream.write(f"\n[node]\nruntime-port = {port}\n")

        with pytest.raises(SettingError, match=f"node.runtime-port={port}"):
            start(check_ready(site_file), print)


def test_the_processes_see_what_they_need_and_only_the_supernode_the_proxy(site_file: Path) -> None:
    site_file.write_text(SQL, encoding="utf-8")
    node = check_ready(site_file)
    own = {
        "PATH": "/usr/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "DATABASE_LOGIN": "user:password",
        "PGPASSWORD": "password",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "PYTHONPATH": "/tmp/code",
        "http_proxy": "http://other",
    }

    of_node, of_apps = node_environment(node, own), executor_environment(node, own)

    assert of_node["HTTPS_PROXY"] == "http://proxy.example.org:3128"
    assert of_node["NO_PROXY"] == "127.0.0.1,localhost"
    assert "DATABASE_LOGIN" not in of_node
    assert of_apps["DATABASE_LOGIN"] == "user:password"
    assert "HTTPS_PROXY" not in of_apps
    assert of_apps["OPENBLAS_NUM_THREADS"] == "1"  # else the executor could not fork
    for environment in (of_node, of_apps):
        assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert environment["CUDA_VISIBLE_DEVICES"] == "0"
        assert not {"PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "http_proxy"} & set(environment)
