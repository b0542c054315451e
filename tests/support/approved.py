"""Approves any bytes at a hospital, as ``fl-client approve`` does once it has checked who signed them."""

import base64
import hashlib
from pathlib import Path

from fl_client.node.approvals import Approvals
from fl_contract.bundle_signature import BundleSignature


def approve(folder: Path, content: bytes) -> str:
    """The SHA-256 that is approved; ``folder`` is that of the hospital's ``site.toml``."""
    digest = hashlib.sha256(content).hexdigest()
    raw = {
        "sha256": digest,
        "version": "1.0.0",
        "signed-at": "2026-11-29T12:00:00Z",
        "key": "SHA256:" + "A" * 43,
        "signature": base64.b64encode(bytes(64)).decode(),
    }
    Approvals(folder).approve(content, BundleSignature.parse(raw, origin="test"), by="test")
    return digest
