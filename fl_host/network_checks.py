"""Checks of the way to a coordinator's port: name, route, certificate, clock. The only place for their limits."""

import ipaddress
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from fl_host.checks import Finding, failed, ok, warning
from fl_host.endpoint import Endpoint, ProxyError, trusting

EXPIRY_WARNING_DAYS = 30
RENEW = "at the coordinator: fl-server renew; it needs no restart and no new invitation"

CLOCK_WARNING_SECONDS = 2.0
MOST_SECONDS_AHEAD = 5.0
"""A SuperLink of flwr 1.41 refuses a signature from further ahead of its own clock."""
MOST_SECONDS_BEHIND = 300.0
"""And one that is older than 305 s; the request itself takes time."""

HOSTNAME_CODES = {62, 64}
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
NOT_YET_VALID, EXPIRED = 9, 10


def check_address(endpoint: Endpoint) -> Finding:
    """Whether the first hop has an address; with a proxy, it is the proxy that looks up the coordinator."""
    host, _ = endpoint.first_hop
    whose = "" if endpoint.proxy is None else "proxy "
    if _is_ip_address(host):
        return ok(f"{whose}{host} is an IP address; nothing to look up")
    try:
        found = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except socket.gaierror as error:
        return failed(
            f"{whose}{host} has no address ({error.strerror})",
            "check the name's spelling and this host's DNS server (/etc/resolv.conf)",
        )
    return ok(f"{whose}{host} is {', '.join(found)}")


def check_route(endpoint: Endpoint) -> Finding:
    """Whether a TCP connection to the port opens, by CONNECT where there is a proxy."""
    host, port = endpoint.first_hop
    try:
        with endpoint.connect():
            pass
    except ProxyError as error:
        return failed(
            str(error),
            f"ask the proxy's owner to let this host CONNECT to {endpoint.host}:{endpoint.port} without a password",
        )
    except TimeoutError:
        return failed(
            f"{host}:{port} did not answer", f"a firewall drops the packets: allow outbound TCP to {host}:{port}"
        )
    except ConnectionRefusedError:
        return failed(
            f"{host}:{port} refused the connection",
            "nothing listens there, or a firewall rejects it: is the coordinator (or the proxy) running?",
        )
    except OSError as error:
        return failed(f"{host}:{port}: {error.strerror or error}", "check this host's network and default route")
    by = "" if endpoint.proxy is None else f" through proxy {host}:{port}"
    return ok(f"TCP to {endpoint.host}:{endpoint.port} opens{by}")


def check_certificate(endpoint: Endpoint, authority: Path) -> Finding:
    """Whether the port's certificate is signed by the authority, for this address, and for some time to come."""
    try:
        with endpoint.connect_tls(trusting(authority)) as connection:
            protocol = connection.version()
    except ssl.SSLCertVerificationError as error:
        return _why_not_trusted(endpoint, error)
    except ssl.SSLError as error:
        return failed(
            f"no TLS ({error.reason or error})",
            "something else answers on this port, or a proxy opens TLS: it must pass the connection through unopened",
        )
    certificate = endpoint.read_certificate()
    return check_expiry(certificate, f"{protocol}, signed by this federation, names {_names(certificate)}")


def check_expiry(certificate: x509.Certificate, told: str, *, renew: str = RENEW) -> Finding:
    """How many days a certificate is still valid.

    Args:
        certificate: Any.
        told: What else to say of it.
        renew: What to do when it ends.
    """
    days = (certificate.not_valid_after_utc - datetime.now(UTC)).days
    text = f"{told}; valid for {days} days, until {certificate.not_valid_after_utc:%Y-%m-%d}"
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        return failed(f"expired on {certificate.not_valid_after_utc:%Y-%m-%d}", renew)
    if days < EXPIRY_WARNING_DAYS:
        return warning(text, renew)
    return ok(text)


def check_clock(endpoint: Endpoint, authority: Path) -> Finding:
    """How far this host's clock is from the coordinator's, to half a second or so."""
    answer = endpoint.ask(authority, "/health")
    if answer.server_time is None:
        return warning("the coordinator's answer has no Date header", "compare `date -u` on both hosts by hand")
    return judge_clock(answer.local_time - (answer.server_time + 0.5))


def judge_clock(ahead: float) -> Finding:
    """What a difference of clocks means.

    Args:
        ahead: Seconds by which this host is ahead of the coordinator; negative if it is behind.
    """
    text = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator"
    advice = "start time synchronisation on both hosts (chrony or systemd-timesyncd); the firewall must allow NTP"
    if ahead > MOST_SECONDS_AHEAD or ahead < -MOST_SECONDS_BEHIND:
        return failed(f"{text}; every request of this host is refused", advice)
    if abs(ahead) > CLOCK_WARNING_SECONDS:
        return warning(
            f"{text}; refused from {MOST_SECONDS_AHEAD:.0f} s ahead, {MOST_SECONDS_BEHIND:.0f} s behind", advice
        )
    return ok(text)


def certificate_names(certificate: x509.Certificate) -> list[str]:
    """The names and IP addresses that a certificate is for."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    names = extension.value
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _why_not_trusted(endpoint: Endpoint, error: ssl.SSLCertVerificationError) -> Finding:
    certificate = endpoint.read_certificate()
    now = datetime.now(UTC)
    if error.verify_code in HOSTNAME_CODES:
        return failed(
            f"the certificate is for {_names(certificate)}, not for {endpoint.host}",
            "use one of these names as the coordinator's address (an invitation holds it)",
        )
    if error.verify_code == NOT_YET_VALID:
        return failed(
            f"the certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only; "
            f"this host's clock says {now:%Y-%m-%d %H:%M} UTC",
            "set this host's clock",
        )
    if error.verify_code == EXPIRED:
        return failed(
            f"the certificate expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; "
            f"this host's clock says {now:%Y-%m-%d %H:%M} UTC",
            "at the coordinator: fl-server renew; if the clock is wrong, set it",
        )
    return failed(
        f"not signed by this federation's authority but by {certificate.issuer.rfc4514_string()} "
        f"({error.verify_message})",
        "a proxy that opens TLS must pass this connection through unopened; if the federation changed its authority, "
        "ask for a new invitation and run fl-client join again",
    )


def _names(certificate: x509.Certificate) -> str:
    return ", ".join(certificate_names(certificate)) or "nothing"


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
