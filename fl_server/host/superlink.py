"""Flower's SuperLink behind our guard, on two sockets: ``python -m fl_server.host.superlink FOLDER``.

The only place that builds Flower's SuperLink; it uses parts of flwr 1.41.0 that are not its public interface.
"""

import asyncio
import asyncio.constants
import asyncio.sslproto
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from logging import INFO, Logger
from pathlib import Path
from typing import Any

from fl_contract.errors import ConsiliumError, SettingError
from fl_host.json_log import open_json_log
from fl_host.private_files import check_private
from fl_host.quiet_flower import QUIET_FLOWER
from fl_server.host.connections import HEAD_SECONDS, PunctualProtocol
from fl_server.host.control_signature import Checker
from fl_server.host.federation import FederationFolder, FederationSettings
from fl_server.host.lead import read_trusted_leads
from fl_server.host.memory_limits import limit_database_caches
from fl_server.host.node_signature import NodeKeys
from fl_server.host.request_guard import RequestGuard

LOOPBACK = "127.0.0.1"
CERTIFICATE_SECONDS = 1.0
"""Between two looks at the certificate's file."""
BACKLOG = 2048
LOG_NAME = "guard"


def main(root: Path) -> None:
    """Serve until a signal ends it.

    Raises:
        SettingError: The folder is incomplete or open to others, or an address is not to be had.
    """
    os.umask(0o077)
    os.environ.update(QUIET_FLOWER)
    folder = FederationFolder(root.resolve())
    check(folder)
    _serve(folder, folder.settings(), listen(folder))


def check(folder: FederationFolder) -> None:
    """Raise what would keep the SuperLink from serving.

    Raises:
        SettingError: The folder is incomplete or open to others, or the certificate does not fit its key.
    """
    settings = folder.settings()
    if settings.port == settings.operator_port:
        raise SettingError(f"operator-port={settings.operator_port}; expected another port than port")
    for path in (folder.root, folder.server_key, folder.authority_key.parent, folder.executor_secret):
        check_private(path)
    if not read_trusted_leads(folder):
        raise SettingError(f"{folder.lead_public_key.parent}: holds no study lead's public key; restore lead.pub")
    _tls_context(folder)


def listen(folder: FederationFolder) -> list[socket.socket]:
    """The hospitals' socket and the operator's.

    Raises:
        SettingError: An address is not to be had.
    """
    settings = folder.settings()
    return [_listen(settings.bind, settings.port), _listen(LOOPBACK, settings.operator_port)]


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise SettingError(
            f"{address}:{port}; cannot listen there ({error.strerror}); check federation.toml"
        ) from error
    listener.setblocking(False)
    return listener


def _serve(folder: FederationFolder, settings: FederationSettings, sockets: list[socket.socket]) -> None:
    import uvicorn
    from flwr.supercore.http_logging import get_uvicorn_log_config
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.main import create_app
    from starlette.middleware import Middleware

    log = open_json_log(folder.logs, LOG_NAME)
    guard = Middleware(
        RequestGuard,
        operator=(LOOPBACK, settings.operator_port),
        checker=Checker(lambda: read_trusted_leads(folder)),
        nodes=NodeKeys(folder),
        log=log,
    )
    _log_failed_handshakes(log)
    asyncio.constants.SSL_HANDSHAKE_TIMEOUT = HEAD_SECONDS
    PunctualProtocol.log = log
    context = _tls_context(folder)
    limit_database_caches()
    extensions.get_middleware = lambda: (guard,)
    extensions.get_lifespan_contexts = lambda: (partial(_fresh_certificate, context=context, folder=folder, log=log),)
    app = create_app(_lifespan_config(folder, settings), SuperLinkLifespan)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=PunctualProtocol,
        ws="none",
        log_config=get_uvicorn_log_config(INFO),
        proxy_headers=False,  # the log names who connected, not who says so
        server_header=False,
        ssl_certfile=folder.server_certificate,
        ssl_context_factory=lambda _config, _default: context,
        backlog=BACKLOG,
    )
    log.info(
        "hospitals: %s:%d; operator and executor: %s:%d", settings.bind, settings.port, LOOPBACK, settings.operator_port
    )
    uvicorn.Server(config).run(sockets=sockets)


def _lifespan_config(folder: FederationFolder, settings: FederationSettings) -> Any:
    """What ``flower-superlink --isolation process --enable-supernode-auth`` with TLS, secret and SQLite builds."""
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin

    certificates = tuple(
        path.read_bytes() for path in (folder.authority_certificate, folder.server_certificate, folder.server_key)
    )
    return SuperLinkLifespanConfig(
        control_address="",  # gRPC only, which is off
        health_server_address=None,
        host=settings.bind,
        port=settings.port,
        insecure=False,
        certificates=(certificates[0], certificates[1], certificates[2]),
        superexec_auth_secret=folder.executor_secret.read_bytes(),
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=str(folder.authority_certificate),
        ssl_certfile=str(folder.server_certificate),
        ssl_keyfile=str(folder.server_key),
        database=str(folder.database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )


def _tls_context(folder: FederationFolder) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(folder.server_certificate, folder.server_key)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(
            f"{folder.server_certificate}: cannot be used with its key ({error}); run fl-server renew"
        ) from error
    return context


def _log_failed_handshakes(log: Logger) -> None:
    """Log who did not get as far as a request: no TLS, or no trust in our authority. asyncio itself says nothing."""
    protocol = asyncio.sslproto.SSLProtocol
    end = protocol._fatal_error

    def logged(self: asyncio.sslproto.SSLProtocol, exc: BaseException, message: str = "") -> None:
        if "handshake" in message:
            peer = self._get_extra_info("peername") or ("unknown", 0)
            cause = getattr(exc, "reason", None) or type(exc).__name__
            log.warning("refused: no TLS connection", extra={"peer": f"{peer[0]}:{peer[1]}", "cause": cause})
        end(self, exc, message)

    protocol._fatal_error = logged  # type: ignore[method-assign]


@asynccontextmanager
async def _fresh_certificate(
    _app: object, *, context: ssl.SSLContext, folder: FederationFolder, log: Logger
) -> AsyncIterator[None]:
    """While the server runs, give new connections the certificate that the file holds now."""
    task = asyncio.create_task(_watch_certificate(context, folder, log))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch_certificate(context: ssl.SSLContext, folder: FederationFolder, log: Logger) -> None:
    known = _version(folder.server_certificate)
    while True:
        await asyncio.sleep(CERTIFICATE_SECONDS)
        found = _version(folder.server_certificate)
        if found in (None, known):
            continue
        known = found
        try:
            _tls_context(folder)  # a pair that does not fit would break the live one
            context.load_cert_chain(folder.server_certificate, folder.server_key)
        except (SettingError, OSError) as error:
            log.error("the new certificate is not used: %s", error)
        else:
            log.info("new connections get the new certificate")


def _version(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except ConsiliumError as error:
        sys.exit(f"error: {error}")
