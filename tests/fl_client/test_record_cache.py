"""Records are read once as long as their files stay as they are, and a file that changes is always noticed."""

import os
from pathlib import Path

import numpy as np
import pytest

from fl_client.data.records import Records, SiteRecords
from fl_client.record_cache import RecordCache, num_bytes, stamp_of


def records_of(size: int = 10) -> SiteRecords:
    """About ``16 * size`` bytes of features."""
    fold = Records(features=np.ones((size, 1)), feature_names=("x",), labels=np.full(size, ""))
    return SiteRecords(train=fold, test=fold.take(np.arange(size)))


class Reader:
    """Counts how often it is asked."""

    def __init__(self, size: int = 10) -> None:
        self.times, self._size = 0, size

    def __call__(self) -> SiteRecords:
        self.times += 1
        return records_of(self._size)


def test_records_are_read_once_while_the_stamp_is_the_same() -> None:
    cache, read = RecordCache(), Reader()

    first, second = (cache.get("a", lambda: 1, read) for _ in range(2))

    assert first is second
    assert read.times == 1


@pytest.mark.parametrize(("place", "stamp"), [("a", 2), ("b", 1)])
def test_another_stamp_or_place_is_read(place: str, stamp: int) -> None:
    cache, read = RecordCache(), Reader()
    cache.get("a", lambda: 1, read)

    cache.get(place, lambda: stamp, read)

    assert read.times == 2


def test_what_has_no_stamp_is_read_each_time() -> None:
    cache, read = RecordCache(), Reader()

    for _ in range(2):
        cache.get("a", lambda: None, read)

    assert read.times == 2


def test_records_whose_file_changed_while_they_were_read_are_not_kept() -> None:
    cache, read, stamps = RecordCache(), Reader(), iter([1, 2, 2, 2])

    for _ in range(2):
        cache.get("a", lambda: next(stamps), read)

    assert read.times == 2
    assert cache.get("a", lambda: 2, read) is not None
    assert read.times == 2


def test_kept_records_cannot_be_written_to() -> None:
    cache = RecordCache()
    kept = cache.get("a", lambda: 1, records_of)

    with pytest.raises(ValueError, match="read-only"):
        kept.train.features[0] = 7.0


def test_those_not_asked_for_longest_go_first_and_all_fit_the_limit() -> None:
    size = num_bytes(records_of())
    cache, reads = RecordCache(max_bytes=2 * size), {name: Reader() for name in "abc"}

    for name in "abacab":  # a, b; a again; c takes the room of b; a; b again
        cache.get(name, lambda: 1, reads[name])

    assert {name: read.times for name, read in reads.items()} == {"a": 1, "b": 2, "c": 1}


def test_records_beyond_the_limit_are_not_kept() -> None:
    cache, large, small = RecordCache(max_bytes=num_bytes(records_of())), Reader(11), Reader(10)

    for read in (small, large, large, small):
        cache.get("large" if read is large else "small", lambda: 1, read)

    assert (large.times, small.times) == (2, 1)


def test_a_stamp_changes_with_content_time_and_the_list_of_files(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for path in (first, second):
        path.write_text("abc")
    stamps = [stamp_of([first, second]), stamp_of([first])]
    first.write_text("abcd")
    stamps.append(stamp_of([first, second]))
    os.utime(second, ns=(1, 1))
    stamps.append(stamp_of([first, second]))
    second.unlink()
    second.write_text("abc")
    os.utime(second, ns=(1, 1))

    assert None not in stamps
    assert len(set(stamps)) == 4
    assert stamp_of([first, tmp_path / "3"]) is None
