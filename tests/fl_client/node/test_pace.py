"""A node asks every second while a run goes on and every five while none does; other pauses are Flower's."""

import inspect
from types import SimpleNamespace

import pytest
from flwr.supernode import start_client_internal

from fl_client.node.pace import BUSY_FOR, FLOWERS_LOOK, FLOWERS_PAUSE, Pace


@pytest.mark.parametrize(
    ("since_request", "asked", "waited"),
    [
        (None, FLOWERS_PAUSE, 5.0),
        (0.0, FLOWERS_PAUSE, 1.0),
        (BUSY_FOR - 0.1, FLOWERS_PAUSE, 1.0),
        (BUSY_FOR, FLOWERS_PAUSE, 5.0),
        (None, FLOWERS_LOOK, 0.1),
        (0.0, FLOWERS_LOOK, 0.1),
        (0.0, 7.0, 7.0),
    ],
)
def test_a_pause_depends_on_when_a_request_came(since_request: float | None, asked: float, waited: float) -> None:
    world = SimpleNamespace(now=1000.0, slept=[])
    pace = Pace(clock=lambda: world.now, sleep=world.slept.append)
    if since_request is not None:
        pace.note_request()
        world.now += since_request

    pace.sleep(asked)

    assert world.slept == [waited]


def test_flower_still_waits_as_long_as_we_replace() -> None:
    source = inspect.getsource(start_client_internal)

    assert f"sleep({FLOWERS_PAUSE})" in source
    assert f"sleep({FLOWERS_LOOK})" in source
