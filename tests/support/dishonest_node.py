"""A hospital that runs our app but not our node: it may answer late, twice, or in another hospital's name.

    python dishonest_node.py SITE.TOML WAY

It speaks Flower's Fleet protocol with the hospital's own key, as whoever holds that key can.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization.ssh import load_ssh_private_key
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.config import get_fused_config_from_fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from fl_client.app import app
from fl_contract.enrolment import Invitation

LATE_SECONDS = 25.0


class Connection:
    """To the coordinator, as this hospital's node."""

    def __init__(self, site_file: Path, callbacks: Any, node: int) -> None:
        self._site_file, self._callbacks, self._node = site_file, callbacks, node
        self._contexts: dict[int, Context] = {}

    def receive(self) -> Message | None:
        """The next request, whole; None if there is none."""
        _, receive, _, _, _, pull_object, _, confirm = self._callbacks
        if (received := receive()) is None:
            return None
        head, tree = received
        run = head.metadata.run_id
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, self._node, 1
        message = pull_and_inflate_object_from_tree(
            tree,
            lambda identity: pull_object(run, identity),
            lambda identity: confirm(run, identity),
            return_type=Message,
        )
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def answer(self, message: Message) -> Message:
        """What our app says to a request."""
        run = message.metadata.run_id
        if run not in self._contexts:
            _, _, _, get_run, get_fab, _, _, _ = self._callbacks
            details = get_run(run)
            settings = get_fused_config_from_fab(get_fab(details.fab_hash, run).content, details)
            self._contexts[run] = Context(run, self._node, {"site-file": str(self._site_file)}, RecordDict(), settings)
        return app(message, self._contexts[run])

    def send(self, reply: Message) -> None:
        """Send a reply, whole."""
        _, _, send, _, _, _, push_object, _ = self._callbacks
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            wanted, session = send(reply, get_object_tree(reply), 0.0)
            for identity, each in get_all_nested_objects(reply).items():
                if identity in wanted:
                    push_object(reply.metadata.run_id, session, identity, each.deflate())


def late(connection: Connection, message: Message) -> None:
    """Train replies come when the round is over."""
    reply = connection.answer(message)
    if message.metadata.message_type == "train":
        time.sleep(LATE_SECONDS)
    connection.send(reply)


def twice(connection: Connection, message: Message) -> None:
    """Every reply is sent a second time."""
    reply = connection.answer(message)
    connection.send(reply)
    connection.send(reply)


def as_another(connection: Connection, message: Message) -> None:
    """Train replies say that they are cleveland's."""
    reply = connection.answer(message)
    if message.metadata.message_type == "train" and reply.has_content():
        cast(ConfigRecord, reply.content["config"])["site"] = "cleveland"
    connection.send(reply)


WAYS: dict[str, Callable[[Connection, Message], None]] = {"late": late, "twice": twice, "as-another": as_another}


def main(site_file: Path, way: str) -> None:
    """Answer until the process is ended."""
    node = site_file.parent / "node"
    invitation = Invitation.read(node / "invitation.json")
    key = load_ssh_private_key((node / "node.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    authority = (node / "ca.crt").read_bytes()
    with http_request_response(invitation.address, False, authority, (key, key.public_key())) as callbacks:
        connection = Connection(site_file, callbacks, callbacks[0])
        sys.stdout.write("connected\n")
        sys.stdout.flush()
        while True:
            if (message := connection.receive()) is None:
                time.sleep(0.2)
                continue
            try:
                WAYS[way](connection, message)
            except Exception as error:  # noqa: BLE001  # the coordinator may refuse a second reply: the node goes on
                sys.stdout.write(f"refused: {type(error).__name__}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
