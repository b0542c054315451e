"""Promise: the coordinator's doctor names what is wrong with a federation's folder, ports and database."""

import fcntl
import json
import socket
import sqlite3
import time
from pathlib import Path

import coordinators
import pytest
from typer.testing import CliRunner

from fl_server.cli import app
from fl_server.host.database_check import check_database, online_sites
from fl_server.host.federation import FederationFolder
from fl_server.host.provisioning import lock_file
from fl_server.host.site_record import SiteRecord

Checks = dict[str, dict[str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> FederationFolder:
    return coordinators.new_folder(tmp_path / "federation")


def _ask(root: Path) -> tuple[int, Checks]:
    result = CliRunner().invoke(app, ["doctor", "--folder", str(root), "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, {check["name"]: check for check in json.loads(result.output)["checks"]}


def test_a_new_federation_has_nothing_wrong(folder: FederationFolder) -> None:
    code, checks = _ask(folder.root)

    assert code == 0
    assert [name for name, check in checks.items() if check["status"] == "failed"] == []
    assert checks["ports"]["finding"] == "free; fl-server start will listen on them"
    assert checks["certificate"]["finding"].startswith("for localhost, 127.0.0.1; valid for")


def test_without_a_folder_it_ends_with_the_code_of_a_wrong_setting(tmp_path: Path) -> None:
    code, checks = _ask(tmp_path / "absent")

    assert code == 2
    assert checks["settings"]["status"] == "failed"
    assert checks["database"]["status"] == "skipped"


def test_a_key_that_others_may_read_is_named(folder: FederationFolder) -> None:
    folder.lead_key.chmod(0o640)

    code, checks = _ask(folder.root)

    assert code == 1
    assert "lead.key" in checks["private files"]["finding"]


def test_an_expelled_hospital_is_not_missed(folder: FederationFolder) -> None:
    raw = {"public-key": "key", "fingerprint": "SHA256:key", "admitted-at": "2026-11-29T12:00:00+00:00"}
    expelled = {"expelled-at": "2026-11-29T13:00:00+00:00"}
    SiteRecord.parse({**raw, "site": "north", "node-id": 7}, origin="test").write(folder)
    SiteRecord.parse({**raw, "site": "south", "node-id": 8, **expelled}, origin="test").write(folder)

    with lock_file(folder).open("ab") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        _, checks = _ask(folder.root)

    assert checks["sites"]["finding"] == "1 admitted, 0 online; not online: north"


def test_an_address_that_the_certificate_does_not_hold_is_named(folder: FederationFolder) -> None:
    text = folder.settings_file.read_text()
    folder.settings_file.write_text(text.replace('address = "127.0.0.1"', 'address = "fl.example.org"'))

    code, checks = _ask(folder.root)

    assert code == 1
    assert "not for fl.example.org" in checks["certificate"]["finding"]


def test_another_program_on_a_port_is_named(folder: FederationFolder) -> None:
    port = folder.settings().port

    with socket.create_server(("127.0.0.1", port)):
        code, checks = _ask(folder.root)

    assert code == 1
    assert f"taken by another program: {port} on 127.0.0.1" in checks["ports"]["finding"]


def test_a_lead_key_that_is_kept_elsewhere_is_fine_and_no_public_key_is_not(folder: FederationFolder) -> None:
    folder.lead_key.unlink()
    assert "kept elsewhere" in _ask(folder.root)[1]["lead key"]["finding"]

    folder.lead_public_key.unlink()
    assert _ask(folder.root)[1]["lead key"]["status"] == "failed"


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "superlink.db"
    path.write_bytes(b"no database at all, " * 1000)

    finding = check_database(path)

    assert finding.status == "failed"
    assert "backup" in finding.advice


def test_a_node_is_online_while_its_lease_runs(tmp_path: Path) -> None:
    path = tmp_path / "superlink.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE node (name TEXT, status TEXT, online_until REAL)")
        rows = [
            ("north", "online", time.time() + 60),
            ("south", "online", time.time() - 60),
            ("east", "offline", time.time() + 60),
            ("gone", "unregistered", time.time() + 60),
        ]
        connection.executemany("INSERT INTO node VALUES (?, ?, ?)", rows)
    connection.close()

    assert online_sites(path) == {"north": True, "south": False, "east": False}
    assert check_database(path).status == "ok"
