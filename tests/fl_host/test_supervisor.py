"""Processes are kept, restarted where that helps, and never left behind; their output becomes JSON lines."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from fl_host import supervisor
from fl_host.supervisor import Child, _Pause, supervise


def child(folder: Path, code: str, *, name: str = "child", restarts: bool = False) -> Child:
    return Child(
        name=name,
        command=(sys.executable, "-c", code),
        environment={"PYTHONUNBUFFERED": "1"},
        folder=folder,
        restarts=restarts,
    )


def messages(folder: Path, process: str = "child") -> list[str]:
    return [json.loads(line)["message"] for line in (folder / f"{process}.jsonl").read_text().splitlines()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 5  # the system may still be at it when a process group was killed
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)
    return path.read_text()


def signal_when(path: Path, number: signal.Signals) -> None:
    def act() -> None:
        wait_for(path)
        os.kill(os.getpid(), number)

    threading.Thread(target=act, daemon=True).start()


@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(7)", 7), ("pass", 1)])
def test_the_end_of_a_child_that_does_not_restart_is_the_end_with_its_code(
    tmp_path: Path, code: str, expected: int
) -> None:
    assert supervise([child(tmp_path, code)], tmp_path) == expected


def test_a_child_that_a_signal_ended_gives_128_and_its_number(tmp_path: Path) -> None:
    code = "import os; os.kill(os.getpid(), 9)"

    assert supervise([child(tmp_path, code)], tmp_path) == 128 + 9


def test_each_printed_line_is_a_line_of_the_childs_log_and_its_environment_is_whole(tmp_path: Path) -> None:
    code = "import os, sys; print('out'); print('err', file=sys.stderr); print('HOME' in os.environ, os.getcwd())"

    supervise([child(tmp_path, code)], tmp_path)

    assert messages(tmp_path) == ["out", "err", f"False {tmp_path.resolve()}"]


def test_what_a_child_writes_is_its_owners_alone(tmp_path: Path) -> None:
    supervise([child(tmp_path, "open('written', 'w').close()")], tmp_path)

    assert (tmp_path / "written").stat().st_mode & 0o777 == 0o600


def test_colours_for_terminals_stay_out_of_the_log(tmp_path: Path) -> None:
    supervise([child(tmp_path, "print('\\x1b[92mINFO\\x1b[0m: here')")], tmp_path)

    assert messages(tmp_path) == ["INFO: here"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_all_children_and_gives_0(tmp_path: Path, number: signal.Signals) -> None:
    code = "import os, time, pathlib; pathlib.Path('pid').write_text(f'{os.getpid()}\\n'); time.sleep(60)"
    signal_when(tmp_path / "pid", number)

    result = supervise([child(tmp_path, code)], tmp_path)

    assert result == 0
    assert not is_running(int((tmp_path / "pid").read_text()))
    assert signal.getsignal(number) is not None


@pytest.mark.slow
def test_a_child_that_ignores_the_signal_is_killed_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "TERMINATE_SECONDS", 0.5)
    code = (
        "import os, signal, subprocess, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path('pids').write_text(f'{os.getpid()} {inner.pid}\\n')\n"
        "time.sleep(60)\n"
    )
    signal_when(tmp_path / "pids", signal.SIGTERM)

    result = supervise([child(tmp_path, code)], tmp_path)

    assert result == 0
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        wait_for_end(pid)


def test_the_other_children_end_with_the_one_that_ended(tmp_path: Path) -> None:
    steady = "import os, time, pathlib; pathlib.Path('pid').write_text(f'{os.getpid()}\\n'); time.sleep(60)"
    brief = "import time, pathlib\nwhile not pathlib.Path('pid').exists(): time.sleep(0.02)\nraise SystemExit(3)"

    result = supervise([child(tmp_path, steady, name="a", restarts=True), child(tmp_path, brief, name="b")], tmp_path)

    assert result == 3
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_a_child_that_restarts_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.0)
    code = (
        "import pathlib, sys\n"
        "before = pathlib.Path('count').read_text() if pathlib.Path('count').exists() else ''\n"
        "pathlib.Path('count').write_text(before + 'x')\n"
        "if len(before) == 2: pathlib.Path('done').write_text('\\n')\n"
    )
    again = child(tmp_path, code, restarts=True)
    signal_when(tmp_path / "done", signal.SIGTERM)

    result = supervise([again], tmp_path)

    assert result == 0
    assert (tmp_path / "count").read_text().startswith("xxx")
    assert "child ended; starting it again" in messages(tmp_path, "supervisor")


def test_the_pause_doubles_up_to_a_minute_and_begins_anew_after_a_long_life() -> None:
    pause = _Pause()

    pauses = [pause.next_after(0.1) for _ in range(8)]

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [pause.next_after(300), pause.next_after(0.1)] == [1, 2]


def test_what_the_ready_task_raises_ends_all_and_is_raised(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("not ready")

    with pytest.raises(RuntimeError, match="not ready"):
        supervise([child(tmp_path, "import time; time.sleep(60)")], tmp_path, on_ready=fail)

    assert messages(tmp_path, "supervisor")[-1] == "all ended"


def test_a_program_that_is_not_there_is_an_error_and_nothing_stays(tmp_path: Path) -> None:
    missing = Child(name="b", command=("/no/such/program",), environment={}, folder=tmp_path, restarts=True)

    with pytest.raises(FileNotFoundError):
        supervise([child(tmp_path, "import time; time.sleep(60)", name="a"), missing], tmp_path)

    assert messages(tmp_path, "supervisor")[-1] == "all ended"
