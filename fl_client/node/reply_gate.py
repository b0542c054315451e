"""What a node answers: the only place that lets an app's reply out, and that answers where an app gave none."""

import logging
import time
from collections.abc import Callable
from typing import Any

from flwr.app import Error, Message
from flwr.common.constant import Status
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import ObjectStore
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from flwr.supernode.start_client_internal import FAB_VERIFICATION_ERROR, _insert_message

from fl_client.journal import REFUSAL, Journal
from fl_contract.errors import RefusalCode

POLL_SECONDS = 0.1
_UNFINISHED = (Status.PENDING, Status.STARTING, Status.RUNNING)
_OWN = {(int(code), code.sentence) for code in RefusalCode} | {
    (FAB_VERIFICATION_ERROR.code, FAB_VERIFICATION_ERROR.reason)
}

logger = logging.getLogger("flwr")


class ReplyGate:
    """Stands where Flower's SuperNode waits for an app's reply and sends it.

    Guarantees:
        - An error leaves as a `RefusalCode` and its sentence, or as Flower's for a bundle that was not approved. The
          text of any other stays in the hospital's log.
        - A request is answered also when its app ended without an answer, or in the middle of one.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def push_messages(self, push: Callable[..., None]) -> Callable[..., None]:
        """Flower's own sending, once there is a reply that may leave and is whole."""

        def push_checked(*, state: InMemoryNodeState, object_store: ObjectStore, **functions: Any) -> None:
            while not self._is_ready(state, object_store):
                time.sleep(POLL_SECONDS)
            push(state=state, object_store=object_store, **functions)

        return push_checked

    def _is_ready(self, state: InMemoryNodeState, store: ObjectStore) -> bool:
        # Asked before the messages: an app hands over all of its reply before its task ends. Ends silent tasks too.
        is_over = not state.get_tasks(statuses=_UNFINISHED)
        with state.lock_msg_store:
            messages = [entry.message for entry in state.msg_store.values()]
        replies = {message.metadata.reply_to_message_id: message for message in messages if _is_reply(message)}
        requests = [message for message in messages if not _is_reply(message)]
        for request in requests:
            reply = replies.get(request.metadata.message_id)
            if reply is not None and reply.has_error():
                self._check_error(state, store, request, reply)
            elif reply is None or not _is_whole(store, reply):
                if not is_over:
                    return False
                self._answer(state, store, request, reply, _code_of_task(state, request))
        return bool(replies or requests)

    def _check_error(self, state: InMemoryNodeState, store: ObjectStore, request: Message, reply: Message) -> None:
        error = reply.error
        if (error.code, error.reason) in _OWN:
            return
        logger.error("an error stays here; code %s: %s", error.code, error.reason)
        self._answer(state, store, request, reply, _code_of_task(state, request))

    def _answer(
        self,
        state: InMemoryNodeState,
        store: ObjectStore,
        request: Message,
        reply: Message | None,
        code: RefusalCode,
    ) -> None:
        """Put a refusal in place of a reply, or of none."""
        metadata = request.metadata
        logger.error("request %s of run %s is answered with %s", metadata.message_id, metadata.run_id, code.label)
        if reply is not None:
            state.delete_messages(message_ids=[reply.metadata.message_id])
            store.delete(reply.metadata.message_id)
        store.delete(metadata.message_id)  # which the app does, if it lives until then
        _insert_message(Message(Error(code=int(code), reason=code.sentence), reply_to=request), state, store)
        try:
            self._journal.append(REFUSAL, run=str(metadata.run_id), reason=code.label)
        except Exception:
            logger.exception("a refusal left that the journal does not hold")


def _is_reply(message: Message) -> bool:
    return bool(message.metadata.reply_to_message_id)


def _is_whole(store: ObjectStore, reply: Message) -> bool:
    tree = store.get_object_tree(reply.metadata.message_id)
    return all(store.get(node.object_id) for node in iterate_object_tree(tree))


def _code_of_task(state: InMemoryNodeState, request: Message) -> RefusalCode:
    """TIME_LIMIT if the executor ended the app for it."""
    tasks = state.get_tasks(run_ids=[request.metadata.run_id], order_by="pending_at", ascending=False, limit=1)
    is_late = bool(tasks) and tasks[0].status.details == RefusalCode.TIME_LIMIT.label
    return RefusalCode.TIME_LIMIT if is_late else RefusalCode.INTERNAL
