"""A reply that was made is kept to the bit, for each run the last one, and a torn write never replaces it."""

import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest

from fl_client.outbox import Outbox
from fl_contract.array_record import Arrays
from fl_contract.messages import PrivacySpent, TrainReply

SPENT = PrivacySpent(epsilon=0.1 + 0.2, delta=1e-3, steps=4)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path)


def reply_of(number: float = 1.0, arrays: Arrays | None = None) -> TrainReply:
    kept = {"w": np.array([number], dtype=np.float32)} if arrays is None else arrays
    return TrainReply(site="hospital-1", arrays=kept, num_examples=80, spent=SPENT)


def kept_number(outbox: Outbox, run: str) -> tuple[int, float]:
    last = outbox.last(run)
    assert last is not None
    server_round, reply = last
    return server_round, float(reply.arrays["w"][0])


def test_a_reply_comes_back_to_the_bit_and_in_its_order(outbox: Outbox) -> None:
    arrays: Arrays = {
        "weight": np.array([[0.1, -0.0], [np.nan, np.float32(1e-45)]], dtype=np.float32),
        "bias": np.array([1 / 3, np.inf], dtype=np.float64),
        "num_batches_tracked": np.array(2**62 + 1, dtype=np.int64),
        "a": np.zeros((0, 3), dtype=np.float16),
        "mask": np.array([True, False]),
    }

    outbox.put("run-1", 3, reply_of(arrays=arrays), SPENT)

    last = outbox.last("run-1")
    assert last is not None
    server_round, reply = last
    assert (server_round, reply.site, reply.num_examples, reply.spent) == (3, "hospital-1", 80, SPENT)
    assert list(reply.arrays) == list(arrays)
    for name, array in arrays.items():
        found = reply.arrays[name]
        assert (found.shape, found.dtype, found.tobytes()) == (array.shape, array.dtype, array.tobytes())


def test_a_transposed_array_comes_back_with_its_values_in_place(outbox: Outbox) -> None:
    outbox.put("run-1", 1, reply_of(arrays={"w": np.arange(6.0).reshape(2, 3).T}), SPENT)

    last = outbox.last("run-1")
    assert last is not None
    assert last[1].arrays["w"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_an_unknown_run_has_no_reply(outbox: Outbox) -> None:
    outbox.put("run-1", 1, reply_of(), SPENT)

    assert outbox.last("run-2") is None


def test_the_next_round_replaces_the_last(outbox: Outbox) -> None:
    outbox.put("run-1", 1, reply_of(1.0), SPENT)
    outbox.put("run-1", 2, reply_of(2.0), SPENT)

    assert kept_number(outbox, "run-1") == (2, 2.0)


def test_runs_do_not_mix(outbox: Outbox) -> None:
    outbox.put("run-1", 1, reply_of(1.0), SPENT)
    outbox.put("../run-2", 7, reply_of(2.0), SPENT)

    assert kept_number(outbox, "run-1") == (1, 1.0)
    assert kept_number(outbox, "../run-2") == (7, 2.0)


def test_a_runs_name_chooses_no_path(outbox: Outbox, tmp_path: Path) -> None:
    outbox.put("../../elsewhere", 1, reply_of(), SPENT)

    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {tmp_path / "outbox"}


def test_a_crash_in_the_middle_of_a_write_leaves_the_last_reply(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outbox.put("run-1", 1, reply_of(1.0), SPENT)

    def crash(descriptor: int) -> None:
        os.ftruncate(descriptor, 20)
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", crash)
        with pytest.raises(OSError, match="no space left"):
            outbox.put("run-1", 2, reply_of(2.0), SPENT)

    assert [path.stat().st_size for path in tmp_path.rglob("*.partial")] == [20]
    assert kept_number(outbox, "run-1") == (1, 1.0)
    outbox.put("run-1", 2, reply_of(3.0), SPENT)
    assert kept_number(outbox, "run-1") == (2, 3.0)


def test_a_reply_is_replaced_in_one_step_and_never_overwritten(outbox: Outbox, tmp_path: Path) -> None:
    outbox.put("run-1", 1, reply_of(1.0), SPENT)
    (path,) = tmp_path.rglob("*.safetensors")
    before = path.read_bytes()

    with path.open("rb") as file:
        outbox.put("run-1", 2, reply_of(2.0), SPENT)
        read_meanwhile = file.read()

    assert read_meanwhile == before


def test_a_reply_and_its_name_are_on_disk_when_put_returns(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flushed = []
    flush = os.fsync

    def watch(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        flushed.append((kind, any(tmp_path.rglob("*.safetensors"))))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", watch)

    outbox.put("run-1", 1, reply_of(), SPENT)

    # The file before it has its name, the folder after.
    assert flushed == [("file", False), ("folder", True)]


def test_a_locked_run_keeps_others_out_and_other_runs_go_on(tmp_path: Path) -> None:
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with Outbox(tmp_path).locked("run-2"):
            order.append("other run")
        entered.set()
        with Outbox(tmp_path).locked("run-1"):
            order.append("second")

    with Outbox(tmp_path).locked("run-1"):
        thread = threading.Thread(target=second)
        thread.start()
        assert entered.wait(timeout=10)
        thread.join(timeout=0.05)
        order.append("first")
    thread.join(timeout=10)

    assert order == ["other run", "first", "second"]


def test_a_holder_that_fails_lets_go_of_the_lock(outbox: Outbox) -> None:
    with pytest.raises(RuntimeError), outbox.locked("run-1"):
        raise RuntimeError

    with outbox.locked("run-1"):
        assert outbox.last("run-1") is None
