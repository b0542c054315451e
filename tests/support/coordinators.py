"""A real coordinator on loopback for tests: its folder, and the process that serves it."""

import base64
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fl_contract.enrolment import EnrolmentRequest
from fl_server.host.federation import FederationFolder, FederationSettings
from fl_server.host.provisioning import NewFederation, make_federation

START_SECONDS = 90.0
FL_SERVER = str(Path(sys.executable).parent / "fl-server")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def new_folder(root: Path, *, name: str = "cardio") -> FederationFolder:
    """A new federation's folder, on free ports of loopback."""
    port, operator_port = free_ports(2)
    folder = FederationFolder(root)
    settings = FederationSettings.parse(
        {"name": name, "address": "127.0.0.1", "bind": "127.0.0.1", "port": port, "operator-port": operator_port},
        origin="test",
    )
    make_federation(folder, NewFederation(settings=settings))
    return folder


def new_request(site: str, key: ec.EllipticCurvePrivateKey) -> EnrolmentRequest:
    """What a hospital asks with."""
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    signature = key.sign(EnrolmentRequest.signed_text(site, line), ec.ECDSA(hashes.SHA384()))
    raw = {"site": site, "public-key": line, "signature": base64.b64encode(signature).decode()}
    return EnrolmentRequest.parse(raw, origin="test")


def trusting(folder: FederationFolder) -> ssl.SSLContext:
    """Trust in the federation's authority alone."""
    return ssl.create_default_context(cafile=str(folder.authority_certificate))


def wait_until_healthy(folder: FederationFolder, process: "subprocess.Popen[bytes]") -> None:
    """Wait for the hospitals' port to answer."""
    deadline = time.monotonic() + START_SECONDS
    url = f"https://127.0.0.1:{folder.settings().port}/health"
    while True:
        try:
            if httpx.get(url, verify=trusting(folder), trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert process.poll() is None, f"the coordinator ended with {process.returncode}"
        assert time.monotonic() < deadline, "the coordinator did not answer in time"
        time.sleep(0.1)


@contextmanager
def serving(folder: FederationFolder, command: Sequence[str], output: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command that serves the folder, and end it."""
    with output.open("ab") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "FLWR_HOME": str(folder.flower_home)},
        )
    try:
        wait_until_healthy(folder, process)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def client(folder: FederationFolder) -> httpx.Client:
    """An HTTPS client that trusts the federation's authority and uses no proxy."""
    return httpx.Client(verify=trusting(folder), trust_env=False, timeout=20)
