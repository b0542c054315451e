"""Parts of a running federation are killed, cut off, filled up, set wrong: the run completes, or stops with its cause.

Afterwards nothing is lost: hospitals' logs and ledgers are whole, and a resumed run has the model of one that never was
stopped.
"""

import datetime
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from deployed_federation import COMMANDS, Federation, Service, descendants, federation, free_port, kill, wait_until
from heart_hospitals import DATA, file_hospital
from safetensors.numpy import load_file
from tls_tap import TlsTap

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not DATA.exists(), reason=f"{DATA.name}: the four hospitals' files are not beside us"),
]

FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
NAMES = ("cleveland", "hungarian", "va")
ROUNDS = 5
PLAIN = (
    *("--set", "privacy.mechanism=none", "--set", f"num-rounds={ROUNDS}", "--set", "stopping.patience=0"),
    *("--set", "federation.min-sites=2", "--set", "federation.round-timeout-seconds=40.0"),
)
PRIVATE = PLAIN[2:]
ALL_OF_THEM = (*PLAIN, "--set", "federation.min-sites=3")
RUN_SECONDS = 400.0


@dataclass
class Three:
    """A federation of three hospitals, whose link is ours."""

    made: Federation
    tap: TlsTap

    def start_run(self, *words: str) -> Service:
        """A run that goes on in the background."""
        bundle = ("--bundle", str(self.made.bundle))
        return self.made.start("run", "fl-server", "run", "heart-disease", *bundle, *(words or PLAIN))

    def await_rounds(self, count: int, before: set[Path]) -> Path:
        """Wait until a run that is not one of those before has recorded so many rounds; its variant's folder."""
        runs = self.made.folder / "federation" / "runs"

        def folder() -> Path | None:
            found = [path for path in runs.glob("*/*/rounds.jsonl") if path.parent.parent not in before]
            return next((path.parent for path in found if len(path.read_text().splitlines()) >= count), None)

        wait_until(lambda: folder() is not None, seconds=RUN_SECONDS, what=f"{count} rounds")
        found = folder()
        assert found is not None
        return found

    def runs(self) -> set[Path]:
        """Folders of all runs until now."""
        return set((self.made.folder / "federation" / "runs").glob("*"))

    def apps_of(self, name: str) -> list[int]:
        """Client apps that run at a hospital now."""
        return descendants(self.made.pid_of(name, "fl_client.node.executor"))

    def epsilon_of(self, name: str) -> float:
        """What a hospital's patients have spent, as its ledger says."""
        told = self.made.run("fl-client", "ledger", "verify", str(self.made.site_file(name)), host=name).stdout
        found = re.search(r"ε ([0-9.]+)", told)
        assert found is not None, told
        return float(found[1])

    def check_nothing_is_lost(self) -> None:
        """Each hospital's log and ledger verify."""
        for name in NAMES:
            self.made.journal(name)
            self.made.run("fl-client", "ledger", "verify", str(self.made.site_file(name)), host=name)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    """Started, with nothing run yet."""
    with federation(tmp_path_factory.mktemp("chaos")) as made:
        made.init()
        pki = made.folder / "federation" / "pki"
        made.start_coordinator()
        with TlsTap(free_port(), made.port, pki / "server.crt", pki / "server.key", pki / "ca.crt") as tap:
            for name in NAMES:
                made.enrol(name, file_hospital(name, task_timeout_seconds=20), address=f"localhost:{tap.port}")
            made.start_hospitals(*NAMES)
            yield Three(made, tap)
            made.end()


@pytest.fixture(scope="module")
def undisturbed(three: Three) -> dict[str, Any]:
    """The model of a run in which nothing happens."""
    three.made.run_study("heart-disease", *ALL_OF_THEM)
    return load_file(three.made.last_run() / "model.safetensors")


def _completed(three: Three, run: Service, folder: Path) -> dict[str, Any]:
    assert run.process.wait(RUN_SECONDS) == 0, run.printed()[-4000:]
    header: dict[str, Any] = json.loads((folder / "run.json").read_text())
    assert header["status"] == "completed"
    three.check_nothing_is_lost()
    return header


