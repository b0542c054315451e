"""The local engine: Flower's ``Grid`` in one process, which calls the hospital's real app in a worker thread.

It reaches the app by the reference in pyproject.toml, as Flower does, never by import.
"""

import queue
import threading
import tomllib
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fl_contract.errors import RunError
from fl_contract.study import Scalar
from fl_server.exchange import exchange

PROJECT = Path(__file__).resolve().parent.parent
COORDINATOR_NODE = 1
FIRST_NODE = 1000


def load_client_app(project: Path = PROJECT) -> ClientApp:
    """The hospital's app that the project's pyproject.toml names.

    Raises:
        RunError: The file or the reference is not there.
    """
    path = project / "pyproject.toml"
    try:
        reference = tomllib.loads(path.read_text())["tool"]["flwr"]["app"]["components"]["clientapp"]
    except (OSError, KeyError) as error:
        raise RunError(f"{path}: tool.flwr.app.components.clientapp is missing; it names the hospital's app") from error
    app = load_app(reference, RunError, project)
    if not isinstance(app, ClientApp):
        raise RunError(f"{reference!r} is a {type(app).__name__}; expected a Flower ClientApp")
    return app


class LocalGrid(Grid):
    """Nodes in this process; requests are answered one after the other, in the order they were pushed.

    Guarantees:
        - Messages and replies are the objects that Flower would carry; nothing is shared between nodes but them.
        - A request that hangs blocks later ones, never the caller: a deadline holds.

    Args:
        client_app: Answers every request.
        node_configs: One for each node, as a SuperNode is given.
        run_config: Of the run, as ``flwr run`` gives it.
        run_id: Of the run.
    """

    def __init__(
        self,
        client_app: Callable[[Message, Context], Message],
        node_configs: list[dict[str, Scalar]],
        *,
        run_config: Mapping[str, Scalar],
        run_id: int = 1,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, COORDINATOR_NODE, 1
        self._app = client_app
        self._contexts = {
            FIRST_NODE + number: Context(run_id, FIRST_NODE + number, config, RecordDict(), dict(run_config))
            for number, config in enumerate(node_configs)
        }
        self._run = Run.create_empty(run_id)
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._replies: dict[str, Message] = {}
        self._arrived = threading.Condition()
        threading.Thread(target=self._work, name="local-grid", daemon=True).start()

    @property
    def run(self) -> Run:
        """Run information."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Replace the run information."""
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> NoReturn:
        """Is deprecated in Flower; construct a ``Message`` instead."""
        raise RunError("Grid.create_message is deprecated; construct flwr.app.Message instead")

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue requests and return their ids at once."""
        identities = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            identities.append(message.metadata.message_id)
            self._requests.put(message)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that have arrived since the last call; waits up to 50 ms for the first."""
        wanted = list(message_ids)
        with self._arrived:
            self._arrived.wait_for(lambda: any(identity in self._replies for identity in wanted), timeout=0.05)
            return [self._replies.pop(identity) for identity in wanted if identity in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Is what `fl_server.exchange.exchange` does for every grid."""
        return [reply for _, reply in exchange(self, list(messages), timeout_seconds=timeout or float("inf"))]

    def close(self) -> None:
        """End the worker after the requests that are queued."""
        self._requests.put(None)

    def _work(self) -> None:
        while (message := self._requests.get()) is not None:
            reply = _answer(self._app, message, self._contexts[message.metadata.dst_node_id])
            with self._arrived:
                self._replies[message.metadata.message_id] = reply
                self._arrived.notify_all()


def _answer(app: Callable[[Message, Context], Message], message: Message, context: Context) -> Message:
    try:
        return app(message, context)
    except Exception as error:  # noqa: BLE001 - as Flower answers for an app that raises; ours guards itself
        return Message(Error(code=2, reason=type(error).__name__), reply_to=message)
