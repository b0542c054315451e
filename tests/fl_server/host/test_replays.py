"""A hospital's signed request is new once, for as long as Flower would take it again."""

import pytest

from fl_server.host.replays import FRESH_SECONDS, Replays


@pytest.mark.parametrize(
    ("after", "is_new"),
    [(0.0, False), (FRESH_SECONDS - 1, False), (FRESH_SECONDS + 1, False), (2 * FRESH_SECONDS + 2, True)],
)
def test_a_signature_is_remembered_at_least_as_long_as_it_is_fresh(after: float, is_new: bool) -> None:
    seconds = [0.0]
    replays = Replays(lambda: seconds[0])
    replays.is_new(b"one")

    seconds[0] = after / 2
    replays.is_new(b"in between")
    seconds[0] = after

    assert replays.is_new(b"one") is is_new


def test_what_is_forgotten_is_new_again() -> None:
    replays = Replays()
    replays.is_new(b"one")

    replays.forget(b"one")

    assert replays.is_new(b"one")
