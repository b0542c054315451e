"""A hospital's node runs approved bytes and nothing else, answers whatever the app does, and takes part again."""

import contextlib
import hashlib
import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from approved import approve
from probe_bundle import build_probe
from probe_superlink import SCRIPTS, ProbeSuperLink, Questions, free_port, process, run_superlink, wait_for

from fl_client.node.approvals import Approvals
from fl_client.node.enrolment import check_invitation, enroll, join
from fl_client.node.node_folder import NodeFolder
from fl_contract.enrolment import EnrolmentRequest, Invitation
from fl_contract.errors import RefusalCode

pytestmark = pytest.mark.deployment

LEAD = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
INVALID_FAB = 7
SITE = """
name = "{name}"
declared-examples = 70

[source]
kind = "built-in"
dataset = "breast-cancer"
parts = [0]
num-parts = 4
alpha = 2.0
test-fraction = 0.3
seed = 2026

[policy]
epsilon-budget = 10.0
delta = 0.001

[node]
task-timeout-seconds = 1
runtime-port = {port}
"""


@dataclass
class Hospital:
    """A hospital that joined, and its number at the SuperLink."""

    site_file: Path
    node: int
    port: int

    @property
    def folder(self) -> NodeFolder:
        return NodeFolder.of(self.site_file)

    def journal(self) -> str:
        return (self.site_file.parent / "journal.jsonl").read_text(encoding="utf-8")

    def log(self, name: str = "*") -> str:
        return "".join(path.read_text(encoding="utf-8") for path in sorted(self.folder.logs.glob(f"{name}.jsonl")))

    def start(self) -> contextlib.AbstractContextManager["subprocess.Popen[bytes]"]:
        command = [str(SCRIPTS / "fl-client"), "start", str(self.site_file)]
        return process(command, self.site_file.parent, SECRET_OF_ANOTHER="hidden", no_proxy="*")


