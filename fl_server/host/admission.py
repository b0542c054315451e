"""Who takes part: the only place that registers a hospital's node, and that revokes one."""

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import ssh_key_fingerprint

from fl_contract.enrolment import EnrolmentRequest, Invitation
from fl_contract.errors import RunError, SettingError
from fl_server.host.federation import FederationFolder
from fl_server.host.site_record import SiteRecord, find_site, read_sites, utc_now

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

Change = Literal["new", "again", "another key", "return"]
UNREGISTERED = "unregistered"
"""Flower's word for a node that was expelled."""


@dataclass(frozen=True, kw_only=True)
class Applicant:
    """A request whose signature fits, and what admitting it would change.

    Attributes:
        site: The hospital's name.
        public_key: OpenSSH, one line.
        key: The same.
        fingerprint: As ``ssh-keygen -l`` prints it.
        change: ``new``; ``again``, which only writes the invitation anew; ``another key``, which ends the one before;
            or the ``return`` of a hospital that was expelled.
        before: What is known of the hospital.
    """

    site: str
    public_key: str
    key: ec.EllipticCurvePublicKey
    fingerprint: str
    change: Change
    before: SiteRecord | None


def check_request(folder: FederationFolder, request: EnrolmentRequest) -> Applicant:
    """Check that whoever made a request holds its key, and that the key may be admitted.

    Raises:
        SettingError: The key is no P-384 key, the signature is not its own, or the key was expelled or is another
            hospital's.
    """
    key = _read_key(request.public_key)
    try:
        signature = base64.b64decode(request.signature, validate=True)
        key.verify(signature, request.signed_text(request.site, request.public_key), ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, binascii.Error) as error:
        raise SettingError(
            f"signature: not of the key in the request for site={request.site!r}; was the file changed? "
            "ask the hospital for a new one: fl-client enroll"
        ) from error
    fingerprint = _fingerprint(key)
    for record in read_sites(folder):
        if fingerprint in record.burned_keys or (record.is_expelled and fingerprint == record.fingerprint):
            raise SettingError(
                f"{request.site}: the key {fingerprint} was expelled or replaced and cannot come back; "
                "ask the hospital for a request with a new key: fl-client enroll --new-key"
            )
        if fingerprint == record.fingerprint and record.site != request.site:
            raise SettingError(f"{request.site}: the key {fingerprint} is that of {record.site}; expected its own")
    before = find_site(folder, request.site)
    return Applicant(
        site=request.site,
        public_key=request.public_key,
        key=key,
        fingerprint=fingerprint,
        change=_change(before, fingerprint),
        before=before,
    )


def admit(folder: FederationFolder, control: "ControlHttpClient", applicant: Applicant) -> SiteRecord:
    """Register the applicant's node and keep its record; a key that it replaces is unregistered.

    If this is cut short, it can be done again: a node that is registered already is found by its key.

    Raises:
        RunError: The SuperLink is not running, or refuses.
    """
    before = applicant.before
    if applicant.change == "again" and before is not None:
        return before
    raw = {
        "site": applicant.site,
        "node-id": _register(control, applicant),
        "public-key": applicant.public_key,
        "fingerprint": applicant.fingerprint,
        "admitted-at": utc_now(),
        "burned-keys": (*before.burned_keys, before.fingerprint) if before else (),
    }
    record = SiteRecord.parse(raw, origin=applicant.site)
    if before is not None and not before.is_expelled:
        _unregister(control, before)
    record.write(folder)
    return record


def expel(folder: FederationFolder, control: "ControlHttpClient", name: str) -> SiteRecord:
    """Revoke a hospital's node; its record stays.

    Raises:
        SettingError: No such hospital takes part.
        RunError: The SuperLink is not running, or refuses.
    """
    record = find_site(folder, name)
    if record is None:
        known = ", ".join(each.site for each in read_sites(folder)) or "none"
        raise SettingError(f"site={name!r}; expected one that was admitted: {known}")
    if record.is_expelled:
        raise SettingError(f"site={name!r}; was expelled on {record.expelled_at} already")
    _unregister(control, record)
    expelled = record.model_copy(update={"expelled_at": utc_now()})
    expelled.write(folder)
    return expelled