def _rounds(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_a_client_app_that_is_killed_in_training_costs_its_hospital_that_round_only(three: Three) -> None:
    """A private one: what was charged before the kill stays charged, and the ledger is whole."""
    before = three.runs()
    run = three.start_run(*PRIVATE)
    folder = three.await_rounds(1, before)
    wait_until(lambda: bool(three.apps_of("va")), seconds=60, what="a client app of va")

    for pid in three.apps_of("va"):
        kill(pid)

    _completed(three, run, folder)
    assert "va" in _rounds(folder)[-1]["sites"]
    assert three.epsilon_of("va") > 0


def test_a_hospital_whose_machine_is_off_for_two_rounds_takes_part_again(three: Three) -> None:
    before = three.runs()
    run = three.start_run(*PLAIN, "--set", "num-rounds=25", "--set", "federation.round-timeout-seconds=10.0")
    folder = three.await_rounds(1, before)

    three.made.services["va"].kill()
    missed = three.await_rounds(3, before)
    three.made.start_hospital("va")

    wait_until(lambda: "va" in _rounds(missed)[-1]["sites"], seconds=RUN_SECONDS, what="va takes part again")
    _completed(three, run, folder)
    assert ["va" in each["sites"] for each in _rounds(folder)[1:3]] == [False, False]
    assert "va" in _rounds(folder)[-1]["sites"]


def test_a_superlink_that_is_killed_is_started_again_and_the_run_goes_on(three: Three) -> None:
    before = three.runs()
    run = three.start_run()
    folder = three.await_rounds(1, before)

    kill(three.made.pid_of("coordinator", "fl_server.host.superlink"))

    code = run.process.wait(RUN_SECONDS)
    if code:  # the app did not survive: then the run stopped with its cause, and goes on from its checkpoint
        assert json.loads((folder / "run.json").read_text())["status"] == "failed" or "failed" in run.printed()
        run = three.start_run("--resume", str(folder.parent), *PLAIN)
    _completed(three, run, folder)


def test_a_server_app_that_is_killed_fails_the_run_which_resumes_to_the_bit(
    three: Three, undisturbed: dict[str, Any]
) -> None:
    before = three.runs()
    run = three.start_run(*ALL_OF_THEM)
    folder = three.await_rounds(2, before)

    kill(three.made.pid_of("coordinator", "flwr-serverapp"))

    assert run.process.wait(RUN_SECONDS) == 1
    assert f"--resume {folder.parent}" in run.printed()
    assert len(_rounds(folder)) < ROUNDS
    resumed = three.start_run("--resume", str(folder.parent), *ALL_OF_THEM)
    _completed(three, resumed, folder)
    model = load_file(folder / "model.safetensors")
    assert all(np.array_equal(model[name], undisturbed[name]) for name in undisturbed)


def test_a_link_that_is_cut_for_a_while_and_then_slow_ends_no_run(three: Three) -> None:
    before = three.runs()
    run = three.start_run()
    folder = three.await_rounds(1, before)

    three.tap.cut()
    time.sleep(15)
    three.tap.bytes_per_second = 50_000.0
    three.tap.mend()

    _completed(three, run, folder)
    three.tap.bytes_per_second = None


def _reissue(three: Three, *, days: int) -> None:
    """Another certificate of the coordinator's authority, which ends so many days from now."""
    pki = three.made.folder / "federation" / "pki"
    authority_key = serialization.load_pem_private_key((pki / "ca.key").read_bytes(), None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.UTC)
    before = x509.load_pem_x509_certificate((pki / "server.crt").read_bytes())
    names = before.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    identifier = before.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    certificate = (
        x509.CertificateBuilder(before.issuer, before.subject, before.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=30))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(names, critical=False)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    (pki / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def test_an_expired_certificate_is_named_by_the_hospital_and_a_renewed_one_is_taken_up(three: Three) -> None:
    three.made.services["va"].end()
    kept = (three.made.folder / "federation" / "pki" / "server.crt").read_bytes()
    _reissue(three, days=-1)
    direct = three.made.site_file("va").parent / "node" / "invitation.json"
    through_tap = direct.read_text()
    direct.write_text(json.dumps(json.loads(through_tap) | {"address": f"localhost:{three.made.port}"}))
    time.sleep(3)

    refused = three.made.start("va", "fl-client", "start", str(three.made.site_file("va")))
    refused.await_text("expired", seconds=90)
    refused.end()
    (three.made.folder / "federation" / "pki" / "server.crt").write_bytes(kept)
    three.made.run("fl-server", "renew")
    time.sleep(3)
    three.made.start_hospital("va").end()

    direct.write_text(through_tap)
    three.made.start_hospital("va")
    three.check_nothing_is_lost()


@pytest.mark.skipif(not FAKETIME, reason="libfaketime is not installed (Debian: faketime)")
def test_clocks_that_are_an_hour_apart_are_named_and_keep_hospitals_out_until_they_are_right(three: Three) -> None:
    """The coordinator's is set back, which is one for all hospitals: their requests come an hour too early."""
    for name in NAMES:
        three.made.services[name].end()
    three.made.services["coordinator"].end()
    three.made.start_coordinator(environment={"LD_PRELOAD": str(FAKETIME[0]), "FAKETIME": "-1h"})

    refused = three.made.start("va", "fl-client", "start", str(three.made.site_file("va")))
    refused.await_text("clock", seconds=90)
    doctor = three.made.run("fl-client", "doctor", str(three.made.site_file("va")), host="va", check=False)

    refused.process.wait(60)
    three.made.services["coordinator"].end()
    three.made.start_coordinator()
    three.made.start_hospitals(*NAMES)
    assert doctor.returncode == 1
    assert "clock" in doctor.stdout
    three.check_nothing_is_lost()


def test_a_full_disk_refuses_with_a_code_and_loses_nothing(three: Three) -> None:
    small = three.made.site_file("va").parent
    three.made.services["va"].end()
    kept = three.made.folder / "kept"
    shutil.copytree(small, kept)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", small], check=False).returncode:
        pytest.skip("a file system of a given size cannot be mounted here")
    try:
        shutil.copytree(kept, small, dirs_exist_ok=True)
        three.made.start_hospital("va")
        before = three.runs()
        run = three.start_run()
        folder = three.await_rounds(1, before)
        filler = small / "filler"
        _fill(filler)
        three.await_rounds(3, before)
        filler.unlink()

        _completed(three, run, folder)
        assert "disk-full" in {each["missing"].get("va", {}).get("code") for each in _rounds(folder)}
        assert "va" in _trained(_rounds(folder)[-1])
        three.made.services["va"].end()
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)
    three.made.start_hospital("va")


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"\0" * 4096)


