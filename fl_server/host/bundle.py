"""The only place that builds what hospitals receive, and signs it with the study lead's key."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.cli.build import build_fab_from_disk

from fl_contract.bundle_signature import BundleSignature, sign_bundle
from fl_contract.errors import RunError


def build_and_sign(root: Path, key: Ed25519PrivateKey) -> tuple[bytes, BundleSignature]:
    """Build the Flower bundle of a source tree, and sign its bytes.

    The same tree gives the same bytes anywhere, so that a hospital can build the bundle again and compare.

    Args:
        root: Folder that holds the project's ``pyproject.toml``.
        key: The study lead's.

    Raises:
        RunError: There is no source tree, or Flower refuses to make a bundle of it.
    """
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
