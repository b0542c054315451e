"""Bundles as Flower builds them from made-up trees, signed by a study lead, and archives that it would not build."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.cli.build import build_fab_from_files

from fl_contract.bundle_signature import sign_bundle
from fl_contract.enrolment import Invitation
from fl_contract.study_file import STUDIES

LEAD = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))

PYPROJECT = """
[project]
name = "consilium"
version = "0.1.0"
description = "A made-up release"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41.0,<1.41.1"]
[tool.flwr.app]
publisher = "consilium"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "fl_server.app:app"
clientapp = "fl_client.app:app"
"""

TREE: Mapping[str, bytes] = {
    "pyproject.toml": PYPROJECT.encode(),
    "LICENSE": b"free\n",
    "fl_client/__init__.py": b"",
    "fl_client/app.py": b"raise SystemExit('code of a bundle ran while it was approved')\n",
    "fl_server/app.py": b"app = 1\n",
    "studies/heart-disease.toml": (STUDIES / "heart-disease.toml").read_bytes(),
}


def build(**changes: bytes | None) -> bytes:
    """The bundle of `TREE` with some files changed; None leaves one out."""
    files = {name: content for name, content in {**TREE, **changes}.items() if content is not None}
    content, _ = build_fab_from_files(dict(files))
    return content


def pack(files: Mapping[str, bytes], *, edit: Callable[[zipfile.ZipInfo], None] | None = None) -> bytes:
    """An archive of these files with a right manifest, whatever their names."""
    buffer = io.BytesIO()
    lines = [f"{name},{hashlib.sha256(content).hexdigest()},{len(content) * 8}" for name, content in files.items()]
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**files, ".info/CONTENT": "\n".join(lines).encode()}.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if edit is not None:
                edit(info)
            archive.writestr(info, content)
    return buffer.getvalue()


def write_signed(path: Path, content: bytes, *, key: Ed25519PrivateKey = LEAD, version: str = "0.1.0") -> Path:
    """Write a bundle, and its signature beside it."""
    path.write_bytes(content)
    signature = sign_bundle(content, version=version, signed_at="2026-11-29T12:00:00Z", key=key)
    path.with_name(f"{path.name}.sig").write_text(signature.to_json())
    return path


def write_invitation(site_file: Path, *, key: Ed25519PrivateKey = LEAD) -> None:
    """Store an invitation of a study lead at a hospital."""
    node = site_file.parent / "node"
    node.mkdir(mode=0o700, exist_ok=True)
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    raw = {
        "federation": "cardio",
        "site": site_file.parent.name,
        "address": "fl.example.org:8443",
        "authority": "PEM",
        "lead-public-key": line,
        "node-key": "SHA256:" + "A" * 43,
    }
    (node / "invitation.json").write_text(Invitation.parse(raw, origin="test").to_json())
