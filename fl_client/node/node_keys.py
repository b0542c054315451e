"""The only place that makes and reads a node's key, and that says what fingerprint a key or certificate has."""

import base64
import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import ssh

from fl_contract.errors import SettingError
from fl_host.private_files import check_private, write_private


def make_key(private: Path, public: Path) -> ec.EllipticCurvePrivateKey:
    """Make an EC P-384 key and write both halves, the public one last."""
    key = ec.generate_private_key(ec.SECP384R1())
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private(private, content)
    write_private(public, public_line(key).encode() + b"\n")
    return key


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a node's private key.

    Raises:
        SettingError: It is absent, open to others, or no EC P-384 key in OpenSSH form without a passphrase.
    """
    check_private(path)
    try:
        key = ssh.load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingError(f"{path}: is no OpenSSH private key without a passphrase; fl-client enroll makes one") from (
            error
        )
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise SettingError(f"{path}: is no EC P-384 key; fl-client enroll makes one")
    return key


def public_line(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half in OpenSSH form, one line."""
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()


def fingerprint(line: str) -> str:
    """Of an OpenSSH public key, as ``ssh-keygen -l`` shows it.

    >>> fingerprint("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f")
    'SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA'
    """
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def lead_fingerprint(line: str) -> str:
    """Of the study lead's public key.

    Raises:
        SettingError: It is no Ed25519 key in OpenSSH form.
    """
    try:
        key = ssh.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingError("lead-public-key: is no OpenSSH public key; ask the coordinator for another") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise SettingError("lead-public-key: is no Ed25519 key; ask the coordinator for another")
    return fingerprint(line)


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 as ``openssl x509 -fingerprint -sha256`` shows it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()
