"""How a Control request is signed: the only place that the one who asks and the one who checks have in common."""

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

TIME = "consilium-time"
NONCE = "consilium-nonce"
BODY = "consilium-body"
SIGNATURE = "consilium-signature"
"""Headers of a signed request."""
MOST_SECONDS = 60.0
"""A request may be this old, or this far ahead."""
_NONCE = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class UnsignedError(Exception):
    """A request is not signed as it must be; the text is a sentence for both sides."""


def signed_text(*, method: str, path: str, time: str, nonce: str, digest: str) -> bytes:
    """What the signature is over: a line that says what it is for, then each part on a line.

    >>> signed_text(method="POST", path="/v1/control/list-runs", time="T", nonce="N", digest="D").splitlines()[:2]
    [b'consilium control v1', b'POST']
    """
    return "\n".join(("consilium control v1", method, path, time, nonce, digest)).encode()


def sign(key: Ed25519PrivateKey, *, method: str, path: str, body: bytes) -> dict[str, str]:
    """Headers that sign a request, for once and for a minute."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    nonce, digest = secrets.token_hex(16), hashlib.sha256(body).hexdigest()
    text = signed_text(method=method, path=path, time=time, nonce=nonce, digest=digest)
    return {TIME: time, NONCE: nonce, BODY: digest, SIGNATURE: base64.b64encode(key.sign(text)).decode()}


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """The headers of a request that says that it is signed."""

    at: datetime
    time: str
    nonce: str
    digest: str
    signature: bytes


class Checker:
    """Checks signatures and remembers nonces as long as they could be used again.

    Requests from before it was made are refused: it does not know their nonces.

    Args:
        keys: Asked at each request, so that a key which is added or taken away counts at once.
        now: Clock, UTC.
    """

    def __init__(
        self,
        keys: Callable[[], Sequence[Ed25519PublicKey]],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keys = keys
        self._now = now
        self._since = now() - timedelta(milliseconds=1)  # times in requests are cut to milliseconds
        self._used: dict[str, datetime] = {}

    def check(self, headers: Mapping[str, str], *, method: str, path: str) -> str:
        """Check all but the body, so that nobody else's body need be read.

        Returns:
            The SHA-256 that the body must have.

        Raises:
            UnsignedError: The request is unsigned, old, early, repeated, or signed by nobody who is trusted.
        """
        claim = _read(headers)
        age = (self._now() - claim.at).total_seconds()
        if abs(age) > MOST_SECONDS:
            raise UnsignedError(
                f"the request's time is {abs(age):.0f} s {'ago' if age > 0 else 'ahead'}; "
                f"at most {MOST_SECONDS:g} s are allowed: check both clocks"
            )
        if claim.at < self._since:
            raise UnsignedError("the request is older than this SuperLink; send it again")
        text = signed_text(method=method, path=path, time=claim.time, nonce=claim.nonce, digest=claim.digest)
        if not any(_fits(key, claim.signature, text) for key in self._keys()):
            raise UnsignedError("the request is signed by nobody who may; sign it with the study lead's key")
        self._use(claim)
        return claim.digest

    def _use(self, claim: _Claim) -> None:
        """Remember the nonce until the request's own time is too old; only signed requests get here."""
        now = self._now()
        self._used = {nonce: until for nonce, until in self._used.items() if until >= now}
        if claim.nonce in self._used:
            raise UnsignedError("the request was seen before; each is good for once")
        self._used[claim.nonce] = claim.at + timedelta(seconds=MOST_SECONDS)


def _read(headers: Mapping[str, str]) -> _Claim:
    missing = [name for name in (TIME, NONCE, BODY, SIGNATURE) if name not in headers]
    if missing:
        raise UnsignedError("the request is not signed; only the study lead may ask this, by fl-server")
    try:
        at = datetime.fromisoformat(headers[TIME])
        signature = base64.b64decode(headers[SIGNATURE], validate=True)
    except (ValueError, binascii.Error) as error:
        raise UnsignedError("the request's signature headers cannot be read") from error
    if at.utcoffset() != timedelta(0) or not _NONCE.fullmatch(headers[NONCE]) or not _DIGEST.fullmatch(headers[BODY]):
        raise UnsignedError("the request's signature headers cannot be read")
    return _Claim(at=at, time=headers[TIME], nonce=headers[NONCE], digest=headers[BODY], signature=signature)


def _fits(key: Ed25519PublicKey, signature: bytes, text: bytes) -> bool:
    try:
        key.verify(signature, text)
    except InvalidSignature:
        return False
    return True