def invite(folder: FederationFolder, record: SiteRecord) -> Invitation:
    """What the hospital joins with; holds no secret."""
    settings = folder.settings()
    address = f"[{settings.address}]" if ":" in settings.address else settings.address
    raw = {
        "federation": settings.name,
        "site": record.site,
        "address": f"{address}:{settings.port}",
        "authority": folder.authority_certificate.read_text(encoding="ascii"),
        "lead-public-key": folder.lead_public_key.read_text(encoding="ascii").strip(),
        "node-key": record.fingerprint,
    }
    return Invitation.parse(raw, origin="invitation")


@dataclass(frozen=True, kw_only=True)
class Presence:
    """A hospital as it stands now.

    Attributes:
        record: Of it.
        state: ``online``, ``offline``, ``never seen``, ``expelled``, or ``unknown to the SuperLink``.
        last_seen: UTC; empty if never.
    """

    record: SiteRecord
    state: str
    last_seen: str


def look_at_sites(folder: FederationFolder, control: "ControlHttpClient") -> list[Presence]:
    """All hospitals that were ever admitted, by name.

    Raises:
        RunError: The SuperLink is not running, or refuses.
    """
    from flwr.proto.control_pb2 import ListNodesRequest

    answer = control.ListNodes(ListNodesRequest())
    nodes = {node.node_id: node for node in answer.nodes_info}
    return [_presence(record, nodes.get(record.node_id), answer.now) for record in read_sites(folder)]


def _presence(record: SiteRecord, node: object | None, now: str) -> Presence:
    status = str(getattr(node, "status", "absent"))
    states = {"registered": "never seen", "absent": "unknown to the SuperLink", UNREGISTERED: "expelled"}
    state = "expelled" if record.is_expelled else states.get(status, status)
    seen = str(getattr(node, "last_deactivated_at", "") or getattr(node, "last_activated_at", ""))
    return Presence(record=record, state=state, last_seen=now if status == "online" else seen)


def _change(before: SiteRecord | None, fingerprint: str) -> Change:
    if before is None:
        return "new"
    if before.is_expelled:
        return "return"
    return "again" if before.fingerprint == fingerprint else "another key"


def _register(control: "ControlHttpClient", applicant: Applicant) -> int:
    from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest

    pem = applicant.key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for node in control.ListNodes(ListNodesRequest()).nodes_info:
        if node.public_key == pem and node.status != UNREGISTERED:
            return int(node.node_id)
    node_id = int(control.RegisterNode(RegisterNodeRequest(public_key=pem, name=applicant.site)).node_id)
    if not node_id:
        raise RunError(f"{applicant.site}: the SuperLink did not register the node; see fl-server's log")
    return node_id


def _unregister(control: "ControlHttpClient", record: SiteRecord) -> None:
    """Also good where it was done before, and only the record was not written."""
    from flwr.proto.control_pb2 import ListNodesRequest, UnregisterNodeRequest

    nodes = {node.node_id: node.status for node in control.ListNodes(ListNodesRequest()).nodes_info}
    if nodes.get(record.node_id, UNREGISTERED) != UNREGISTERED:
        control.UnregisterNode(UnregisterNodeRequest(node_id=record.node_id))


def _read_key(line: str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingError("public-key: no OpenSSH public key; ask the hospital for a new request") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise SettingError("public-key: a key of another kind; expected NIST P-384; made by fl-client enroll")
    return key


def _fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    digest = base64.b64encode(ssh_key_fingerprint(key, hashes.SHA256())).decode().rstrip("=")
    return f"SHA256:{digest}"
