"""The local engine is a Flower grid: real messages, the hospital's app by reference, errors as Flower answers them."""

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
