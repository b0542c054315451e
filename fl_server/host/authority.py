"""The only place that makes certificates: the federation's own authority, and the coordinator's certificate by it."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_contract.errors import SettingError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
BACKDATED = timedelta(hours=1)
"""A hospital whose clock is slow accepts a certificate of today."""
ALWAYS_NAMED = ("localhost", "127.0.0.1")
"""The executor and the operator reach the coordinator by these."""


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A certificate authority that may sign for the names of one coordinator only.

    Attributes:
        key: Private, EC P-256.
        certificate: Self-signed, with critical constraints: no authority below it, and no other names.
    """

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, federation: str, names: Sequence[str]) -> Self:
        """A new authority of a federation; its subject carries the year and a number, so that no two are alike."""
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
                x509.NameAttribute(
                    NameOID.COMMON_NAME, f"{federation} authority {datetime.now(UTC):%Y}-{serial % 2**32:08x}"
                ),
            ]
        )
        permitted = [_constraint(name) for name in names]
        return cls(key=key, certificate=_authority_certificate(subject, key.public_key(), permitted, subject, key))

    @classmethod
    def read(cls, key: bytes, certificates: bytes) -> Self:
        """From PEM; of several certificates the one that belongs to the key.

        Raises:
            SettingError: They do not belong together, or are no PEM.
        """
        try:
            private = serialization.load_pem_private_key(key, password=None)
            found = x509.load_pem_x509_certificates(certificates)
        except (ValueError, TypeError) as error:
            raise SettingError(f"the authority's files hold no usable PEM ({error}); restore them") from error
        if isinstance(private, ec.EllipticCurvePrivateKey):
            for certificate in found:
                if certificate.public_key() == private.public_key():
                    return cls(key=private, certificate=certificate)
        raise SettingError("the authority's key belongs to none of its certificates; restore both from one backup")

    def key_pem(self) -> bytes:
        """The private key."""
        return _key_pem(self.key)

    def certificate_pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def sign_server(self, names: Sequence[str], *, days: int = SERVER_DAYS) -> tuple[bytes, bytes]:
        """A new key and certificate of the coordinator.

        Args:
            names: DNS names and IP addresses that it answers to.
            days: Until it expires.

        Returns:
            Private key and certificate, PEM.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(min(now + timedelta(days=days), self.certificate.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_issuer_identifier(self.key), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return _key_pem(key), certificate.public_bytes(serialization.Encoding.PEM)

    def vouch_for(self, successor: "Authority") -> bytes:
        """A certificate of the successor by this authority: who trusts this one alone trusts what the successor signs.

        Returns:
            PEM.
        """
        certificate = successor.certificate
        permitted = certificate.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
        vouched = _authority_certificate(
            certificate.subject, successor.key.public_key(), permitted, self.certificate.subject, self.key
        )
        return vouched.public_bytes(serialization.Encoding.PEM)


def names_of(certificate: bytes) -> tuple[str, ...]:
    """Names and addresses that a PEM certificate holds, in its order."""
    found = x509.load_pem_x509_certificates(certificate)[0]
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in names)


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, as ``openssl x509 -fingerprint -sha256`` prints it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _authority_certificate(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    permitted: Sequence[x509.GeneralName],
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_issuer_identifier(issuer_key), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer_identifier(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _constraint(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_network(name))
    except ValueError:
        return x509.DNSName(name)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
