"""The only place that makes a federation's folder, and that renews what expires in it."""

import base64
import fcntl
import ipaddress
import json
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from fl_contract.errors import SettingError
from fl_host.private_files import make_private_folder, write_private
from fl_server.host.authority import ALWAYS_NAMED, Authority, names_of
from fl_server.host.federation import FederationFolder, FederationSettings

DNS_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
SECRET_BYTES = 48


@dataclass(frozen=True, kw_only=True)
class NewFederation:
    """What ``fl-server init`` was asked for.

    Attributes:
        settings: What ``federation.toml`` will hold.
        also: Further names and addresses that the certificate holds.
    """

    settings: FederationSettings
    also: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """All names and addresses of the certificate, the hospitals' first.

        Raises:
            SettingError: One is neither a DNS name nor an IP address.
        """
        names = tuple(dict.fromkeys((self.settings.address, *self.also, *ALWAYS_NAMED)))
        for name in names:
            _check_name(name)
        return names


def make_federation(folder: FederationFolder, new: NewFederation) -> None:
    """Make the folder of a federation: authority, certificate, lead's key, secret of the executor, settings.

    Guarantees:
        - Nothing in it is readable for anybody but its owner.
        - ``federation.toml`` is written last: a folder that has it is complete.

    Raises:
        SettingError: The folder holds something, or a name is none.
    """
    if new.settings.port == new.settings.operator_port:
        raise SettingError(f"--operator-port={new.settings.operator_port}; expected another port than --port")
    names = new.names()
    if folder.root.exists() and any(folder.root.iterdir()):
        raise SettingError(f"{folder.root}: exists and is not empty; choose another --folder, or delete it")
    make_private_folder(folder.root)
    for inner in (folder.authority_key.parent, folder.lead_key.parent, folder.flower_home):
        make_private_folder(inner)
    for inner in (folder.logs, folder.sites, folder.runs):
        make_private_folder(inner)
    authority = Authority.make(new.settings.name, names)
    write_private(folder.authority_key, authority.key_pem())
    write_private(folder.authority_certificate, authority.certificate_pem())
    _write_server(folder, *authority.sign_server(names))
    _write_lead(folder)
    write_private(folder.executor_secret, base64.b64encode(secrets.token_bytes(SECRET_BYTES)))
    write_private(folder.settings_file, _to_toml(new.settings).encode())


def renew_certificate(folder: FederationFolder) -> x509.Certificate:
    """Replace the coordinator's key and certificate; a running coordinator takes them up for new connections.

    While one authority replaces another, the certificate keeps the one by which the old authority vouches for the new.
    """
    before = _read(folder.server_certificate)
    authority = Authority.read(_read(folder.authority_key), _read(folder.authority_certificate))
    key, certificate = authority.sign_server(names_of(before))
    _write_server(folder, key, certificate + b"".join(_rest_of_chain(before)))
    return x509.load_pem_x509_certificate(certificate)


def begin_authority_change(folder: FederationFolder) -> x509.Certificate:
    """Make a new authority and sign the coordinator by it; who trusts the old one alone still accepts the coordinator.

    The old authority vouches for the new one in the chain that the coordinator presents, and its key is overwritten:
    from here on only the new one can sign.

    Raises:
        SettingError: A change has begun and is not finished.
    """
    if is_authority_changing(folder):
        raise SettingError("a change of authority has begun already; finish it: fl-server renew --authority --finish")
    trusted, before = _read(folder.authority_certificate), _read(folder.server_certificate)
    old = Authority.read(_read(folder.authority_key), trusted)
    names = names_of(before)
    new = Authority.make(folder.settings().name, names)
    key, certificate = new.sign_server(names)
    # In this order a crash in between leaves a coordinator that all accept; the key comes last, since with it ends the
    # old authority.
    write_private(folder.authority_certificate, new.certificate_pem() + trusted)
    _write_server(folder, key, certificate + old.vouch_for(new))
    write_private(folder.authority_key, new.key_pem())
    return new.certificate


def finish_authority_change(folder: FederationFolder) -> x509.Certificate:
    """Trust the new authority alone.

    Raises:
        SettingError: No change has begun, or the coordinator runs since before it: its executor trusts the old one.
    """
    if not is_authority_changing(folder):
        raise SettingError("no change of authority has begun; begin one: fl-server renew --authority")
    if runs_since_before(folder, folder.authority_certificate):
        raise SettingError(
            "the coordinator runs since before the change, and its executor trusts the old authority; "
            "restart fl-server start when no run goes on, then finish"
        )
    authority = Authority.read(_read(folder.authority_key), _read(folder.authority_certificate))
    key, certificate = authority.sign_server(names_of(_read(folder.server_certificate)))
    _write_server(folder, key, certificate)
    write_private(folder.authority_certificate, authority.certificate_pem())
    return authority.certificate


def is_authority_changing(folder: FederationFolder) -> bool:
    """Whether hospitals are to trust two authorities now."""
    return len(x509.load_pem_x509_certificates(_read(folder.authority_certificate))) > 1


def lock_file(folder: FederationFolder) -> Path:
    """What ``fl-server start`` holds a lock on, and writes when it starts."""
    return folder.root / "state" / "start.lock"


def runs_since_before(folder: FederationFolder, changed: Path) -> bool:
    """Whether ``fl-server start`` runs in this folder and started before a file was last changed."""
    with suppress(FileNotFoundError), lock_file(folder).open("rb") as stream:
        try:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return lock_file(folder).stat().st_mtime < changed.stat().st_mtime
    return False


def _write_server(folder: FederationFolder, key: bytes, certificate: bytes) -> None:
    """The certificate last: the SuperLink watches it, and then finds the key that belongs to it."""
    write_private(folder.server_key, key)
    write_private(folder.server_certificate, certificate)


def _write_lead(folder: FederationFolder) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_private(folder.lead_key, private)
    write_private(folder.lead_public_key, public + b"\n")


def _rest_of_chain(chain: bytes) -> Sequence[bytes]:
    certificates = x509.load_pem_x509_certificates(chain)
    return [each.public_bytes(serialization.Encoding.PEM) for each in certificates[1:]]


def _check_name(name: str) -> None:
    try:
        ipaddress.ip_address(name)
    except ValueError as error:
        if len(name) > 253 or not DNS_NAME.fullmatch(name) or re.fullmatch(r"[0-9.]+", name):
            raise SettingError(f"{name!r} is neither a DNS name nor an IP address; give it without a port") from error


def _to_toml(settings: FederationSettings) -> str:
    lines = (f"{key} = {json.dumps(value)}" for key, value in settings.model_dump(by_alias=True).items())
    return "\n".join(lines) + "\n"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingError(
            f"{path}: cannot be read ({error.strerror}); run fl-server init, or check --folder"
        ) from error
