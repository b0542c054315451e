"""The study lead's signature of a bundle: the only place that says what is signed, and that checks it."""

import base64
import binascii
import hashlib
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import ssh_key_fingerprint
from pydantic import Field, model_validator

from fl_contract.enrolment import HandedOver
from fl_contract.errors import SettingError


class BundleSignature(HandedOver):
    """``fl-server bundle`` makes it; ``fl-client approve`` checks it. Travels beside the bundle, as ``.fab.sig``.

    Attributes:
        sha256: Of the bundle's bytes, hexadecimal.
        version: Of Consilium in the bundle.
        signed_at: UTC, as ``2026-11-29T12:00:00Z``; what the lead's clock said.
        key: Fingerprint of the lead's public key, as ``ssh-keygen -l`` prints it.
        signature: Base64 of the lead's Ed25519 signature over `signed_text`.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    version: str = Field(pattern=r"^[0-9A-Za-z.+-]{1,64}$")
    signed_at: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")
    key: str = Field(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")
    signature: str

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        try:
            size = len(base64.b64decode(self.signature, validate=True))
        except binascii.Error as error:
            raise ValueError(f"signature; expected base64 ({error})") from error
        if size != 64:
            raise ValueError(f"signature; expected 64 bytes in base64, found {size}")
        return self

    @staticmethod
    def signed_text(*, sha256: str, version: str, signed_at: str) -> bytes:
        """What the signature is over: a line that says what it is for, then hash, version and time.

        >>> BundleSignature.signed_text(sha256="00ff", version="0.1.0", signed_at="2026-11-29T12:00:00Z").splitlines()
        [b'consilium bundle v1', b'00ff', b'0.1.0', b'2026-11-29T12:00:00Z']
        """
        return f"consilium bundle v1\n{sha256}\n{version}\n{signed_at}".encode()


def key_fingerprint(key: Ed25519PublicKey) -> str:
    """The name of a key, as ``ssh-keygen -l`` prints it.

    >>> key_fingerprint(Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key())
    'SHA256:tAXFyTXI8xtDaujAEcwJslAYc9/6FKcUkd2Lw0xDhPo'
    """
    digest = ssh_key_fingerprint(key, SHA256())
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def sign_bundle(content: bytes, *, version: str, signed_at: str, key: Ed25519PrivateKey) -> BundleSignature:
    """Sign a bundle's bytes with the study lead's key.

    Args:
        content: The whole ``.fab`` file.
        version: Of Consilium in it.
        signed_at: UTC, as ``2026-11-29T12:00:00Z``.
        key: The lead's.

    Raises:
        SettingError: Version or time are not written as the signature needs them.

    >>> lead = Ed25519PrivateKey.from_private_bytes(bytes(32))
    >>> signature = sign_bundle(b"code", version="0.1.0", signed_at="2026-11-29T12:00:00Z", key=lead)
    >>> verify_bundle(b"code", signature, lead.public_key())
    >>> signature.sha256[:8]
    '5694d08a'
    """
    sha256 = hashlib.sha256(content).hexdigest()
    signed = key.sign(BundleSignature.signed_text(sha256=sha256, version=version, signed_at=signed_at))
    raw = {
        "sha256": sha256,
        "version": version,
        "signed-at": signed_at,
        "key": key_fingerprint(key.public_key()),
        "signature": base64.b64encode(signed).decode(),
    }
    return BundleSignature.parse(raw, origin="bundle signature")


def verify_bundle(content: bytes, signature: BundleSignature, key: Ed25519PublicKey) -> None:
    """Check that the holder of a key signed exactly these bytes, as this version, at this time.

    Raises:
        SettingError: Names what does not fit: the key, the bytes, or what is said of them.
    """
    if signature.key != (expected := key_fingerprint(key)):
        raise SettingError(f"key={signature.key}; the bundle was signed by somebody else; expected {expected}")
    if signature.sha256 != (found := hashlib.sha256(content).hexdigest()):
        raise SettingError(
            f"sha256={found}; the bundle is not the one that was signed, {signature.sha256}; fetch both files again"
        )
    text = BundleSignature.signed_text(
        sha256=signature.sha256, version=signature.version, signed_at=signature.signed_at
    )
    try:
        key.verify(base64.b64decode(signature.signature), text)
    except InvalidSignature as error:
        raise SettingError(
            f"signature; not the lead's over version {signature.version}, signed-at {signature.signed_at}; the "
            "signature file was changed; fetch both files again"
        ) from error
