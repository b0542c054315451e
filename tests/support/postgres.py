"""A real PostgreSQL server of a test session's own: found or installed, started in a temporary folder, and stopped.

Nothing is skipped: where there is no server and none can be installed, whoever asks for one fails and is told why.
"""

import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

OWNER = "owner"
PASSWORD = "a:pass%word@/of the owner"
DATABASE = "hospital"
START_SECONDS = 60
INSTALL_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class PostgresServer:
    """A server that is running, with a database and its owner, who must give a password (SCRAM-SHA-256)."""

    port: int

    @property
    def url(self) -> str:
        """Of the database, as ``site.toml`` writes it."""
        return f"postgresql://127.0.0.1:{self.port}/{DATABASE}"

    @property
    def credentials(self) -> str:
        """Of the owner, as ``user:password``."""
        return f"{OWNER}:{PASSWORD}"

    def connect(self, database: str = DATABASE) -> psycopg.Connection:
        """As the owner; each statement is a transaction of its own."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, dbname=database, user=OWNER, password=PASSWORD, autocommit=True
        )


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Start a server, and stop it, by its own process, when the block ends.

    Raises:
        RuntimeError: There is none and none can be installed, or it does not start.
    """
    with _one_process_at_a_time():
        binaries = find_binaries() or install_binaries()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # not below pytest's folder, which is its user's alone
    log = folder / "server.log"
    user, group = _account()
    try:
        shutil.chown(folder, user or os.geteuid(), group)
        _initialise(binaries, folder, user, group)
        port = _free_port()
        options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
        with log.open("wb") as output:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", folder / "data", *(f"--{key}={options[key]}" for key in options)],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=user,
                group=group,
            )
        try:
            running = PostgresServer(port=port)
            _await(running, server, log)
            with running.connect("postgres") as connection:
                connection.execute(f"CREATE DATABASE {DATABASE}")
            yield running
        finally:
            server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            server.wait(START_SECONDS)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests of the session."""
    with running_postgres() as server:
        yield server


@contextmanager
def _one_process_at_a_time() -> Iterator[None]:
    """Tests may run in several processes: no other one looks for a server while this one installs it."""
    with (Path(tempfile.gettempdir()) / f"consilium-postgres-{os.geteuid()}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def find_binaries() -> Path | None:
    """The folder of the newest ``initdb`` and ``postgres``: that on the path, or where Debian keeps them."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


def install_binaries() -> Path:
    """Install the system's own package with apt-get, which only root may.

    Raises:
        RuntimeError: It cannot be installed; the message says what to do.
    """
    advice = "install PostgreSQL's server (Debian: apt-get install postgresql), or put its initdb on the PATH"
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        raise RuntimeError(f"no PostgreSQL server was found, and only root can install one with apt-get: {advice}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "postgresql"]):
        done = subprocess.run(
            [apt, *arguments], env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
        if done.returncode:
            raise RuntimeError(f"apt-get {arguments[0]} failed: {advice}\n{done.stdout}{done.stderr}")
    if (found := find_binaries()) is None:
        raise RuntimeError(f"apt-get installed no initdb: {advice}")
    return found


def _account() -> tuple[int | None, int | None]:
    """User and group to run as, where it cannot be our own: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None, None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return entry.pw_uid, entry.pw_gid


def _initialise(binaries: Path, folder: Path, user: int | None, group: int | None) -> None:
    secret = folder / "password"
    secret.write_text(PASSWORD)
    shutil.chown(secret, user or os.geteuid(), group)
    command: list[str | Path] = [
        binaries / "initdb",
        "-D",
        folder / "data",
        "-U",
        OWNER,
        f"--pwfile={secret}",
        "--auth=scram-sha-256",
    ]
    done = subprocess.run(
        [*command, "-E", "UTF8", "--locale=C", "--no-sync"],
        cwd=folder,
        capture_output=True,
        text=True,
        user=user,
        group=group,
    )
    secret.unlink()
    if done.returncode:
        raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(running: PostgresServer, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            running.connect("postgres").close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from None
            time.sleep(0.05)
        else:
            return
