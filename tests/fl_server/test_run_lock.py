"""A run's folder belongs to one process at a time, and a run whose process ended does not count as running."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fl_contract.errors import RunError
from fl_server.run_lock import hold_run, is_run_live, refuse_live_run

HOLD = "import sys, pathlib; from fl_server.run_lock import hold_run\n"
HOLD += "with hold_run(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_held_folder_is_refused_to_another_holder_and_free_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "private"

    with hold_run(folder):
        assert is_run_live(folder)
        with pytest.raises(RunError, match="private is being run by another process; wait for it or stop it"):
            refuse_live_run(folder)
        with pytest.raises(RunError, match="another process"), hold_run(folder):
            pass

    assert not is_run_live(folder)
    with hold_run(folder):
        pass


def test_looking_makes_no_file(tmp_path: Path) -> None:
    assert not is_run_live(tmp_path)
    refuse_live_run(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(RunError, match=r"file/private: cannot hold a run; Not a directory"),
        hold_run(tmp_path / "file" / "private"),
    ):
        pass


def test_a_process_that_is_killed_releases_its_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    was_live = is_run_live(tmp_path)

    holder.kill()
    holder.communicate()

    assert was_live
    assert not is_run_live(tmp_path)


def test_a_run_whose_folder_is_held_is_not_resumed(tmp_path: Path) -> None:
    from federation_harness import PLAIN, Federation

    federation = Federation(tmp_path)
    federation.run(overrides={**PLAIN, "num-rounds": 1})
    before = (tmp_path / "federated" / "run.json").read_bytes()

    with hold_run(tmp_path / "federated"), pytest.raises(RunError, match="being run by another process"):
        federation.run(overrides={**PLAIN, "num-rounds": 1}, resume=True)

    assert (tmp_path / "federated" / "run.json").read_bytes() == before


def test_a_run_says_running_only_while_its_folder_is_held(tmp_path: Path) -> None:
    from federation_harness import PLAIN, Federation

    from fl_server.summary import read_variants

    outcome = Federation(tmp_path).run(overrides={**PLAIN, "num-rounds": 1})
    header = {**outcome.header, "status": "running"}
    (outcome.folder / "run.json").write_text(json.dumps(header))

    with hold_run(outcome.folder):
        held = read_variants(tmp_path)["federated"]
    free = read_variants(tmp_path)["federated"]

    assert (held.run.status, held.run.reason) == ("running", "")
    assert free.run.status == "stopped"
    assert "--resume" in free.run.reason
