"""How a hospital's request is signed: the only place of ours that reads the headers which Flower checks."""

import base64
import binascii
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

from fl_contract.errors import SettingError
from fl_server.host.federation import FederationFolder
from fl_server.host.site_record import SiteRecord


@dataclass(frozen=True, kw_only=True)
class NodeSignature:
    """What a request says of who signed it.

    Attributes:
        public_key: PEM.
        time: What was signed, and nothing else: not the body.
        signature: Of the time.
    """

    public_key: bytes
    time: bytes
    signature: bytes

    @classmethod
    def of(cls, headers: Sequence[tuple[bytes, bytes]]) -> Self | None:
        """From a request's headers, each the first of its name, as Flower reads them; None if Flower could not."""
        names = (FLEET_HTTP_PUBLIC_KEY_HEADER, TIMESTAMP_HEADER, FLEET_HTTP_SIGNATURE_HEADER)
        found = [next((value for name, value in headers if name == each.lower().encode()), None) for each in names]
        key, time, signature = found
        if key is None or time is None or signature is None:
            return None
        try:
            return cls(
                public_key=base64.b64decode(key, validate=True),
                time=time,
                signature=base64.b64decode(signature, validate=True),
            )
        except binascii.Error:
            return None

    @property
    def identity(self) -> bytes:
        """The same for every spelling of a signature: ECDSA and base64 allow several."""
        return self.time + b"\n" + self.public_key

    def fits(self) -> bool:
        """Whether the owner of the key signed the time."""
        try:
            return verify_signature(bytes_to_public_key(self.public_key), self.time, self.signature)
        except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
            return False


class NodeKeys:
    """Public keys, PEM, of the hospitals that take part; read anew when a record was written.

    Args:
        folder: Of the federation.
    """

    def __init__(self, folder: FederationFolder) -> None:
        self._sites = folder.sites
        self._version: int | None = None
        self._keys: frozenset[bytes] = frozenset()

    def __contains__(self, public_key: object) -> bool:
        """Whether a key is a hospital's."""
        version = self._sites.stat().st_mtime_ns if self._sites.exists() else None
        if version != self._version:
            self._keys, self._version = frozenset(self._read()), version
        return public_key in self._keys

    def _read(self) -> list[bytes]:
        found = []
        for path in self._sites.glob("*.json"):
            with suppress(SettingError, ValueError, UnsupportedAlgorithm):  # a damaged record is the doctor's to name
                record = SiteRecord.read(path)
                if not record.is_expelled:
                    found.append(_to_pem(record.public_key))
        return found


def _to_pem(line: str) -> bytes:
    key = serialization.load_ssh_public_key(line.encode())
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
