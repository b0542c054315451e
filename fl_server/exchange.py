"""The only place where the coordinator waits: requests go out, replies are handed on as they come, up to a deadline."""

import time
from collections.abc import Callable, Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

SHORTEST_WAIT_SECONDS = 0.001
LONGEST_WAIT_SECONDS = 1.0


def exchange(
    grid: Grid,
    requests: Sequence[Message],
    *,
    timeout_seconds: float,
    earlier: Sequence[str] = (),
    is_enough: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[int, Message]]:
    """Send requests and hand on each reply as it arrives.

    Flower's own ``send_and_receive`` waits 3 s between looks and returns all replies at the end; this looks after 1 ms
    and ever more seldom while nothing comes.

    Args:
        grid: Carries the messages.
        requests: What to send.
        timeout_seconds: After which the replies that are missing are given up.
        earlier: Ids of requests that were sent before and may still be answered; they are waited for no longer than
            the others, unless it is not enough.
        is_enough: Asked once nothing but earlier requests is open.

    Yields:
        The position of the request in ``requests``, and its reply; each at most once, none that Flower could not send.
        Positions of ``earlier`` follow those of ``requests``.
    """
    deadline = time.monotonic() + timeout_seconds
    waiting = {}
    for position, request in enumerate(requests):
        for identity in grid.push_messages([request]):
            waiting[identity] = position
    late = {identity: len(requests) + position for position, identity in enumerate(earlier)}
    wait = SHORTEST_WAIT_SECONDS
    while waiting or (late and not is_enough()):
        replies = list(grid.pull_messages([*waiting, *late]))
        for reply in replies:
            identity = reply.metadata.reply_to_message_id
            for open_requests in (waiting, late):
                if identity in open_requests:
                    yield open_requests.pop(identity), reply
        wait = SHORTEST_WAIT_SECONDS if replies else min(2 * wait, LONGEST_WAIT_SECONDS)
        left = deadline - time.monotonic()
        if left <= 0:
            return
        if not replies:
            time.sleep(min(wait, left))
