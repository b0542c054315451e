"""A federation's folder is whole, its owner's alone, and its certificates can be renewed."""

import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coordinators
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from fl_contract.errors import SettingError
from fl_server.cli import app
from fl_server.host.authority import names_of
from fl_server.host.federation import FederationFolder, FederationSettings
from fl_server.host.lead import lead_fingerprint, read_lead_key, read_trusted_leads
from fl_server.host.provisioning import (
    NewFederation,
    begin_authority_change,
    finish_authority_change,
    lock_file,
    make_federation,
    renew_certificate,
)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> FederationFolder:
    return coordinators.new_folder(tmp_path / "federation")


def new(**changed: Any) -> NewFederation:
    raw = {"name": "cardio", "address": "fl.example.org", **changed}
    return NewFederation(settings=FederationSettings.parse(raw, origin="test"), also=("10.0.0.5",))


@pytest.mark.usefixtures("open_umask")
def test_all_of_a_new_folder_is_its_owners_alone(tmp_path: Path) -> None:
    folder = FederationFolder(tmp_path / "federation")

    make_federation(folder, new())

    found = [folder.root, *folder.root.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600, 0o700}
    assert {path.name for path in folder.root.iterdir()} == {
        *("federation.toml", "pki", "lead", "executor.secret", "state", "logs", "sites", "runs"),
    }


def test_settings_and_names_are_those_that_were_asked_for(tmp_path: Path) -> None:
    folder = FederationFolder(tmp_path / "federation")

    make_federation(folder, new(port=9443))

    assert folder.settings() == new(port=9443).settings
    assert names_of(folder.server_certificate.read_bytes()) == (
        *("fl.example.org", "10.0.0.5", "localhost", "127.0.0.1"),
    )


def test_the_leads_keys_belong_together_and_secrets_differ(folder: FederationFolder, tmp_path: Path) -> None:
    other = coordinators.new_folder(tmp_path / "other")

    public = read_lead_key(folder).public_key()

    assert [each.public_bytes_raw() for each in read_trusted_leads(folder)] == [public.public_bytes_raw()]
    assert len(folder.executor_secret.read_bytes()) == 64  # 48 random bytes in base64
    assert folder.executor_secret.read_bytes() != other.executor_secret.read_bytes()


def test_a_folder_that_holds_something_is_left_alone(folder: FederationFolder) -> None:
    before = folder.authority_key.read_bytes()

    with pytest.raises(SettingError, match="exists and is not empty"):
        make_federation(folder, new())

    assert folder.authority_key.read_bytes() == before


@pytest.mark.parametrize("name", ["https://fl.example.org", "fl.example.org:8443", "a b", "-a.org", "10.0.0.256", ""])
def test_what_is_no_name_or_address_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    folder = FederationFolder(tmp_path / "federation")

    with pytest.raises(SettingError):
        make_federation(folder, new(address=name))

    assert not folder.root.exists()


def test_one_port_for_both_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="another port"):
        make_federation(FederationFolder(tmp_path / "federation"), new(port=8444))


def test_renewal_keeps_names_and_authority_and_changes_key_and_number(folder: FederationFolder) -> None:
    before, key, authority = (
        path.read_bytes() for path in (folder.server_certificate, folder.server_key, folder.authority_certificate)
    )

    renewed = renew_certificate(folder)

    assert names_of(folder.server_certificate.read_bytes()) == names_of(before)
    assert renewed.serial_number != x509.load_pem_x509_certificate(before).serial_number
    assert folder.server_key.read_bytes() != key
    assert folder.authority_certificate.read_bytes() == authority


def test_a_change_of_authority_trusts_both_until_it_is_finished(folder: FederationFolder) -> None:
    old = x509.load_pem_x509_certificates(folder.authority_certificate.read_bytes())

    new_one = begin_authority_change(folder)
    both = x509.load_pem_x509_certificates(folder.authority_certificate.read_bytes())
    renewed = renew_certificate(folder)
    chain = x509.load_pem_x509_certificates(folder.server_certificate.read_bytes())
    finish_authority_change(folder)
    after = x509.load_pem_x509_certificates(folder.authority_certificate.read_bytes())

    assert both == [new_one, *old]
    assert [len(chain), renewed.issuer, chain[1].issuer] == [2, new_one.subject, old[0].subject]
    assert after == [new_one]
    assert len(x509.load_pem_x509_certificates(folder.server_certificate.read_bytes())) == 1


def test_a_change_of_authority_begins_once_and_finishes_once(folder: FederationFolder) -> None:
    with pytest.raises(SettingError, match="no change of authority has begun"):
        finish_authority_change(folder)
    begin_authority_change(folder)
    with pytest.raises(SettingError, match="has begun already"):
        begin_authority_change(folder)


def test_a_change_is_not_finished_under_a_coordinator_from_before_it(folder: FederationFolder) -> None:
    with lock_file(folder).open("wb") as stream:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
        os.utime(lock_file(folder), (1, 1))
        begin_authority_change(folder)

        with pytest.raises(SettingError, match="restart fl-server start when no run goes on"):
            finish_authority_change(folder)

    finish_authority_change(folder)


def test_init_prints_the_next_steps_and_what_to_keep_secret_but_no_secret(tmp_path: Path) -> None:
    root = tmp_path / "federation"

    result = CliRunner().invoke(app, ["init", "--name", "cardio", "--address", "127.0.0.1", "--folder", str(root)])

    assert result.exit_code == 0, result.output
    assert "fl-server start" in result.output
    assert "fl-server bundle" in result.output
    assert lead_fingerprint(FederationFolder(root)) in result.output
    assert str(root / "lead" / "lead.key") in result.output
    assert (root / "executor.secret").read_text() not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "--name", "Cardio", "--address", "127.0.0.1"], "name='Cardio'; expected a text of the form"),
        (["start"], "make it: fl-server init"),
        (["init", "--name", "cardio", "--address", "127.0.0.1", "--port", "0"], "port=0"),
        (["renew"], "run fl-server init"),
        (["renew", "--finish"], "--finish; expected together with --authority"),
    ],
)
def test_wrong_values_exit_with_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [*arguments, "--folder", str(tmp_path / "federation")])

    assert (result.exit_code, message in result.output) == (2, True)


def test_renew_prints_until_when_and_each_step_of_a_change(folder: FederationFolder) -> None:
    def run(*options: str) -> str:
        return CliRunner().invoke(app, ["renew", *options, "--folder", str(folder.root)]).output

    assert "good until" in run()
    assert "hospitals that know the old one alone are still served" in run("--authority")
    assert "the only authority is SHA256" in run("--authority", "--finish")


def test_the_lead_key_must_be_private_and_of_its_kind(folder: FederationFolder, tmp_path: Path) -> None:
    folder.lead_key.chmod(0o644)
    with pytest.raises(SettingError, match="chmod go="):
        read_lead_key(folder)
    folder.lead_key.chmod(0o600)
    folder.lead_key.write_bytes(folder.server_key.read_bytes())
    with pytest.raises(SettingError, match="no OpenSSH private key"):
        read_lead_key(folder)
    with pytest.raises(SettingError, match="--lead-key FILE"):
        read_lead_key(folder, tmp_path / "absent")


def test_a_damaged_public_key_is_passed_over(folder: FederationFolder) -> None:
    (folder.lead_public_key.parent / "broken.pub").write_bytes(b"\xff\xfe")
    public = read_lead_key(folder).public_key()
    text = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)

    assert folder.lead_public_key.read_bytes().strip() == text
    assert len(read_trusted_leads(folder)) == 1
