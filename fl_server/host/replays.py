"""The only place that remembers hospitals' signed requests, so that none is taken twice."""

import hashlib
import time
from collections.abc import Callable

FRESH_SECONDS = 315.0
"""Flower takes a signed time for fresh from 5 s before it until 305 s after it; some seconds more for its own clock."""


class Replays:
    """What hospitals signed, as long as Flower would take it again.

    A hospital signs each request anew: the time, to the microsecond. Memory is some 60
    bytes for each request of the last ten minutes.

    Args:
        clock: Seconds, never set back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._now: set[bytes] = set()
        self._before: set[bytes] = set()

    def is_new(self, signed: bytes) -> bool:
        """Whether something signed is seen for the first time, which it is not from here on.

        >>> replays = Replays()
        >>> replays.is_new(b"12:00, north"), replays.is_new(b"12:00, north")
        (True, False)
        """
        if self._clock() - self._since > FRESH_SECONDS:
            self._before, self._now, self._since = self._now, set(), self._clock()
        key = _short(signed)
        if key in self._now or key in self._before:
            return False
        self._now.add(key)
        return True

    def forget(self, signed: bytes) -> None:
        """Take back that it was seen."""
        self._now.discard(_short(signed))


def _short(signed: bytes) -> bytes:
    return hashlib.blake2b(signed, digest_size=16).digest()