def make_hospital(superlink: ProbeSuperLink, name: str) -> Hospital:
    folder = superlink.folder / name
    folder.mkdir()
    site_file, port = folder / "site.toml", free_port()
    site_file.write_text(SITE.format(name=name, port=port), encoding="utf-8")
    made = enroll(site_file, folder / "request.json")
    node = superlink.register(EnrolmentRequest.read(made.request).public_key)
    fields = {
        "federation": "cardio",
        "site": name,
        "address": f"127.0.0.1:{superlink.port}",
        "authority": superlink.authority,
        "lead-public-key": LEAD,
        "node-key": made.fingerprint,
    }
    path = folder / "invitation.json"
    path.write_text(Invitation.parse(fields, origin="test").to_json(), encoding="utf-8")
    join(site_file, check_invitation(site_file, path))
    return Hospital(site_file, node, port)


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProbeSuperLink]:
    with run_superlink(tmp_path_factory.mktemp("superlink")) as superlink:
        yield superlink


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_probe(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def hospital(superlink: ProbeSuperLink, bundle: bytes) -> Iterator[Hospital]:
    made = make_hospital(superlink, "st-anna")
    approve(made.site_file.parent, bundle)
    with made.start():
        wait_for(lambda: "connected to cardio as st-anna" in output(made), 60, "the connection")
        wait_for(lambda: "takes tasks" in made.log("executor"), 60, "the executor")
        yield made


@pytest.fixture(scope="module")
def questions(superlink: ProbeSuperLink, hospital: Hospital, bundle: bytes) -> Questions:
    """An approved run."""
    return superlink.start_run(bundle)


def output(hospital: Hospital) -> str:
    return (hospital.site_file.parent / "fl-client.log").read_text(encoding="utf-8")


def refused(answer: dict[str, Any], code: RefusalCode) -> bool:
    return (answer.get("code"), answer.get("reason")) == (int(code), code.sentence)


def test_an_approved_bundle_runs_with_its_own_code(hospital: Hospital, questions: Questions, bundle: bytes) -> None:
    told = questions.ask(hospital.node, "answer")["content"]

    assert told["code"].startswith(str(hospital.folder.flower_home / "apps"))
    assert told["own"] == ["fl_client", "fl_client.app"]
    assert told["group"] == told["process"]
    assert told["mask"] == 0o077
    assert "SECRET_OF_ANOTHER" not in told["variables"]
    assert hashlib.sha256(bundle).hexdigest() in hospital.journal()


def test_each_app_draws_random_numbers_of_its_own_and_shows_no_token(hospital: Hospital, questions: Questions) -> None:
    first, second = (questions.ask(hospital.node, "answer") for _ in range(2))

    assert not set(first["content"]["noise"]) & set(second["content"]["noise"])
    assert "token" not in first["content"]["command"]


@pytest.mark.parametrize(
    ("what", "code", "seconds"),
    [
        ("raise", RefusalCode.INTERNAL, 10),
        ("none", RefusalCode.INTERNAL, 10),
        ("exit", RefusalCode.INTERNAL, 10),
        ("crash", RefusalCode.INTERNAL, 10),
        ("kill", RefusalCode.INTERNAL, 10),
        ("hang", RefusalCode.TIME_LIMIT, 20),
    ],
)
def test_whatever_an_app_does_its_request_is_answered_soon_and_the_next_one_too(
    hospital: Hospital, questions: Questions, what: str, code: RefusalCode, seconds: float
) -> None:
    answer = questions.ask(hospital.node, what)
    after = questions.ask(hospital.node, "answer")

    assert refused(answer, code)
    assert answer["seconds"] < seconds
    assert "content" in after
    assert code.label in hospital.journal().splitlines()[-1] or "crash" in hospital.journal()


def test_what_an_app_leaves_running_ends_with_it(hospital: Hospital, questions: Questions) -> None:
    daemon = questions.ask(hospital.node, "daemon")["content"]["daemon"]

    wait_for(lambda: not Path(f"/proc/{daemon}").exists(), 10, "the end of what the app left")
    assert "content" in questions.ask(hospital.node, "answer")


def test_what_an_app_raised_is_in_the_hospitals_log_alone(hospital: Hospital, questions: Questions) -> None:
    answer = questions.ask(hospital.node, "raise")

    assert "4711" not in json.dumps(answer)
    assert "4711" in hospital.log()


def test_an_unapproved_bundle_is_refused_and_its_hash_is_in_the_journal(
    superlink: ProbeSuperLink, hospital: Hospital, tmp_path: Path
) -> None:
    other = build_probe(tmp_path, version="1.0.1")

    answer = superlink.start_run(other).ask(hospital.node, "answer")

    assert answer["code"] == INVALID_FAB
    assert hashlib.sha256(other).hexdigest() in hospital.journal().splitlines()[-1]


def test_other_bytes_under_an_approved_hash_are_refused(
    superlink: ProbeSuperLink, hospital: Hospital, bundle: bytes, tmp_path: Path
) -> None:
    other = build_probe(tmp_path, version="1.0.2")
    digest = hashlib.sha256(bundle).hexdigest()
    asked = superlink.start_run(bundle)
    superlink.alter(digest, other)

    try:
        answer = asked.ask(hospital.node, "answer")
    finally:
        superlink.alter(digest, bundle)

    assert answer["code"] == INVALID_FAB
    assert hashlib.sha256(other).hexdigest() in hospital.journal().splitlines()[-1]


def test_what_lies_where_a_bundle_will_be_installed_is_not_run(
    superlink: ProbeSuperLink, hospital: Hospital, tmp_path: Path
) -> None:
    """Flower runs unchecked what is there under the first 8 digits of the hash, as of another bundle that is alike."""
    other = build_probe(tmp_path, version="1.0.3")
    place = hospital.folder.flower_home / "apps" / f"consilium.probe.1.0.3.{hashlib.sha256(other).hexdigest()[:8]}"
    (place / "fl_client").mkdir(parents=True)
    (place / "fl_client" / "app.py").write_text("raise SystemExit('not the bundle')", encoding="utf-8")
    approve(hospital.site_file.parent, other)

    told = superlink.start_run(other).ask(hospital.node, "answer")

    assert told["content"]["code"].startswith(str(place))


def test_a_withdrawn_bundle_is_refused_in_the_middle_of_its_run(
    hospital: Hospital, questions: Questions, bundle: bytes
) -> None:
    Approvals(hospital.site_file.parent).withdraw(hashlib.sha256(bundle).hexdigest())

    answer = questions.ask(hospital.node, "answer")
    approve(hospital.site_file.parent, bundle)
    after = questions.ask(hospital.node, "answer")

    assert answer["code"] == INVALID_FAB
    assert "content" in after


def test_nothing_of_the_node_is_open_to_others(hospital: Hospital) -> None:
    paths = [hospital.folder.root, *hospital.folder.root.rglob("*")]

    assert [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_a_node_runs_once(hospital: Hospital) -> None:
    second = subprocess.run([SCRIPTS / "fl-client", "start", hospital.site_file], capture_output=True, text=True)

    assert second.returncode == 2
    assert "runs already" in second.stderr


@pytest.mark.chaos
def test_a_node_goes_on_after_its_supernode_was_killed(hospital: Hospital, questions: Questions) -> None:
    started = [json.loads(line) for line in hospital.log("supervisor").splitlines()]
    process_id = next(line["pid"] for line in started if line["message"] == "started supernode")
    os.kill(process_id, signal.SIGKILL)
    wait_for(lambda: hospital.log("supernode").count("SuperNode ID") == 2, 120, "the restart")

    assert "content" in questions.ask(hospital.node, "answer")


def test_an_expelled_node_ends_with_3_and_says_why(superlink: ProbeSuperLink, bundle: bytes) -> None:
    expelled = make_hospital(superlink, "st-expelled")
    approve(expelled.site_file.parent, bundle)

    with expelled.start() as node:
        wait_for(lambda: "connected" in output(expelled), 60, "the connection")
        superlink.unregister(expelled.node)
        code = node.wait(60)

    assert code == 3
    assert "it was expelled" in output(expelled)
