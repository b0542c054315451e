"""Hosts of their own on one machine: network namespaces, with a firewall at each hospital that lets out one port only.

They are the test's own, are named by its process, and are gone afterwards.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

COORDINATOR_ADDRESS = "10.77.0.1"
PROXY_ADDRESS = "10.77.0.2"
"""For a proxy, which stands on the coordinator's side of the hospitals' firewalls."""


def missing_for_namespaces() -> str:
    """Why this machine cannot have them; empty if it can."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if absent := [name for name in ("ip", "nft") if shutil.which(name) is None]:
        return f"{absent} is not installed (Debian: iproute2, nftables)"
    return ""


@dataclass(frozen=True)
class Hosts:
    """The namespaces.

    Attributes:
        prefixes: What goes before a command to run it at a host, by name; the coordinator is one of them.
    """

    prefixes: dict[str, tuple[str, ...]]


@contextmanager
def hosts(ways_out: Mapping[str, tuple[str, int]]) -> Iterator[Hosts]:
    """A coordinator at `COORDINATOR_ADDRESS`, and hospitals that reach one port, and nothing and nobody else.

    Args:
        ways_out: The address and port that each hospital reaches, by its name.
    """
    names = {name: f"fl{os.getpid()}-{number}" for number, name in enumerate(("coordinator", *ways_out))}
    try:
        for name in names.values():
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        coordinator = names["coordinator"]
        for address in (COORDINATOR_ADDRESS, PROXY_ADDRESS):
            _ip("-n", coordinator, "address", "add", f"{address}/32", "dev", "lo")
        for number, (hospital, (address, port)) in enumerate(ways_out.items(), start=1):
            _connect(coordinator, names[hospital], number, address, port)
        yield Hosts({name: ("ip", "netns", "exec", namespace) for name, namespace in names.items()})
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _connect(coordinator: str, hospital: str, number: int, address: str, port: int) -> None:
    near, far, subnet = f"{hospital}a", f"{hospital}b", f"10.77.{number}"
    _ip("link", "add", near, "netns", coordinator, "type", "veth", "peer", "name", far, "netns", hospital)
    for namespace, device, last in ((coordinator, near, 1), (hospital, far, 2)):
        _ip("-n", namespace, "address", "add", f"{subnet}.{last}/30", "dev", device)
        _ip("-n", namespace, "link", "set", device, "up")
    _ip("-n", hospital, "route", "add", "default", "via", f"{subnet}.1")
    rules = f"""
table inet wall {{
    chain outbound {{
        type filter hook output priority 0; policy drop;
        oifname "lo" accept
        ip daddr {address} tcp dport {port} accept
    }}
    chain inbound {{
        type filter hook input priority 0; policy drop;
        iifname "lo" accept
        ip saddr {address} tcp sport {port} accept
    }}
}}
"""
    subprocess.run(["ip", "netns", "exec", hospital, "nft", "-f", "-"], input=rules, text=True, check=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
