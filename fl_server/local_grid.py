"""The local engine: Flower's ``Grid`` in one process, which calls the hospital's real app in a worker thread.

It reaches the app by the reference in pyproject.toml, as Flower does, never by import.
"""

import queue
import threading
import tomllib
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fl_contract.errors import RunError
from fl_contract.study_file import Scalar
from fl_server.exchange import exchange

PROJECT = Path(__file__).resolve().parent.parent
COORDINATOR_NODE = 1
FIRST_NODE = 1000
NODE_UNAVAILABLE = 5
"""Flower's code for a node that cannot be reached."""
WORKER = "local-grid"
"""Name of the thread that runs the hospitals' app."""
CLOSE_SECONDS = 2.0


def load_client_app(project: Path = PROJECT) -> ClientApp:
    """The hospital's app that the project's pyproject.toml names.

    Raises:
        RunError: The file or the reference is not there.
    """
    path = project / "pyproject.toml"
    if not path.exists():
        raise RunError(f"{path} is not there; Consilium runs from a checkout of its repository, after make setup")
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
        - A request is given up when a later `pull_messages` no longer names it; its reply is then dropped.
        - A request for a node that is not there is answered with an error.

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
        self._awaited: set[str] = set()
        self._given_up: set[str] = set()
        self._arrived = threading.Condition()
        self._worker = threading.Thread(target=self._work, name=WORKER, daemon=True)
        self._worker.start()

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
            self._give_up(self._awaited.difference(wanted))
            self._arrived.wait_for(lambda: any(identity in self._replies for identity in wanted), timeout=0.05)
            replies = [self._replies.pop(identity) for identity in wanted if identity in self._replies]
            self._awaited = set(wanted) - {reply.metadata.reply_to_message_id for reply in replies}
            return replies

    def _give_up(self, identities: Iterable[str]) -> None:
        for identity in identities:
            if self._replies.pop(identity, None) is None:
                self._given_up.add(identity)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Is what `fl_server.exchange.exchange` does for every grid."""
        return [reply for _, reply in exchange(self, list(messages), timeout_seconds=timeout or float("inf"))]

    def close(self) -> None:
        """Drop what is queued and end the worker; one that a request keeps busy is left behind after a short wait."""
        with suppress(queue.Empty):
            while True:
                self._requests.get_nowait()
        self._requests.put(None)
        self._worker.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while (message := self._requests.get()) is not None:
            context = self._contexts.get(message.metadata.dst_node_id)
            reply = _answer(self._app, message, context) if context else _no_such_node(message)
            with self._arrived:
                if message.metadata.message_id in self._given_up:
                    self._given_up.remove(message.metadata.message_id)
                else:
                    self._replies[message.metadata.message_id] = reply
                self._arrived.notify_all()


def _no_such_node(message: Message) -> Message:
    reason = f"node {message.metadata.dst_node_id} is not there"
    return Message(Error(code=NODE_UNAVAILABLE, reason=reason), reply_to=message)


def _answer(app: Callable[[Message, Context], Message], message: Message, context: Context) -> Message:
    try:
        return app(message, context)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as Flower answers for an app that raises
        return Message(Error(code=2, reason=type(error).__name__), reply_to=message)
