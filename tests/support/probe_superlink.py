"""A plain SuperLink with TLS and node keys on loopback, and an app that asks nodes one question after the other."""

import contextlib
import datetime
import ipaddress
import json
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import ssh
from cryptography.x509.oid import NameOID
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest, UnregisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fl_host.quiet_flower import QUIET_FLOWER

SCRIPTS = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(command: list[str], folder: Path, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a group of its own, ended with all that it started."""
    with (folder / f"{Path(command[0]).name}.log").open("ab") as log:
        started = subprocess.Popen(
            command,
            cwd=folder,
            env={
                **{name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ},
                **QUIET_FLOWER,
                **environment,
            },
            stdout=log,
            stderr=log,
            process_group=0,
        )
    try:
        yield started
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


@dataclass
class Questions:
    """A run whose app asks nodes."""

    folder: Path
    run: int
    number: int = 0

    def ask(self, node: int, what: str, *, patience: float = 60) -> dict[str, Any]:
        """The reply, how long it took, or what error came."""
        part = self.folder / "next"
        part.write_text(json.dumps({"do": what, "node": node, "patience": patience}))
        part.rename(self.folder / f"ask-{self.number}.json")
        reply = self.folder / f"reply-{self.number}.json"
        wait_for(reply.exists, patience + 30, f"reply to {what}")
        self.number += 1
        answer: dict[str, Any] = json.loads(reply.read_text())
        return answer


@dataclass
class ProbeSuperLink:
    """A running SuperLink and what a hospital must know of it."""

    folder: Path
    port: int
    authority: str

    @contextlib.contextmanager
    def control(self) -> Iterator[ControlHttpClient]:
        with ControlHttpClient.from_server_address(
            f"127.0.0.1:{self.port}", False, self.authority.encode(), [RuntimeVersionHttpInterceptor("flwr CLI")]
        ) as client:
            yield client

    def register(self, public_line: str) -> int:
        key = ssh.load_ssh_public_key(public_line.encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        with self.control() as control:
            return int(control.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(key))).node_id)

    def unregister(self, node: int) -> None:
        with self.control() as control:
            control.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def start_run(self, bundle: bytes) -> Questions:
        folder = self.folder / f"questions-{secrets.token_hex(4)}"
        folder.mkdir()
        request = StartRunRequest(
            fab=fab_to_proto(Fab("", bundle, {})),
            override_config=user_config_to_proto({"folder": str(folder), "study": "probe"}),
        )
        with self.control() as control:
            run = control.StartRun(request).run_id
        wait_for((folder / "ready").exists, 60, "the app at the coordinator")
        return Questions(folder, run)

    def alter(self, bundle_hash: str, content: bytes) -> None:
        """What a coordinator could do: send other bytes under an approved hash."""
        with sqlite3.connect(self.folder / "state.db") as database:
            changed = database.execute("UPDATE fab SET content = ? WHERE fab_hash = ?", (content, bundle_hash))
            assert changed.rowcount == 1


@contextlib.contextmanager
def run_superlink(folder: Path) -> Iterator[ProbeSuperLink]:
    """Starts it, with an executor for its apps."""
    authority = write_certificates(folder)
    port = free_port()
    secret = folder / "secret"
    secret.write_bytes(secrets.token_bytes(32))
    home = {"FLWR_HOME": str(folder / "flower"), "PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    superlink = [
        *(str(SCRIPTS / "flower-superlink"), "--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key", "--ssl-ca-certfile", "ca.crt"),
        *("--enable-supernode-auth", "--database", "state.db", "--isolation", "process"),
        *("--superexec-auth-secret-file", "secret", "--disable-runtime-dependency-installation"),
    ]
    executor = [
        *(str(SCRIPTS / "flower-superexec"), "--runtime-api-address", f"127.0.0.1:{port}"),
        *("--root-certificates", "ca.crt", "--superexec-auth-secret-file", "secret"),
    ]
    with process(superlink, folder, **home):
        wait_for(lambda: is_open(port), 60, "the SuperLink")
        with process(executor, folder, FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.2", **home):
            yield ProbeSuperLink(folder, port, authority)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.05)


def write_certificates(folder: Path) -> str:
    """An authority and a certificate for loopback; the authority's PEM."""
    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server")}
    names = {name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"probe {name}")]) for name in keys}
    built = {}
    for name, key in keys.items():
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["ca"])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
        )
        if name == "server":
            addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
            builder = builder.add_extension(addresses, critical=False)
        built[name] = builder.sign(keys["ca"], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        (folder / f"{name}.crt").write_bytes(built[name])
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.key").write_bytes(pem)
    return built["ca"].decode()
