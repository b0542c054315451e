"""A request whose run ends while the request is on its way leaves nothing behind that an app would wait for."""

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Message
from flwr.common.constant import Status, SubStatus
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from flwr.supernode.start_client_internal import _pull_and_store_message

from fl_client.node.ended_runs import forgetting
from fl_contract.messages import TRAIN

RUN = 7


def over(*_: object) -> Any:
    raise RunNotRunningException


@pytest.mark.parametrize("part", ["content", "receipt"])
def test_a_request_whose_run_ended_is_forgotten_and_its_task_is_over(
    make_request: Callable[..., Message], part: str
) -> None:
    store = ObjectStoreFactory().store()
    state = InMemoryNodeState(store)
    state.set_node_id(1)
    state.store_run(Run.create_empty(RUN))
    request = make_request(TRAIN)
    request.metadata.__dict__["_run_id"] = RUN
    tree, objects = get_object_tree(request), get_all_nested_objects(request)
    contents = {name: each.deflate() for name, each in objects.items()}
    request.metadata.__dict__["_message_id"] = tree.object_id

    received = forgetting(_pull_and_store_message)(
        state=state,
        object_store=store,
        node_config={},
        receive=lambda: (request, tree),
        get_run=over,
        get_fab=over,
        pull_object=over if part == "content" else lambda _run, name: contents[name],
        confirm_message_received=over,
        trusted_entities=None,
    )

    (task,) = state.get_tasks()
    assert received is None
    assert not state.msg_store
    assert (task.status.status, task.status.sub_status) == (Status.FINISHED, SubStatus.FAILED)
    assert len(store) == 0
