"""A request stays open until its reply is taken or it is given up, whatever else is waited for meanwhile."""

import time
from collections.abc import Iterable, Iterator

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fl_server.exchange import exchange
from fl_server.local_grid import LocalGrid
from fl_server.mailbox import Mailbox

SLOW = 1002
SECONDS = 0.3


@pytest.fixture
def grid() -> Iterator[LocalGrid]:
    """Three nodes, the last of which is slow; requests are answered one after the other."""

    def answer(message: Message, context: Context) -> Message:
        time.sleep(SECONDS if context.node_id == SLOW else 0.0)
        return Message(RecordDict({"config": ConfigRecord({"node": context.node_id})}), reply_to=message)

    local = LocalGrid(answer, [{}, {}, {}], run_config={})
    yield local
    local.close()


def request(node: int) -> Message:
    return Message(RecordDict(), node, "train")


def node_of(reply: Message | None) -> object:
    return None if reply is None else reply.content.config_records["config"]["node"]


def test_replies_come_out_once_in_the_order_in_which_they_came(grid: LocalGrid) -> None:
    mailbox = Mailbox(grid)
    for node in (1001, SLOW, 1000):
        mailbox.send(request(node))

    received = [mailbox.receive(timeout_seconds=5) for _ in range(3)]

    assert [node_of(reply) for _, reply in received] == [1001, SLOW, 1000]
    assert [sent.message.metadata.dst_node_id for sent, _ in received] == [1001, SLOW, 1000]
    assert not mailbox.has_open


def test_what_comes_while_others_are_waited_for_is_kept(grid: LocalGrid) -> None:
    mailbox = Mailbox(grid)
    mailbox.send(request(SLOW))

    others = list(exchange(mailbox, [request(1000), request(1001)], timeout_seconds=5))
    _, reply = mailbox.receive(timeout_seconds=5)

    assert [node_of(each) for _, each in others] == [1000, 1001]
    assert node_of(reply) == SLOW


def test_a_request_that_is_too_old_is_given_up_and_its_reply_never_comes(grid: LocalGrid) -> None:
    mailbox = Mailbox(grid)
    mailbox.send(request(SLOW))

    sent, reply = mailbox.receive(timeout_seconds=0.05)
    mailbox.send(request(1000))
    _, later = mailbox.receive(timeout_seconds=5)

    assert (sent.message.metadata.dst_node_id, reply) == (SLOW, None)
    assert node_of(later) == 1000
    assert not mailbox.has_open


def test_an_old_request_is_given_up_while_others_are_answered(grid: LocalGrid) -> None:
    mailbox = Mailbox(grid)
    mailbox.send(request(1000))
    mailbox.send(request(SLOW))
    mailbox.receive(timeout_seconds=0.1)
    time.sleep(0.15)

    assert mailbox.receive(timeout_seconds=0.1)[1] is None


class LostGrid(LocalGrid):
    """Sends nothing."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return []


def test_a_request_that_cannot_be_sent_is_given_up_at_once() -> None:
    grid = LostGrid(lambda message, context: message, [{}], run_config={})
    mailbox = Mailbox(grid)
    mailbox.send(request(1000))

    _, reply = mailbox.receive(timeout_seconds=60)

    assert reply is None
    assert not mailbox.has_open
    grid.close()
