"""How a hospital asks to take part, and checks the answer: the only place that stores an invitation."""

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fl_client.node.node_folder import NodeFolder
from fl_client.node.node_keys import (
    certificate_fingerprint,
    fingerprint,
    lead_fingerprint,
    make_key,
    public_line,
    read_key,
)
from fl_client.settings import read_site_settings
from fl_contract.enrolment import EnrolmentRequest, Invitation
from fl_contract.errors import SettingError
from fl_host.outputs import check_output
from fl_host.private_files import make_private_folder, write_private


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What a hospital asked with.

    Attributes:
        request: File to hand to the coordinator.
        site: The hospital's name.
        fingerprint: Of the node's public key.
    """

    request: Path
    site: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class CheckedInvitation:
    """An invitation that fits this hospital.

    Attributes:
        invitation: As the coordinator wrote it.
        authorities: Fingerprint of each certificate that the coordinator's own is checked against.
        lead: Fingerprint of the study lead's key.
        is_for_next_key: The node's new key was admitted, not the one in use.
    """

    invitation: Invitation
    authorities: tuple[str, ...]
    lead: str
    is_for_next_key: bool


def enroll(site_file: Path, out: Path | None = None, *, new_key: bool = False) -> Enrolment:
    """Write a request to take part, signed with the node's key, which is made if there is none.

    Guarantees:
        - A key is never overwritten. One more asked for stays beside the one in use until it is joined with.

    Args:
        site_file: The hospital's ``site.toml``.
        out: Where to write it; ``<site>.request.json`` in the working directory if not given.
        new_key: Ask with another key, as after the old one was expelled.

    Raises:
        SettingError: ``site.toml`` or the key breaks a rule, or the request cannot be written there.
    """
    site = read_site_settings(site_file).name
    request = out or Path(f"{site}.request.json")
    check_output(request)
    folder = NodeFolder.of(site_file)
    make_private_folder(folder.root)
    key = _key_to_ask_with(folder, new_key=new_key)
    line = public_line(key)
    signature = key.sign(EnrolmentRequest.signed_text(site, line), ec.ECDSA(hashes.SHA384()))
    raw = {"site": site, "public-key": line, "signature": base64.b64encode(signature).decode()}
    request.write_text(EnrolmentRequest.parse(raw, origin="request").to_json(), encoding="utf-8")
    return Enrolment(request=request, site=site, fingerprint=fingerprint(line))


def check_invitation(site_file: Path, path: Path) -> CheckedInvitation:
    """Read an invitation and check that it is for this hospital and can be used.

    Raises:
        SettingError: Names what does not fit, and what to do.
    """
    site = read_site_settings(site_file).name
    folder = NodeFolder.of(site_file)
    invitation = Invitation.read(path)
    if invitation.site != site:
        raise SettingError(f"site={invitation.site!r}; the invitation is for another hospital than {site!r}")
    keys = {name: fingerprint(public_line(read_key(name))) for name in (folder.next_key, folder.key) if name.exists()}
    if invitation.node_key not in keys.values():
        known = " or ".join(keys.values()) or "none; fl-client enroll makes it"
        raise SettingError(f"node-key={invitation.node_key!r}; the invitation is for another key; this node's: {known}")
    return CheckedInvitation(
        invitation=invitation,
        authorities=_authority_fingerprints(invitation.authority, datetime.now(UTC)),
        lead=lead_fingerprint(invitation.lead_public_key),
        is_for_next_key=keys.get(folder.key) != invitation.node_key,
    )


def join(site_file: Path, checked: CheckedInvitation) -> None:
    """Store a checked invitation and its certificates, and take the key that was admitted into use."""
    folder = NodeFolder.of(site_file)
    if checked.is_for_next_key:
        folder.next_key.replace(folder.key)
        folder.next_public_key.replace(folder.public_key)
    write_private(folder.authority, checked.invitation.authority.encode())
    write_private(folder.invitation, checked.invitation.to_json().encode())


def _key_to_ask_with(folder: NodeFolder, *, new_key: bool) -> ec.EllipticCurvePrivateKey:
    private, public = folder.key, folder.public_key
    if new_key and private.exists():
        private, public = folder.next_key, folder.next_public_key
    return read_key(private) if private.exists() else make_key(private, public)


def _authority_fingerprints(pem: str, now: datetime) -> tuple[str, ...]:
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
    except ValueError as error:
        raise SettingError("authority: holds no PEM certificate; ask the coordinator for another invitation") from error
    shown = b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)
    if pem.split() != shown.decode().split():  # OpenSSL trusts further kinds of blocks, whose fingerprint nobody saw
        raise SettingError(
            "authority: holds something beside PEM certificates; ask the coordinator for another invitation"
        )
    for certificate in certificates:
        name = certificate.subject.rfc4514_string()
        if not _is_authority(certificate):
            raise SettingError(f"authority: {name!r} is no certificate authority's; ask the coordinator for another")
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not first <= now <= last:
            raise SettingError(
                f"authority: {name!r} is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d} UTC, and here it is "
                f"{now:%Y-%m-%d %H:%M}; check this host's clock, or ask the coordinator for another invitation"
            )
    return tuple(certificate_fingerprint(certificate) for certificate in certificates)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
