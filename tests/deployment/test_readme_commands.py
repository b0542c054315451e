"""The commands of the README bring up a coordinator and three hospitals and finish a study, typed as they stand there.

Only the download is left out, since no test reaches the network: the same files are put where it puts them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deployed_federation import descendants, kill
from heart_hospitals import DATA

ROOT = Path(__file__).resolve().parents[2]
DOWNLOAD = "fl-client data get heart-disease"
SECONDS = 600

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(not DATA.exists(), reason=f"{DATA.name}: the four hospitals' files are not beside us"),
]


def _script() -> str:
    """The block of commands in the README's section on hosts."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Hospitals on hosts of their own")[2]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    assert block is not None
    lines = [line for line in block[1].splitlines() if DOWNLOAD not in line]
    assert len(lines) == len(block[1].splitlines()) - 1
    return "\n".join(lines)


def test_the_commands_of_the_readme_finish_a_study(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(DATA, tmp_path / "data" / "heart-disease")
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}

    shell = subprocess.Popen(
        ["bash", "-e", "-m", "-c", _script()],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = shell.communicate(timeout=SECONDS)
    finally:
        for pid in (*descendants(shell.pid), shell.pid) if shell.poll() is None else ():
            kill(pid)

    assert shell.returncode == 0, printed[-6000:]
    (record,) = (tmp_path / "federation" / "runs").glob("*/*/run.json")
    assert json.loads(record.read_text())["status"] == "completed"
    assert (record.parent / "model.safetensors").exists()
    assert "heart-disease" in printed