@pytest.mark.parametrize(
    ("way", "check"),
    [
        ("late", lambda rounds: all("va" not in _trained(each) for each in rounds)),
        ("twice", lambda rounds: all("va" in _trained(each) for each in rounds)),
        ("as-another", lambda rounds: all("va" not in _trained(each) for each in rounds)),
    ],
)
def test_a_hospital_that_answers_late_twice_or_for_another_harms_nobody_else(
    three: Three, way: str, check: Callable[[list[dict[str, Any]]], bool]
) -> None:
    three.made.services["va"].end()
    script = Path(__file__).resolve().parents[1] / "support" / "dishonest_node.py"
    output = three.made.folder / "output" / f"dishonest-{way}.txt"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [str(COMMANDS / "python"), str(script), str(three.made.site_file("va")), way],
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    dishonest = Service(process, output)
    dishonest.await_text("connected")

    words = [*PLAIN, "--set", "num-rounds=2", "--set", "federation.round-timeout-seconds=20.0"]
    done = three.made.run_study("heart-disease", *words, check=False)

    dishonest.end()
    three.made.start_hospital("va")
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = three.made.rounds()
    assert all({"cleveland", "hungarian"} <= _trained(each) for each in rounds)
    assert check(rounds)


def _trained(server_round: dict[str, Any]) -> set[str]:
    """Hospitals whose update was used; those that only measured have no number of examples."""
    return {name for name, site in server_round["sites"].items() if site["num_examples"]}
