"""An identity for messages; Flower makes none without it."""

from collections.abc import Iterator

import pytest
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture(scope="module", autouse=True)
def task_identity() -> Iterator[None]:
    """Whose messages these are."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield
