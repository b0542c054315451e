"""Only our own sentences leave a node, and every request gets one, however its app ended."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.object_store.object_store import ObjectStore
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from flwr.supernode.start_client_internal import FAB_VERIFICATION_ERROR, _insert_message

from fl_client.journal import Journal
from fl_client.node.reply_gate import ReplyGate
from fl_contract.errors import RefusalCode
from fl_contract.messages import TRAIN

RUN = 7
SECRET = "patient 4711, /srv/records/4711.csv"


class Node:
    """A node's state with one request, whose app is at work."""

    def __init__(self, request: Message, folder: Path) -> None:
        factory = ObjectStoreFactory()
        self.store: ObjectStore = factory.store()
        self.state = InMemoryNodeState(self.store)
        self.journal = Journal(folder)
        self.request = request
        request.metadata.__dict__["_run_id"] = RUN
        _insert_message(request, self.state, self.store)
        task = self.state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash="")
        assert task is not None
        self.task = task

    def end_app(self, details: str = "", sub_status: str = SubStatus.FAILED) -> None:
        self.state.finish_task(self.task, sub_status, details)

    def send(self) -> list[Message]:
        """What Flower would send, at once."""
        sent: list[Message] = []

        def push(*, state: InMemoryNodeState, object_store: ObjectStore) -> None:
            sent.extend(state.get_messages_legacy(is_reply=True))
            for message in sent:
                for name in get_all_nested_objects(message):
                    assert object_store.get(name)

        ReplyGate(self.journal).push_messages(push)(state=self.state, object_store=self.store)
        return sent


@pytest.fixture
def node(make_request: Callable[..., Message], tmp_path: Path) -> Node:
    return Node(make_request(TRAIN), tmp_path)


def refusals(messages: list[Message]) -> list[tuple[int, str | None]]:
    return [(message.error.code, message.error.reason) for message in messages]


@pytest.mark.parametrize("code", list(RefusalCode))
def test_our_own_refusal_leaves_as_it_is(node: Node, code: RefusalCode) -> None:
    _insert_message(Message(Error(int(code), code.sentence), reply_to=node.request), node.state, node.store)

    assert refusals(node.send()) == [(int(code), code.sentence)]
    assert node.journal.read() == []


@pytest.mark.parametrize(
    "error",
    [
        Error(2, f"<class 'ValueError'>:<'{SECRET}'>"),
        Error(1, "An exception was raised when attempting to load `ClientApp`"),
        Error(8, "ClientApp stopped responding."),
        Error(int(RefusalCode.POLICY), SECRET),
        Error(int(RefusalCode.POLICY), RefusalCode.DISCLOSURE.sentence),
        Error(999, RefusalCode.POLICY.sentence),
    ],
    ids=["raised", "load", "crashed", "our-code", "swapped", "our-sentence"],
)
def test_any_other_error_leaves_as_internal_and_stays_in_the_log(
    node: Node, error: Error, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR", logger="flwr")
    _insert_message(Message(error, reply_to=node.request), node.state, node.store)

    sent = node.send()

    assert refusals(sent) == [(100, RefusalCode.INTERNAL.sentence)]
    assert sent[0].metadata.reply_to_message_id == node.request.metadata.message_id
    assert [entry.kind for entry in node.journal.read()] == ["refusal"]
    assert str(error.reason) in caplog.text


def test_the_refusal_of_a_bundle_leaves_as_flowers_own(node: Node) -> None:
    _insert_message(Message(FAB_VERIFICATION_ERROR, reply_to=node.request), node.state, node.store)

    assert refusals(node.send()) == [(7, FAB_VERIFICATION_ERROR.reason)]


@pytest.mark.parametrize(
    ("details", "sub_status", "code"),
    [
        ("crash", SubStatus.FAILED, RefusalCode.INTERNAL),
        (SECRET, SubStatus.FAILED, RefusalCode.INTERNAL),
        (RefusalCode.TIME_LIMIT.label, SubStatus.FAILED, RefusalCode.TIME_LIMIT),
    ],
)
def test_an_app_that_ended_without_an_answer_is_answered_for(
    node: Node, details: str, sub_status: str, code: RefusalCode
) -> None:
    node.end_app(details, sub_status)

    assert refusals(node.send()) == [(int(code), code.sentence)]


def test_an_app_that_ended_in_the_middle_of_its_answer_is_answered_for(
    node: Node, arrays_reply: Callable[[Message], Message]
) -> None:
    push_part(node, arrays_reply(node.request), share=0.5)
    node.end_app("crash")

    assert refusals(node.send()) == [(100, RefusalCode.INTERNAL.sentence)]


def test_a_whole_answer_leaves_although_the_app_ended(node: Node, arrays_reply: Callable[[Message], Message]) -> None:
    reply = arrays_reply(node.request)
    push_part(node, reply, share=1.0)
    node.end_app("crash")

    sent = node.send()

    assert [message.object_id for message in sent] == [reply.object_id]
    assert not sent[0].has_error()


def test_an_answer_on_its_way_is_waited_for(node: Node, arrays_reply: Callable[[Message], Message]) -> None:
    reply = arrays_reply(node.request)
    push_part(node, reply, share=0.5)
    sent: list[Message] = []
    sender = threading.Thread(target=lambda: sent.extend(node.send()))
    sender.start()
    time.sleep(0.25)
    waited = sender.is_alive()

    for name, each in get_all_nested_objects(reply).items():
        node.store.put(name, each.deflate())
    sender.join(5)

    assert waited
    assert [message.has_error() for message in sent] == [False]


@pytest.fixture
def arrays_reply() -> Callable[[Message], Message]:
    import numpy as np

    def make(request: Message) -> Message:
        return Message(RecordDict({"arrays": ArrayRecord([np.arange(9.0), np.ones(4)])}), reply_to=request)

    return make


def push_part(node: Node, reply: Message, *, share: float) -> None:
    """Hand over a reply as an app does: first its tree, then its objects, of which some may not come."""
    reply.metadata.__dict__["_message_id"] = reply.object_id
    session = node.state.start_session(RUN)
    node.state.store_message_and_object_tree(reply, get_object_tree(reply), session)
    objects: list[tuple[str, Any]] = list(get_all_nested_objects(reply).items())
    for name, each in objects[: int(len(objects) * share)]:
        node.store.put(name, each.deflate())
