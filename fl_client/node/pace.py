"""How often a node asks: the only place that sets pauses of Flower's SuperNode to others."""

import time
from collections.abc import Callable

FLOWERS_PAUSE, FLOWERS_LOOK = 3, 0.5
"""Seconds that Flower waits between two questions for a request, and between two looks for an app's reply."""
LOOK_SECONDS = 0.1
BUSY_SECONDS, IDLE_SECONDS = 1.0, 5.0
"""Between two questions: while requests come, and while none has come for `BUSY_FOR`."""
BUSY_FOR = 60.0


class Pace:
    """Asks often while a run goes on, and seldom while none does: each question costs the coordinator some CPU.

    Args:
        clock: Seconds, never set back.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._busy_until = clock()

    def note_request(self) -> None:
        """A request came."""
        self._busy_until = self._clock() + BUSY_FOR

    def sleep(self, seconds: float) -> None:
        """Wait where Flower would wait for so many seconds."""
        if seconds == FLOWERS_PAUSE:
            seconds = BUSY_SECONDS if self._clock() < self._busy_until else IDLE_SECONDS
        elif seconds == FLOWERS_LOOK:
            seconds = LOOK_SECONDS
        self._sleep(seconds)
