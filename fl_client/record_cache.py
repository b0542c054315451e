"""The only place that keeps patients' records in memory from one request to the next.

A file that changes is read again: its path, size and time of change are part of what records are kept by. A database
has no such mark: it is read once in a run and process, so that a run trains on the records that were agreed.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import fields
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from fl_client.data.records import Records, SiteRecords

MAX_BYTES = 1024**3
"""Most that all kept records take together; records that take more are read at each request."""

Stamp = tuple[tuple[str, int, int, int], ...]
"""Path, inode, size, and time of change in nanoseconds of each file."""


class RecordCache:
    """Records of the hospitals that this process speaks for; those that were not asked for longest go first.

    Guarantees:
        - Kept records cannot be written to.
        - They never take more than `max_bytes`.

    Args:
        max_bytes: Of all arrays together.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, tuple[Hashable, SiteRecords]] = OrderedDict()
        self._lock = Lock()

    def get(self, place: Hashable, stamp: Callable[[], Hashable], load: Callable[[], SiteRecords]) -> SiteRecords:
        """Kept records, or those that ``load`` reads.

        Args:
            place: Which records: one hospital keeps those of one place at most once.
            stamp: Differs once the records may; None where nobody can say, and nothing is kept.
            load: Reads them.
        """
        before = stamp()
        with self._lock:
            kept = self._kept.get(place)
            if kept is not None and before is not None and kept[0] == before:
                self._kept.move_to_end(place)
                return kept[1]
            self._kept.pop(place, None)  # room for what is read now
        records = load()
        if before is not None and stamp() == before:  # a file that changed meanwhile may have been read half
            self._keep(place, before, records)
        return records

    def _keep(self, place: Hashable, stamp: Hashable, records: SiteRecords) -> None:
        if num_bytes(records) > self._max_bytes:
            return
        for array in _arrays(records):
            array.flags.writeable = False
        with self._lock:
            self._kept[place] = stamp, records
            while sum(num_bytes(each) for _, each in self._kept.values()) > self._max_bytes:
                self._kept.popitem(last=False)


def stamp_of(files: Iterable[Path]) -> Stamp | None:
    """What changes when one of some files does; None if one cannot be looked at."""
    try:
        stats = [(str(path), path.stat()) for path in files]
    except OSError:
        return None
    return tuple((path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


def num_bytes(records: SiteRecords) -> int:
    """Memory of all arrays, in bytes."""
    return sum(array.nbytes for array in _arrays(records))


def _arrays(records: SiteRecords) -> list[np.ndarray[Any, Any]]:
    values = [getattr(fold, field.name) for fold in (records.train, records.test) for field in fields(Records)]
    return [value for value in values if isinstance(value, np.ndarray)]
