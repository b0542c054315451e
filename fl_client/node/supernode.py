"""Flower's SuperNode as a hospital runs it: ``python -m fl_client.node.supernode SITE.TOML``.

The only place that puts our gates into Flower's SuperNode, and that says why the coordinator does not take this node.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from fl_client.node.app_process import use_plain_log
from fl_client.node.node_folder import CONNECTED, NodeFolder
from fl_client.node.node_keys import read_key
from fl_client.settings import read_site_settings
from fl_contract.enrolment import Invitation
from fl_host.checks import Status
from fl_host.endpoint import Endpoint
from fl_host.private_files import make_private_folder, write_private
from fl_host.quiet_flower import QUIET_FLOWER

NOT_ADMITTED = 3
"""Exit code of a node that the coordinator does not take."""
LEASE_SECONDS = 75.0
"""After a crash the coordinator refuses a node until its old lease is over: two missed heartbeats of 30 s."""

logger = logging.getLogger("flwr")


class NotConnectedError(Exception):
    """The coordinator did not take this node, or is not the one of the invitation."""


def main(site_file: Path) -> None:
    """Run the SuperNode until it is asked to end."""
    os.umask(0o077)
    folder = NodeFolder.of(site_file)
    make_private_folder(folder.flower_home)
    os.environ.update({**QUIET_FLOWER, "FLWR_HOME": str(folder.flower_home)})
    _install_gates(site_file, folder)
    command: Any = import_module("flwr.supernode.cli.flower_supernode")
    command._parse_supernode_lifespan_config = lambda: _configuration(site_file, folder)
    code = 1  # the connection ended with an error that Flower logged
    try:
        command.flower_supernode()
    except SystemExit as end:
        if isinstance(end.code, str):
            logger.error("%s", end.code)
        code = end.code if isinstance(end.code, int) else 1
    except Exception:
        logger.exception("the SuperNode ended")
    sys.stderr.flush()
    os._exit(code)  # threads of Flower's would hold the process for seconds


def _configuration(site_file: Path, folder: NodeFolder) -> Any:
    from flwr.supernode.cli.flower_supernode import SuperNodeLifespanConfig

    key = read_key(folder.key)
    return SuperNodeLifespanConfig(
        server_address=Invitation.read(folder.invitation).address,
        root_certificates=folder.authority.read_bytes(),
        insecure=False,
        authentication_keys=(key, key.public_key()),
        max_retries=None,
        max_wait_time=None,
        node_config={"site-file": str(site_file.resolve())},
        isolation="process",
        runtime_certificates=None,
        runtime_root_certificates_path=None,
        health_server_address=None,
        trusted_entities={"hospital": "its approvals"},  # not empty, so that Flower asks the bundle gate
        superexec_auth_secret=folder.executor_secret.read_bytes(),
        runtime_dependency_install=False,
        host="127.0.0.1",
        port=read_site_settings(site_file).node.runtime_port,
        runtime_ssl_certfile=None,
        runtime_ssl_keyfile=None,
    )


def _install_gates(site_file: Path, folder: NodeFolder) -> None:
    """Replace the parts of Flower's SuperNode that let something in or out."""
    import flwr.supercore.retry.http_retry as retry
    import flwr.supernode.fleet_http_connection as connection
    import flwr.supernode.start_client_internal as supernode

    from fl_client.journal import Journal
    from fl_client.node.approvals import Approvals
    from fl_client.node.bundle_gate import BundleGate
    from fl_client.node.ended_runs import forgetting
    from fl_client.node.pace import Pace
    from fl_client.node.reply_gate import ReplyGate

    use_plain_log()
    journal = Journal(site_file.resolve().parent)
    bundles, replies = BundleGate(Approvals(site_file.resolve().parent), journal), ReplyGate(journal)
    pull_and_store, pace = forgetting(supernode._pull_and_store_message), Pace()

    def pull(**functions: Any) -> int | None:
        bundles.forget_withdrawn(functions["state"])
        run = pull_and_store(**functions)
        if run is not None:
            pace.note_request()
        return run

    flower: dict[Any, dict[str, Any]] = {
        supernode: {
            "_init_connection": _connection(
                supernode._init_connection, bundles, folder, lambda: _is_known(site_file, folder)
            ),
            "_verify_fab": bundles.verify,
            "_pull_and_store_message": pull,
            "_push_messages": replies.push_messages(supernode._push_messages),
            "time": SimpleNamespace(sleep=pace.sleep),
        },
        connection: {"flwr_exit": _raise_not_connected, "os": _ProcessThatIsRefused(folder)},
        retry: {"os": _ProcessThatIsRefused(folder)},
    }
    for module, replaced in flower.items():
        for name, value in replaced.items():
            getattr(module, name)  # an AttributeError if Flower changed
            setattr(module, name, value)


