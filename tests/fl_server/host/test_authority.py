"""The authority signs for the coordinator's names alone, and OpenSSL agrees."""

import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fl_contract.errors import SettingError
from fl_server.host.authority import Authority, fingerprint_of, names_of

NAMES = ("fl.example.org", "10.0.0.5", "fd00::5", "localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("cardio", NAMES)


def verify(folder: Path, trusted: bytes, chain: bytes, *, name: str) -> str:
    """What OpenSSL says about a chain of which the first is the server's."""
    (folder / "ca.crt").write_bytes(trusted)
    (folder / "chain.crt").write_bytes(chain)
    which = "-verify_ip" if ":" in name or name[0].isdigit() else "-verify_hostname"
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", which, name]
    command += ["-CAfile", str(folder / "ca.crt"), "-untrusted", str(folder / "chain.crt"), str(folder / "chain.crt")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return "OK" if result.returncode == 0 else result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_openssl_accepts_the_coordinator_by_each_of_its_names(authority: Authority, tmp_path: Path, name: str) -> None:
    _, certificate = authority.sign_server(NAMES)

    assert verify(tmp_path, authority.certificate_pem(), certificate, name=name) == "OK"


def test_openssl_refuses_another_name_and_another_authority(authority: Authority, tmp_path: Path) -> None:
    _, certificate = authority.sign_server(NAMES)
    other = Authority.make("cardio", NAMES)

    assert "mismatch" in verify(tmp_path, authority.certificate_pem(), certificate, name="evil.example.org")
    assert "unable to get local issuer" in verify(tmp_path, other.certificate_pem(), certificate, name="localhost")


@pytest.mark.parametrize("name", ["bank.example.org", "10.0.0.6", "fd00::6"])
def test_what_a_stolen_authority_signs_for_other_names_is_refused(
    authority: Authority, tmp_path: Path, name: str
) -> None:
    _, certificate = authority.sign_server((name,))

    assert "permitted subtree violation" in verify(tmp_path, authority.certificate_pem(), certificate, name=name)


def test_the_certificates_say_what_they_may_do(authority: Authority) -> None:
    server = x509.load_pem_x509_certificate(authority.sign_server(NAMES)[1])

    for certificate, is_authority in ((authority.certificate, True), (server, False)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert (constraints.critical, constraints.value.ca) == (True, is_authority)
        assert (usage.critical, usage.value.key_cert_sign) == (True, is_authority)
    assert isinstance(authority.key.curve, ec.SECP256R1)
    assert authority.certificate.extensions.get_extension_for_class(x509.NameConstraints).critical


def test_the_authority_holds_ten_years_and_the_certificate_one(authority: Authority) -> None:
    now = datetime.now(UTC)
    server = x509.load_pem_x509_certificate(authority.sign_server(NAMES)[1])

    assert abs(authority.certificate.not_valid_after_utc - now - timedelta(days=3650)) < timedelta(minutes=1)
    assert abs(server.not_valid_after_utc - now - timedelta(days=365)) < timedelta(minutes=1)
    assert server.not_valid_before_utc < now - timedelta(minutes=30)


def test_what_is_written_is_read_again_and_names_are_found(authority: Authority) -> None:
    other = Authority.make("cardio", NAMES)
    certificates = other.certificate_pem() + authority.certificate_pem()

    read = Authority.read(authority.key_pem(), certificates)

    assert fingerprint_of(read.certificate) == fingerprint_of(authority.certificate)
    assert names_of(authority.sign_server(NAMES)[1]) == NAMES


def test_a_key_of_another_authority_is_refused(authority: Authority) -> None:
    with pytest.raises(SettingError, match="belongs to none of its certificates"):
        Authority.read(Authority.make("cardio", NAMES).key_pem(), authority.certificate_pem())


def test_a_file_that_is_no_pem_is_refused(authority: Authority) -> None:
    with pytest.raises(SettingError, match="no usable PEM"):
        Authority.read(b"", authority.certificate_pem())


def test_who_trusts_the_old_authority_accepts_what_its_successor_signs(authority: Authority, tmp_path: Path) -> None:
    successor = Authority.make("cardio", NAMES)
    _, certificate = successor.sign_server(NAMES)
    chain = certificate + authority.vouch_for(successor)

    for trusted in (authority.certificate_pem(), successor.certificate_pem()):
        assert verify(tmp_path, trusted, chain, name="fl.example.org") == "OK"
    assert verify(tmp_path, authority.certificate_pem(), certificate, name="fl.example.org") != "OK"


def test_python_accepts_the_pair(authority: Authority, tmp_path: Path) -> None:
    key, certificate = authority.sign_server(NAMES)
    (tmp_path / "key").write_bytes(key)
    (tmp_path / "crt").write_bytes(certificate)

    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "crt", tmp_path / "key")
