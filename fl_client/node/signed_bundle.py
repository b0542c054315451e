"""The only place that holds a bundle and its signature against this hospital's invitation."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from fl_client.node.bundle_file import MAX_BUNDLE_BYTES, Bundle, read_bundle
from fl_client.node.node_folder import NodeFolder
from fl_client.settings import read_site_settings
from fl_contract.bundle_signature import BundleSignature, verify_bundle
from fl_contract.enrolment import Invitation
from fl_contract.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class SignedBundle:
    """A bundle that the study lead of this hospital's federation signed.

    Attributes:
        content: Its bytes.
        bundle: What is in them.
        signature: The lead's.
    """

    content: bytes
    bundle: Bundle
    signature: BundleSignature


def open_signed_bundle(site: Path, bundle: Path, signature: Path | None = None) -> SignedBundle:
    """Read a bundle that is signed with the key in the hospital's invitation.

    Args:
        site: The hospital's ``site.toml``.
        bundle: The ``.fab`` file.
        signature: The ``.sig`` file; that beside the bundle if not given.

    Raises:
        SettingError: The hospital has no invitation, or names what does not fit.
    """
    read_site_settings(site)
    key = _lead_key(site)
    try:
        with bundle.open("rb") as stream:
            content = stream.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise SettingError(f"{bundle}: cannot be read ({error.strerror}); check the path") from error
    beside = signature or bundle.with_name(f"{bundle.name}.sig")
    if not beside.exists():
        raise SettingError(
            f"{beside}: is not there; a bundle is approved with the study lead's signature only: ask for the file that "
            "fl-server bundle wrote beside it, or name it by --signature"
        )
    signed = BundleSignature.read(beside)
    verify_bundle(content, signed, key)
    opened = read_bundle(content)
    if opened.version != signed.version:
        raise SettingError(f"version={opened.version!r} in the bundle; the signature says {signed.version!r}")
    return SignedBundle(content=content, bundle=opened, signature=signed)


def _lead_key(site: Path) -> Ed25519PublicKey:
    invitation = NodeFolder.of(site).invitation
    if not invitation.exists():
        raise SettingError(
            f"{invitation}: is not there, so nobody's signature is known; run fl-client enroll, hand the request to "
            "the coordinator, then fl-client join SITE INVITATION.json"
        )
    try:
        key = load_ssh_public_key(Invitation.read(invitation).lead_public_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingError(f"{invitation}: {error}; join again with the coordinator's invitation") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SettingError(f"{invitation}: lead-public-key is no Ed25519 key; ask the coordinator for another")
    return key