def _is_known(site_file: Path, folder: NodeFolder) -> bool:
    """Whether the coordinator knows the key; Flower gives one code for a strange key and for one that is online."""
    from fl_client.node.registration import check_registered

    proxy = read_site_settings(site_file).node.proxy
    endpoint = Endpoint.parse(Invitation.read(folder.invitation).address, proxy)
    return check_registered(endpoint, folder).status is Status.OK


def _connection(
    connect: Callable[..., Any], bundles: Any, folder: NodeFolder, is_known: Callable[[], bool]
) -> Callable[..., Any]:
    """Flower's own connection, through the bundle gate, and with patience for an old lease."""

    @contextmanager
    def connect_patiently(**arguments: Any) -> Iterator[tuple[Any, ...]]:
        with ExitStack() as stack:
            node_id, receive, send, get_run, get_fab, *rest = _enter(stack, connect, arguments, folder, is_known)
            write_private(folder.connection, CONNECTED.encode())
            yield node_id, receive, send, bundles.fetch_run(get_run), bundles.fetch_bundle(get_fab), *rest

    return connect_patiently


def _enter(
    stack: ExitStack,
    connect: Callable[..., Any],
    arguments: dict[str, Any],
    folder: NodeFolder,
    is_known: Callable[[], bool],
) -> tuple[Any, ...]:
    deadline = time.monotonic() + LEASE_SECONDS
    while True:
        try:
            connection: tuple[Any, ...] = stack.enter_context(connect(**arguments))
        except NotConnectedError as error:
            if "[code: 2004]" not in str(error):
                sys.exit(f"no connection to the coordinator: {error}")
            if not is_known():
                _leave(folder, "the coordinator does not know this node's key: it was not admitted, or it was expelled")
            if time.monotonic() > deadline:
                _leave(
                    folder,
                    "another node with this key is online: end it there, or, if it is not yours, have it expelled",
                )
            logger.warning("the coordinator takes this node for online; after a crash that lasts a minute")
            time.sleep(5)
        else:
            return connection


def _raise_not_connected(_code: int, message: str = "", **_: object) -> NoReturn:
    raise NotConnectedError(message)


class _ProcessThatIsRefused:
    """Stands for `os` where Flower interrupts its own process because the coordinator answered 401."""

    def __init__(self, folder: NodeFolder) -> None:
        self._folder = folder

    def getpid(self) -> int:
        """This process."""
        return os.getpid()

    def kill(self, _process: int, _number: int) -> NoReturn:
        """Say why, and end."""
        _leave(self._folder, "the coordinator refuses this node's key: it was expelled, or this host's clock is wrong")


def _leave(folder: NodeFolder, reason: str) -> NoReturn:
    logger.error("%s; ask the coordinator", reason)
    write_private(folder.connection, reason.encode())
    os._exit(NOT_ADMITTED)  # from any thread, and whatever the others wait for


if __name__ == "__main__":
    main(Path(sys.argv[1]))
