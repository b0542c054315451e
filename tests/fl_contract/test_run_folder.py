"""A simulated run's files lie where its settings say, or below ``runs`` by the number of Flower's run."""

from pathlib import Path

import pytest

from fl_contract.run_folder import run_folder
from fl_contract.study_file import Scalar


@pytest.mark.parametrize(
    ("run_config", "expected"),
    [({}, "runs/flower-7"), ({"out": ""}, "runs/flower-7"), ({"out": "somewhere/else"}, "somewhere/else")],
)
def test_a_run_has_one_folder(run_config: dict[str, Scalar], expected: str) -> None:
    assert run_folder(run_config, 7) == Path(expected)
