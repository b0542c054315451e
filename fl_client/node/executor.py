"""Runs client apps at a hospital: ``python -m fl_client.node.executor SITE.TOML``.

The only place that starts an app's process and that ends one which takes too long.
"""

import logging
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import httpx

from fl_client.journal import REFUSAL, Journal
from fl_client.node.app_process import ANSWERED, adopt_orphans, children, run_app, warm_up
from fl_client.node.node_folder import NodeFolder
from fl_client.settings import read_site_settings
from fl_contract.errors import RefusalCode
from fl_host.quiet_flower import QUIET_FLOWER

if TYPE_CHECKING:
    from flwr.supercore.protobuf.client import ProtobufClientInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0
"""For the app to answer by itself that its time is over, before it is ended."""
TERMINATE_SECONDS = 2.0
"""Between asking an app to end and killing it."""
CRASHED = "crash"

logger = logging.getLogger("flwr")


@dataclass(kw_only=True)
class RunningApp:
    """A process that runs a client app.

    Attributes:
        process: Its id, and that of its process group.
        token: With which the SuperNode knows its task.
        run: Flower's number of the run.
        started: By the monotonic clock.
        ending: When it was asked to end, by the same clock; None while it may run.
    """

    process: int
    token: str
    run: int
    started: float
    ending: float | None = None


class Executor:
    """Takes tasks from the SuperNode and forks a process for each.

    Guarantees:
        - A process that takes longer than the hospital allows is ended, with all that it started.
        - The SuperNode hears of every process that ended without an answer, at once.
        - Processes end with this one, and with the SuperNode that would take their answer.
        - No app runs what was installed for another bundle.
    """

    def __init__(self, site_file: Path) -> None:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor

        self._folder = NodeFolder.of(site_file)
        settings = read_site_settings(site_file).node
        self._limit = settings.task_timeout_seconds + GRACE_SECONDS
        self._address = f"127.0.0.1:{settings.runtime_port}"
        self._journal = Journal(site_file.resolve().parent)
        self._apps: list[RunningApp] = []
        self._is_asked_to_end = False
        self._installed = ""
        self._client = self._open(
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=self._folder.executor_secret.read_bytes(),
                protected_methods={"/flwr.proto.Runtime/AcquireTask"},
            ),
        )

    def run(self) -> None:
        """Work until asked to end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_end)
        self._forget_installed_bundles()
        logger.info("the executor takes tasks")
        try:
            while not self._is_asked_to_end:
                self._look_after_apps()
                if not any(app.ending for app in self._apps):
                    self._take_task()
                time.sleep(POLL_SECONDS)
        finally:
            self._end_all("the executor ends")

    def _take_task(self) -> None:
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType

        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.ConnectError:
            self._end_all("the SuperNode is gone, and nobody waits for the answer")
            return
        except httpx.TransportError as error:
            logger.warning("the SuperNode did not answer: %s", error)
            return
        if answer.HasField("task") and answer.token:
            self._make_room_for(answer.task.fab_hash)
            self._start(answer.token, answer.task.run_id)

    def _make_room_for(self, bundle: str) -> None:
        """Flower knows what it installed by 8 digits of the hash, of which two bundles can be made alike."""
        if bundle != self._installed:
            self._forget_installed_bundles()
            self._installed = bundle

    def _start(self, token: str, run: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process == 0:
            run_app(self._address, token)
        self._apps.append(RunningApp(process=process, token=token, run=run, started=time.monotonic()))

    def _look_after_apps(self) -> None:
        now = time.monotonic()
        for app in list(self._apps):
            ended, status = os.waitpid(app.process, os.WNOHANG)
            if ended:
                self._apps.remove(app)
                self._bury(app, os.waitstatus_to_exitcode(status))
            elif app.ending is None and now - app.started > self._limit:
                logger.error("an app of run %s took longer than %g s; ending it", app.run, self._limit)
                self._report(app, RefusalCode.TIME_LIMIT.label)
                app.ending = now
                _signal_group(app.process, signal.SIGTERM)
            elif app.ending is not None and now - app.ending > TERMINATE_SECONDS:
                _signal_group(app.process, signal.SIGKILL)

    def _bury(self, app: RunningApp, code: int) -> None:
        _signal_group(app.process, signal.SIGKILL)  # what it started and left
        self._end_orphans()
        seconds = time.monotonic() - app.started
        if code == ANSWERED and app.ending is None:
            logger.info("an app of run %s ended after %.1f s", app.run, seconds)
            return
        reason = CRASHED if app.ending is None else RefusalCode.TIME_LIMIT.label
        is_refusal = app.ending is not None or self._report(app, CRASHED)
        logger.error("an app of run %s ended after %.1f s, code %s: %s", app.run, seconds, code, reason)
        self._forget_installed_bundles()
        if is_refusal:
            self._journal.append(REFUSAL, run=str(app.run), reason=reason, code=code)

    def _report(self, app: RunningApp, details: str) -> bool:
        """Tell the SuperNode that a task failed; whether it took that, which it does not of a task that is over."""
        from flwr.common.constant import SubStatus
        from flwr.proto.runtime_pb2 import PushTaskOutputRequest
        from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor

        client = self._open(
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), RuntimeTokenHttpInterceptor(app.token)
        )
        try:
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=details))
        except httpx.HTTPError as error:
            logger.warning("the SuperNode did not take that an app ended: %s", error)
            return False
        else:
            return True
        finally:
            client.close()

    def _end_all(self, reason: str) -> None:
        for app in self._apps:
            logger.error("an app of run %s is ended: %s", app.run, reason)
            _signal_group(app.process, signal.SIGTERM)
        deadline = time.monotonic() + TERMINATE_SECONDS
        for app in self._apps:
            while (
                time.monotonic() < deadline
                and os.waitid(os.P_PID, app.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            ):
                time.sleep(0.05)
            _signal_group(app.process, signal.SIGKILL)
            os.waitpid(app.process, 0)
        self._apps.clear()
        self._end_orphans()

    def _end_orphans(self) -> None:
        """End what apps left in process groups of its own, once none runs; what such a process leaves comes next."""
        while not self._apps and (orphans := children()):
            for orphan in orphans:
                os.kill(orphan, signal.SIGKILL)
                os.waitpid(orphan, 0)

    def _forget_installed_bundles(self) -> None:
        """Flower does not check what is installed already, and an app that was killed may have left half of it."""
        shutil.rmtree(self._folder.flower_home / "apps", ignore_errors=True)

    def _open(self, *interceptors: "ProtobufClientInterceptor") -> "RuntimeHttpClient":
        from flwr.supercore.runtime import RuntimeHttpClient

        return RuntimeHttpClient.from_server_address(
            server_address=self._address, insecure=True, root_certificates=None, interceptors=interceptors
        )

    def _ask_to_end(self, _number: int, _frame: FrameType | None) -> None:
        self._is_asked_to_end = True


def _signal_group(process: int, number: signal.Signals) -> None:
    try:
        os.killpg(process, number)
    except ProcessLookupError:
        return


def main(site_file: Path) -> None:
    """Run the executor until it is asked to end."""
    os.umask(0o077)
    os.environ.update({**QUIET_FLOWER, "FLWR_HOME": str(NodeFolder.of(site_file).flower_home)})
    warm_up()
    adopt_orphans()
    Executor(site_file).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
