"""``fl-client start``: the only place that decides whether a hospital's node may start, and with what environment."""

import fcntl
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl_client.journal import START, STOP, Journal
from fl_client.node.app_process import ONE_THREAD
from fl_client.node.node_folder import CONNECTED, NodeFolder
from fl_client.node.node_keys import fingerprint, public_line, read_key
from fl_client.settings import SiteSettings, read_site_settings
from fl_client.source_settings import SqlSourceSettings
from fl_contract.enrolment import Invitation
from fl_contract.errors import RunError, SettingError
from fl_host.leftovers import hold_groups
from fl_host.private_files import check_private, make_private_folder, write_private
from fl_host.quiet_flower import QUIET_FLOWER
from fl_host.supervisor import Child, supervise

KEPT_VARIABLES = ("HOME", "LANG", "PATH", "TMPDIR", "TZ", "USER", "LD_LIBRARY_PATH", "KRB5CCNAME", "KRB5_CONFIG")
KEPT_PREFIXES = ("CUDA_", "LC_", "MKL_", "NVIDIA_", "OMP_", "PG", "PYTORCH_", "TORCH_")
"""What the node's processes see of the environment: nothing that an app does not need."""


class NotAdmittedError(RunError):
    """The coordinator does not take this node."""


@dataclass(frozen=True, kw_only=True)
class ReadyNode:
    """A node that may start.

    Attributes:
        site_file: The hospital's ``site.toml``.
        settings: What stands in it.
        invitation: The coordinator's, stored by ``fl-client join``.
    """

    site_file: Path
    settings: SiteSettings
    invitation: Invitation


def check_ready(site_file: Path) -> ReadyNode:
    """Check all that a node needs before it starts.

    Raises:
        SettingError: Names what is missing, open to others or taken, and what to do.
    """
    settings, folder = read_site_settings(site_file), NodeFolder.of(site_file)
    if not folder.invitation.exists():
        raise SettingError(f"{folder.invitation}: absent; fl-client enroll and fl-client join come first")
    for path in (folder.root, folder.key, folder.invitation, folder.authority):
        check_private(path)
    invitation = Invitation.read(folder.invitation)
    if invitation.site != settings.name:
        raise SettingError(f"name={settings.name!r}; the invitation is for {invitation.site!r}; enrol under this name")
    if invitation.node_key != (key := fingerprint(public_line(read_key(folder.key)))):
        raise SettingError(f"{folder.key}: {key}; the invitation is for {invitation.node_key}; fl-client join again")
    return ReadyNode(site_file=site_file.resolve(), settings=settings, invitation=invitation)


def start(node: ReadyNode, say: Callable[[str], None]) -> int:
    """Run the node's two processes until a signal asks to end.

    Returns:
        0 after a signal; otherwise the code of what failed.

    Raises:
        SettingError: It runs already, or its port is taken.
        NotAdmittedError: The coordinator does not take this node.
    """
    folder = NodeFolder.of(node.site_file)
    journal = Journal(node.site_file.parent)
    with _only_one(folder):
        for inner in (folder.flower_home, folder.logs):
            make_private_folder(inner)
        with hold_groups(folder.logs) as groups:
            groups.end_leftovers()
        _check_port(node.settings.node.runtime_port)
        write_private(folder.executor_secret, secrets.token_bytes(48))
        folder.connection.unlink(missing_ok=True)
        journal.append(START, federation=node.invitation.federation, address=node.invitation.address)
        code = 1
        try:
            code = supervise(_children(node, os.environ), folder.logs, on_ready=lambda: _watch(node, folder, say))
        finally:
            journal.append(STOP, code=code)
    return code


def node_environment(node: ReadyNode, own: Mapping[str, str]) -> dict[str, str]:
    """What the SuperNode sees: with the proxy, without any password."""
    kept = {name: own[name] for name in own if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)}
    kept.pop("PGPASSWORD", None)
    proxy = {"HTTPS_PROXY": node.settings.node.proxy} if node.settings.node.proxy else {}
    local = {"NO_PROXY": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1"}
    home = {"FLWR_HOME": str(NodeFolder.of(node.site_file).flower_home)}
    return {**kept, **QUIET_FLOWER, **proxy, **local, **home}


def executor_environment(node: ReadyNode, own: Mapping[str, str]) -> dict[str, str]:
    """What the executor and the apps see: without the proxy, with the variable that ``site.toml`` names."""
    environment = {name: value for name, value in node_environment(node, own).items() if name != "HTTPS_PROXY"}
    source = node.settings.source
    name = source.credentials.environment if isinstance(source, SqlSourceSettings) and source.credentials else None
    return environment | ONE_THREAD | ({name: own[name]} if name is not None and name in own else {})


def _children(node: ReadyNode, own: Mapping[str, str]) -> tuple[Child, ...]:
    environments = {
        "supernode": node_environment(node, own),
        "executor": executor_environment(node, own),
    }
    return tuple(
        Child(
            name=name,
            # -P: the working directory holds no code of ours
            command=(sys.executable, "-P", "-m", f"fl_client.node.{name}", str(node.site_file)),
            environment=environment,
            folder=node.site_file.parent,
            restarts=True,
        )
        for name, environment in environments.items()
    )


def _watch(node: ReadyNode, folder: NodeFolder, say: Callable[[str], None]) -> None:
    """Say when the node is connected, and end all when the coordinator does not take it."""
    is_connected = False
    while True:
        state = folder.connection.read_text(encoding="utf-8") if folder.connection.exists() else ""
        if state == CONNECTED and not is_connected:
            is_connected = True
            say(f"connected to {node.invitation.federation} as {node.settings.name}")
        elif state not in ("", CONNECTED):
            raise NotAdmittedError(f"{state}; ask the coordinator")
        time.sleep(0.2)


@contextmanager
def _only_one(folder: NodeFolder) -> Iterator[None]:
    descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise SettingError(f"{folder.root}: this node runs already; end it first") from error
    finally:
        os.close(descriptor)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SettingError(
                f"node.runtime-port={port}; {error.strerror}; is this node running, or another on this host? "
                "choose another port in site.toml"
            ) from error
