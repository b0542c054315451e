"""Runs server apps beside the SuperLink: ``python -m fl_server.host.executor FOLDER``.

The only place that starts a server app's process and that reports one which ended without a word.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from fl_host.quiet_flower import QUIET_FLOWER
from fl_server.host.control import LOOPBACK
from fl_server.host.federation import FederationFolder

if TYPE_CHECKING:
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult

COMMAND = str(Path(sys.executable).parent / "flwr-serverapp")

logger = logging.getLogger("flwr")


@dataclass(frozen=True)
class _ServerApp:
    process: "subprocess.Popen[bytes]"
    token: str
    address: str


class ServerApps:
    """What Flower's SuperExec starts tasks with, an ``Executor`` of flwr.

    Guarantees:
        - Only server apps are taken; whatever else a run asks to be started here waits in vain.
        - An app's token stands in no list of processes and on no disk.
        - A run whose app was killed or crashed has failed at once, and says with which code.

    Args:
        authority: PEM file that the SuperLink's certificate is checked against.
    """

    def __init__(self, authority: Path) -> None:
        self._authority = authority
        self._apps: list[_ServerApp] = []

    def get_eligible_capacity(
        self, supported_task_types: "set[TaskType]", **_: object
    ) -> "tuple[set[TaskType], set[str]]":
        """Server apps, as many as there are."""
        from flwr.supercore.constant import TaskType

        return supported_task_types & {TaskType.SERVER_APP}, set()

    def wait_for_capacity(self, *_: object, **__: object) -> None:
        """There is always room."""

    def launch(self, spec: "ExecutionSpec") -> "LaunchResult":
        """Start an app's process, which ends with this one."""
        from flwr.supercore.superexec.executor import LaunchResult

        with _hidden(spec.token) as token_file:
            process = subprocess.Popen(
                [
                    COMMAND,
                    *("--runtime-api-address", spec.runtime_api_address),
                    *("--token-file", f"/proc/self/fd/{token_file}"),
                    *("--root-certificates", str(self._authority)),
                    *("--parent-pid", str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # which the app sends to the SuperLink itself
                stderr=subprocess.DEVNULL,
                pass_fds=[token_file],
            )
        self._apps.append(_ServerApp(process, spec.token, spec.runtime_api_address))
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Report apps that ended; where the SuperLink is away, the next time."""
        self._apps = [app for app in self._apps if app.process.poll() is None or not self._is_reported(app)]

    def close(self) -> None:
        """Nothing is left: apps end with this process."""

    def _is_reported(self, app: _ServerApp) -> bool:
        from flwr.common.constant import SubStatus
        from flwr.proto.runtime_pb2 import PushTaskOutputRequest
        from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
        from flwr.supercore.runtime import RuntimeHttpClient

        if app.process.returncode == 0:
            return True
        details = f"the server app's process ended with code {app.process.returncode}"
        client = RuntimeHttpClient.from_server_address(
            server_address=app.address,
            insecure=False,
            root_certificates=self._authority.read_bytes(),
            interceptors=(
                RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
                RuntimeTokenHttpInterceptor(app.token),
            ),
        )
        try:
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=details))
        except httpx.TransportError:
            return False
        except httpx.HTTPError as error:
            logger.info("%s; the SuperLink knows: %s", details, error)
        else:
            logger.error("%s", details)
        finally:
            client.close()
        return True


@contextmanager
def _hidden(token: str) -> Iterator[int]:
    """A file of this process's memory that holds a token, open."""
    descriptor = os.memfd_create("token")
    try:
        os.write(descriptor, token.encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def main(root: Path) -> None:
    """Take server apps until a signal ends it."""
    from flwr.supercore.utils import disable_process_dumping

    os.umask(0o077)
    disable_process_dumping(strict=False)
    os.environ.update(QUIET_FLOWER)
    folder = FederationFolder(root)
    superexec: Any = import_module("flwr.supercore.superexec.run_superexec")
    superexec.get_executor = lambda *_, **__: ServerApps(folder.authority_certificate)
    superexec.run_superexec(
        runtime_api_address=f"{LOOPBACK}:{folder.settings().operator_port}",
        insecure=False,
        root_certificates_path=str(folder.authority_certificate),
        superexec_auth_secret=folder.executor_secret.read_bytes(),
        runtime_dependency_install=False,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
