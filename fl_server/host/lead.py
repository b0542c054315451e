"""The only place that reads the study leads' keys."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fl_contract.bundle_signature import key_fingerprint
from fl_contract.errors import SettingError
from fl_host.private_files import check_private
from fl_server.host.federation import FederationFolder


def read_lead_key(folder: FederationFolder, path: Path | None = None) -> Ed25519PrivateKey:
    """The private key, from a file of the lead's or the federation's folder.

    Raises:
        SettingError: It is absent, others may read it, or it is no Ed25519 key without a passphrase.
    """
    path = path or folder.lead_key
    if not path.exists():
        raise SettingError(f"{path}: the study lead's key is not here; name the file: --lead-key FILE")
    check_private(path)
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingError(f"{path}: holds no OpenSSH private key without a passphrase") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingError(f"{path}: holds a key of another kind; expected Ed25519")
    return key


def lead_fingerprint(folder: FederationFolder) -> str:
    """Of the key that invitations hold, as ``ssh-keygen -l`` prints it.

    Raises:
        SettingError: It is absent, or no Ed25519 key.
    """
    try:
        key = serialization.load_ssh_public_key(folder.lead_public_key.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise SettingError(f"{folder.lead_public_key}: cannot be read; restore lead.pub") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SettingError(f"{folder.lead_public_key}: holds a key of another kind; expected Ed25519")
    return key_fingerprint(key)


def read_trusted_leads(folder: FederationFolder) -> list[Ed25519PublicKey]:
    """Public keys of all who may give orders: ``lead/*.pub``; a file that holds none is passed over."""
    found = []
    for path in sorted(folder.lead_public_key.parent.glob("*.pub")):
        try:
            key = serialization.load_ssh_public_key(path.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm):
            continue
        if isinstance(key, Ed25519PublicKey):
            found.append(key)
    return found
