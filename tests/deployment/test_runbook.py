"""Promise: the runbook's commands to back up and restore, run as they stand there, bring back what was lost.

Left out is what a test must not touch: accounts, and systemd, for which the same services are started and ended here.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from deployed_federation import COMMANDS, Federation, federation, wait_until
from heart_hospitals import DATA, file_hospital

RUNBOOK = Path(__file__).resolve().parents[2] / "docs" / "deployment" / "runbook.md"
HOSPITAL = "cleveland"
ONE_HOSPITAL = ("--set", "federation.min-sites=1", "--set", "stopping.patience=0")
PLAIN = ("--set", "privacy.mechanism=none")

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(not DATA.exists(), reason=f"{DATA.name}: the four hospitals' files are not beside us"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A coordinator and a hospital that have run one private round."""
    with federation(tmp_path_factory.mktemp("runbook")) as started:
        started.init()
        started.start_coordinator()
        started.enrol(HOSPITAL, file_hospital(HOSPITAL))
        started.start_hospital(HOSPITAL)
        started.run_study("heart-disease", *ONE_HOSPITAL, "--set", "num-rounds=1")
        yield started


def commands(section: str, *, of: str) -> list[str]:
    """The lines of a section's block that names a service."""
    text = RUNBOOK.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    block: str
    (block,) = [each for each in blocks if f"/var/lib/{of}/" in each or f"-C /var/lib/{of} " in each]
    return block.replace("\\\n", " ").splitlines()


def type_in(made: Federation, lines: Sequence[str], start: Callable[[], object]) -> None:
    """Run lines of the runbook with this federation's paths; `start` is what ``systemctl start`` stands for."""
    places = {
        "/var/lib/consilium-hospital": str(made.site_file(HOSPITAL).parent),
        "/var/lib/consilium": str(made.folder),
        "/opt/consilium/.venv/bin": str(COMMANDS),
        "/backup": str(made.folder / "backup"),
        "/other-disk": str(made.folder / "other-disk"),
    }
    for line in lines:
        words = re.sub(r"\bsudo (-u \S+ )?", "", line)
        for place, here in places.items():
            words = words.replace(place, here)
        if found := re.fullmatch(r"systemctl (start|stop) consilium-(\w+)", words):
            start() if found[1] == "start" else made.services[_service(found[2])].end()
        else:
            done = subprocess.run(["bash", "-c", words], env=os.environ, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def _service(unit: str) -> str:
    return {"coordinator": "coordinator", "hospital": HOSPITAL}[unit]


def test_a_coordinator_that_is_lost_in_the_middle_of_a_run_is_restored_and_the_run_goes_on(made: Federation) -> None:
    before, settings = made.last_run(), (*ONE_HOSPITAL, *PLAIN, "--set", "num-rounds=4")
    made.start("run", "fl-server", "run", "heart-disease", "--bundle", str(made.bundle), *settings)
    wait_until(lambda: made.last_run() != before and bool(made.rounds()), seconds=120, what="a round")
    type_in(made, commands("Back up", of="consilium"), made.start_coordinator)
    done = len(made.rounds())
    made.services["coordinator"].kill()
    shutil.rmtree(made.folder / "federation")

    type_in(made, commands("Restore", of="consilium"), made.start_coordinator)

    run = made.last_run().parent
    wait_until(
        lambda: "online" in made.run("fl-server", "sites").stdout, seconds=120, what=f"{HOSPITAL} is online again"
    )
    made.run_study("heart-disease", "--resume", str(run), *settings)
    assert done < 4
    assert made.last_run().parent == run
    assert [each["round"] for each in made.rounds()] == [1, 2, 3, 4]
    assert made.header()["status"] == "completed"


def test_a_hospital_whose_disk_is_lost_is_restored_with_what_it_has_spent(made: Federation) -> None:
    folder = made.site_file(HOSPITAL).parent
    spent = made.run("fl-client", "budget", str(made.site_file(HOSPITAL))).stdout

    def start() -> None:
        made.start_hospital(HOSPITAL)

    type_in(made, commands("Back up", of="consilium-hospital"), start)
    made.services[HOSPITAL].end()
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)

    type_in(made, commands("Restore", of="consilium-hospital"), start)

    assert made.run("fl-client", "budget", str(made.site_file(HOSPITAL))).stdout == spent
    made.run_study("heart-disease", *ONE_HOSPITAL, *PLAIN, "--set", "num-rounds=1")
    assert list(made.rounds()[0]["sites"]) == [HOSPITAL]
