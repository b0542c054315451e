"""A supervisor that is killed leaves processes; the next one on its folder ends them, and nobody else's."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fl_contract.errors import RunError
from fl_host.leftovers import FILE, hold_groups

SUPERVISOR = """
import sys
from pathlib import Path
from fl_host.supervisor import Child, supervise
folder = Path(sys.argv[1])
code = (
    "import os, subprocess, sys, time, pathlib\\n"
    "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\\n"
    "pathlib.Path('pids').write_text(f'{os.getpid()} {inner.pid}\\\\n')\\n"
    "time.sleep(300)\\n"
)
child = Child(name="child", command=(sys.executable, "-c", code), environment={}, folder=folder, restarts=True)
sys.exit(supervise([child], folder / "logs"))
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def pids(folder: Path) -> list[int]:
    text = (folder / "pids").read_text() if (folder / "pids").exists() else ""
    return [int(pid) for pid in text.split()] if text.endswith("\n") else []


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], process_group=0)
    yield process
    process.kill()
    process.wait()


@pytest.mark.chaos
def test_what_a_killed_supervisor_left_is_ended_by_the_next_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait(lambda: len(pids(tmp_path)) == 2)
    left = pids(tmp_path)
    first.kill()
    first.wait()
    assert [is_running(pid) for pid in left] == [True, True]
    (tmp_path / "pids").unlink()

    second = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait(lambda: len(pids(tmp_path)) == 2)

    assert [is_running(pid) for pid in left] == [False, False]
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0
    assert [is_running(pid) for pid in pids(tmp_path)] == [False, False]


def test_a_folder_has_one_supervisor(tmp_path: Path) -> None:
    with hold_groups(tmp_path), pytest.raises(RunError, match="is in use"), hold_groups(tmp_path):
        pass
    with hold_groups(tmp_path):
        pass


def test_a_group_that_was_kept_is_ended(tmp_path: Path, sleeper: "subprocess.Popen[bytes]") -> None:
    with hold_groups(tmp_path) as groups:
        groups.keep(sleeper.pid)

    with hold_groups(tmp_path) as groups:
        found = groups.end_leftovers()

    assert found == [sleeper.pid]
    assert sleeper.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize("changed", [{"boot": "another"}, {"started": "1"}])
def test_a_number_that_was_given_anew_is_left_alone(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]", changed: dict[str, str]
) -> None:
    with hold_groups(tmp_path) as groups:
        groups.keep(sleeper.pid)
    kept = json.loads((tmp_path / FILE).read_text())
    kept["groups"][str(sleeper.pid)] |= changed
    (tmp_path / FILE).write_text(json.dumps(kept))

    with hold_groups(tmp_path) as groups:
        assert groups.end_leftovers() == []

    assert sleeper.poll() is None


def test_a_damaged_file_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")

    with hold_groups(tmp_path) as groups:
        assert groups.end_leftovers() == []

    assert json.loads((tmp_path / FILE).read_text())["groups"] == {}


def test_a_copy_of_a_folder_ends_nothing_of_the_original(tmp_path: Path, sleeper: "subprocess.Popen[bytes]") -> None:
    """As when a backup is put beside a node that runs."""
    with hold_groups(tmp_path) as groups:
        groups.keep(sleeper.pid)
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / FILE, tmp_path / "copy" / FILE)

    with hold_groups(tmp_path / "copy") as groups:
        assert groups.end_leftovers() == []

    assert sleeper.poll() is None
