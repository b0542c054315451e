"""The only place that reads from the kernel which TCP ports this host listens on, and by which addresses."""

import ipaddress
from pathlib import Path

LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp."""
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def listening_addresses(port: int, tables: tuple[Path, ...] = TABLES) -> list[str]:
    """IP addresses on which something listens on a port, in this network namespace; ``0.0.0.0`` and ``::`` are all."""
    found: set[str] = set()
    for table in tables:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for line in lines:
            fields = line.split()
            address, _, hex_port = fields[1].partition(":")
            if fields[3] == LISTEN and int(hex_port, 16) == port:
                found.add(_to_address(address))
    return sorted(found)


def is_loopback(address: str) -> bool:
    """Whether only this host can connect to an address."""
    return ipaddress.ip_address(address).is_loopback


def _to_address(text: str) -> str:
    """Each four bytes are one word in the byte order of the machine."""
    words = [bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))
