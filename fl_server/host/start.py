"""The coordinator's processes: the only place that starts the SuperLink and the executor of server apps."""

import fcntl
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509

from fl_contract.errors import RunError
from fl_host.leftovers import hold_groups
from fl_host.private_files import PRIVATE_FILE, make_private_folder
from fl_host.quiet_flower import QUIET_FLOWER
from fl_host.supervisor import Child, supervise
from fl_server.host.authority import fingerprint_of
from fl_server.host.control import LOOPBACK, trust
from fl_server.host.federation import FederationFolder
from fl_server.host.memory_limits import FEW_ARENAS
from fl_server.host.provisioning import lock_file
from fl_server.host.superlink import check, listen

READY_SECONDS = 120.0
POLL_SECONDS = 0.2
"""Between the executor's questions for a task; Flower's own default is 1 s."""


def start(folder: FederationFolder, say: Callable[[str], None]) -> int:
    """Run the coordinator in the foreground until a signal ends it, or it cannot go on.

    Args:
        folder: Of the federation.
        say: Told once that it is ready.

    Returns:
        0 after SIGTERM, SIGINT or SIGHUP; else the code of the process that ended.

    Raises:
        SettingError: The folder is incomplete or open to others, or a port is taken.
        RunError: Another one runs on this folder, or it does not get ready.
    """
    check(folder)
    for inner in (folder.logs, folder.runs, folder.sites, folder.flower_home):
        make_private_folder(inner)
    with _only_one(folder):
        with hold_groups(folder.logs) as groups:
            groups.end_leftovers()  # of one that was killed; they would hold the ports
        for listener in listen(folder):  # a port that is taken is an error now, not a child that starts for ever
            listener.close()
        return supervise(_children(folder), folder.logs, on_ready=lambda: _announce(folder, say))


@contextmanager
def _only_one(folder: FederationFolder) -> Iterator[None]:
    path = lock_file(folder)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as stream:
        try:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{folder.root}: a coordinator runs on it already; end that one first") from error
        os.utime(path)  # when this one started
        yield


def _children(folder: FederationFolder) -> tuple[Child, Child]:
    root = folder.root.resolve()
    own = FederationFolder(root)
    environment = _environment(own)
    superlink = Child(
        name="superlink",
        command=(sys.executable, "-P", "-m", "fl_server.host.superlink", str(root)),
        environment={**environment, **FEW_ARENAS},
        folder=root,
        restarts=True,
    )
    executor = Child(
        name="executor",
        command=(sys.executable, "-P", "-m", "fl_server.host.executor", str(root)),
        environment={**environment, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(POLL_SECONDS)},
        folder=root,
        restarts=True,
    )
    return superlink, executor


def _environment(folder: FederationFolder) -> Mapping[str, str]:
    """Ours, quiet, with a home of its own, and past any proxy on loopback."""
    before = [os.environ[name] for name in ("NO_PROXY", "no_proxy") if os.environ.get(name)]
    direct = ",".join(dict.fromkeys([*before, LOOPBACK, "localhost"]))
    return {
        **os.environ,
        **QUIET_FLOWER,
        "NO_PROXY": direct,
        "no_proxy": direct,
        "FLWR_HOME": str(folder.flower_home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }


def _announce(folder: FederationFolder, say: Callable[[str], None]) -> None:
    """Wait until the SuperLink answers on both ports, and say so.

    Raises:
        RunError: It does not in time.
    """
    settings = folder.settings()
    deadline = time.monotonic() + READY_SECONDS
    while not is_healthy(folder):
        if time.monotonic() > deadline:
            raise RunError(f"the SuperLink did not answer within {READY_SECONDS:g} s; see {folder.logs}")
        time.sleep(POLL_SECONDS)
    authorities = x509.load_pem_x509_certificates(folder.authority_certificate.read_bytes())
    say(
        f"ready  {settings.name}: hospitals at {settings.address}:{settings.port}; "
        f"operator and executor on {LOOPBACK}:{settings.operator_port}; "
        f"authority SHA256 {' and '.join(fingerprint_of(each) for each in authorities)}"
    )


def is_healthy(folder: FederationFolder) -> bool:
    """Whether the SuperLink answers on the operator's port, with a certificate that the federation's authority signed.

    Raises:
        SettingError: The authority's certificate cannot be read.
    """
    handler = urllib.request.HTTPSHandler(context=trust(folder))
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), handler)
    url = f"https://{LOOPBACK}:{folder.settings().operator_port}/health"
    try:
        with direct.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
