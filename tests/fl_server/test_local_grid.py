"""The local engine is a Flower grid: real messages, the hospital's app by reference, errors as Flower answers them."""

import threading
import time
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run

from fl_contract.errors import RunError
from fl_server.local_grid import LocalGrid, load_client_app


def test_the_hospital_s_app_is_the_one_that_the_project_names() -> None:
    from fl_client.app import app

    assert load_client_app() is app


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[tool.flwr.app.components]\n", "tool.flwr.app.components.clientapp is missing"),
        (
            '[tool.flwr.app.components]\nclientapp = "fl_server.app:app"\n',
            "is a ServerApp; expected a Flower ClientApp",
        ),
    ],
)
def test_a_wrong_reference_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)

    with pytest.raises(RunError, match=rule):
        load_client_app(tmp_path)


def test_an_app_that_raises_is_answered_without_its_text() -> None:
    def failing(message: Message, context: Context) -> Message:
        raise ValueError("patient 17")

    grid = LocalGrid(failing, [{}], run_config={})

    (reply,) = grid.send_and_receive([Message(RecordDict(), 1000, "train")], timeout=5)

    assert reply.error.code == 2
    assert reply.error.reason == "ValueError"
    grid.close()


def test_it_keeps_the_run_and_refuses_flower_s_old_way_to_make_messages() -> None:
    grid = LocalGrid(ClientApp(), [{}], run_config={})
    run = Run.create_empty(7)

    grid.set_run(run)

    assert grid.run is run
    with pytest.raises(RunError, match=r"construct flwr\.app\.Message instead"):
        grid.create_message(RecordDict(), "train", 1000, "1")
    grid.close()


def test_a_project_that_is_no_checkout_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"pyproject\.toml is not there; Consilium runs from a checkout"):
        load_client_app(tmp_path)


def _echo(message: Message, context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)


def test_a_request_for_an_unknown_node_is_answered_with_an_error_and_later_ones_are_served() -> None:
    grid = LocalGrid(_echo, [{}], run_config={})

    unknown, known = grid.send_and_receive(
        [Message(RecordDict(), 7, "train"), Message(RecordDict(), 1000, "train")], timeout=5
    )

    assert (unknown.error.code, unknown.error.reason) == (5, "node 7 is not there")
    assert not known.has_error()
    grid.close()


def test_an_app_that_exits_does_not_end_the_grid() -> None:
    def leaving(message: Message, context: Context) -> Message:
        raise SystemExit(3)

    grid = LocalGrid(leaving, [{}], run_config={})

    (reply,) = grid.send_and_receive([Message(RecordDict(), 1000, "train")], timeout=5)

    assert reply.error.reason == "SystemExit"
    grid.close()


def test_replies_that_come_after_the_deadline_are_not_kept() -> None:
    go_on = threading.Event()

    def slow(message: Message, context: Context) -> Message:
        go_on.wait(5)
        return _echo(message, context)

    grid = LocalGrid(slow, [{}], run_config={})
    late = list(grid.send_and_receive([Message(RecordDict(), 1000, "train") for _ in range(3)], timeout=0.05))
    (next_one,) = grid.push_messages([Message(RecordDict(), 1000, "train")])
    replies = list(grid.pull_messages([next_one]))  # from here on nobody asks for the first three

    go_on.set()
    while not replies:
        replies = list(grid.pull_messages([next_one]))

    assert late == []
    assert len(replies) == 1
    assert grid._replies == {}
    assert grid._given_up == set()
    grid.close()


def test_closing_drops_what_is_queued_and_does_not_wait_for_a_request_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fl_server.local_grid.CLOSE_SECONDS", 0.1)
    go_on, calls = threading.Event(), []

    def hanging(message: Message, context: Context) -> Message:
        calls.append(message)
        go_on.wait(5)
        return _echo(message, context)

    grid = LocalGrid(hanging, [{}], run_config={})
    grid.push_messages([Message(RecordDict(), 1000, "train") for _ in range(3)])
    while not calls:
        time.sleep(0.01)
    started = time.monotonic()

    grid.close()

    assert time.monotonic() - started < 2
    go_on.set()
    grid._worker.join(5)
    assert not grid._worker.is_alive()
    assert len(calls) == 1
