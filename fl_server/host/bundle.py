"""The only place that builds what hospitals receive, and signs it with the study lead's key."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.cli.build import build_fab_from_disk

from fl_contract.bundle_signature import BundleSignature, sign_bundle
from fl_contract.errors import RunError, SettingError


def build_and_sign(root: Path, lead_key: Path) -> tuple[bytes, BundleSignature]:
    """Build the Flower bundle of a source tree, and sign its bytes.

    The same tree gives the same bytes anywhere, so that a hospital can build the bundle again and compare.

    Args:
        root: Folder that holds the project's ``pyproject.toml``.
        lead_key: File of the study lead's Ed25519 key, OpenSSH.

    Raises:
        SettingError: The key cannot be used.
        RunError: There is no source tree, or Flower refuses to make a bundle of it.
    """
    key = read_lead_key(lead_key)
    project = root / "pyproject.toml"
    if not project.is_file():
        raise RunError(f"{project} is not there; bundles are built from a checkout of the repository, after make setup")
    try:
        version = str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
        content = build_fab_from_disk(root)
    except (KeyError, ValueError) as error:
        raise RunError(f"{root}: Flower makes no bundle of it: {error}") from error
    signed_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return content, sign_bundle(content, version=version, signed_at=signed_at, key=key)


def read_lead_key(path: Path) -> Ed25519PrivateKey:
    """Read the study lead's private key.

    Raises:
        SettingError: It is absent, no Ed25519 key, or locked by a passphrase.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise SettingError(
            f"lead-key={path}; cannot be read ({error.strerror}); run fl-server init, or name the file by --lead-key"
        ) from error
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise SettingError(
            f"lead-key={path}; cannot be read as a private key; expected OpenSSH, Ed25519, without a passphrase"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingError(f"lead-key={path}; a {type(key).__name__}; expected Ed25519")
    return key


def write_bundle(content: bytes, signature: BundleSignature, folder: Path) -> Path:
    """Write a bundle and, beside it, its signature.

    Returns:
        The path of the bundle, ``consilium-<version>-<8 hex>.fab``; the signature's is the same with ``.sig`` added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"consilium-{signature.version}-{signature.sha256[:8]}.fab"
    path.write_bytes(content)
    path.with_name(path.name + ".sig").write_text(signature.to_json(), encoding="utf-8")
    return path
