"""A coordinator and four hospitals as separate processes, with TLS, node keys, an approved bundle and a real database.

Hospitals reach their coordinator through a link that is read: what was planted in their paths, environment and data is
in nothing that leaves.
"""

import base64
import json
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from deployed_federation import Federation, federation, free_port
from flwr.app import Context, RecordDict
from heart_hospitals import DATA, NAMES, database_hospital, file_hospital, hospital_table, site_toml
from postgres import PostgresServer
from safetensors.numpy import load_file
from tls_tap import TlsTap

from fl_contract.study_file import STUDIES, Scalar
from fl_server.app import app as server_app
from fl_server.local_grid import COORDINATOR_NODE, LocalGrid, load_client_app

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(not DATA.exists(), reason=f"{DATA.name}: the four hospitals' files are not beside us"),
]

PLANTED = {
    "path": "planted-path-5c1f",
    "environment": "planted-environment-77a0",
    "column": "planted-column-e3",
    "value": "planted-value-48b2",
}
PLAIN = ("--set", "privacy.mechanism=none", "--set", "num-rounds=2", "--set", "stopping.patience=0")


@dataclass(frozen=True)
class Running:
    """A federation that ran a study without privacy."""

    federation: Federation
    tap: TlsTap
    printed: str


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Running]:
    """Four hospitals, of which one has a database, and a fifth whose data break the schema, after a run."""
    folder = tmp_path_factory.mktemp("deployed") / PLANTED["path"]
    folder.mkdir()
    with federation(folder) as made:
        made.init()
        pki = folder / "federation" / "pki"
        tap = TlsTap(free_port(), made.port, pki / "server.crt", pki / "server.key", pki / "ca.crt")
        made.start_coordinator()
        with tap:
            sites = {name: file_hospital(name) for name in ("cleveland", "hungarian", "va")}
            sites["switzerland"] = database_hospital("switzerland", postgres_server, folder, prefix=PLANTED["column"])
            sites["unusable"] = _unusable_hospital(folder)
            for name, text in sites.items():
                made.enrol(name, text, address=f"localhost:{tap.port}")
            made.start_hospitals(*sites, environment={"HOSPITAL_SECRET": PLANTED["environment"]})
            done = made.run_study("heart-disease", *PLAIN)
            yield Running(made, tap, done.stdout + done.stderr)


def _unusable_hospital(folder: Path) -> str:
    """A table with a text where a number belongs, which an exception names."""
    table = hospital_table("va").astype({"chol": object})
    table.loc[table.index[3], "chol"] = PLANTED["value"]
    table.to_csv(folder / "unusable.csv", index=False)
    source = f"""
kind = "table"
train = "{folder / "unusable.csv"}"
fold = "fold"
label = "outcome"
patient = "patient"
"""
    return site_toml("unusable", source, declared=90)


def test_the_run_completes_at_all_four_hospitals(running: Running) -> None:
    header, rounds = running.federation.header(), running.federation.rounds()

    assert header["status"] == "completed"
    assert set(header["sites"]) == set(NAMES)
    assert [sorted(each["sites"]) for each in rounds] == [sorted(NAMES)] * 2


def test_a_hospital_with_unusable_data_is_named_with_its_code(running: Running) -> None:
    assert "invalid-data" in json.dumps(running.federation.header())


def test_the_model_is_that_of_the_local_engine_to_the_bit(running: Running, tmp_path: Path) -> None:
    nodes: list[dict[str, Scalar]] = []
    for name in NAMES:
        text = running.federation.site_file(name).read_text()
        (tmp_path / name).mkdir()
        (tmp_path / name / "site.toml").write_text(text)
        nodes.append({"site-file": str(tmp_path / name / "site.toml"), "studies": str(STUDIES)})
    run_config: dict[str, Scalar] = {
        **{"study": "heart-disease", "out": str(tmp_path / "run"), "num-rounds": 2},
        **{"privacy.mechanism": "none", "stopping.patience": 0},
    }
    grid = LocalGrid(load_client_app(), nodes, run_config=run_config)

    server_app(grid, Context(1, COORDINATOR_NODE, {}, RecordDict(), run_config))

    grid.close()
    (expected,) = (tmp_path / "run").glob("*/model.safetensors")
    ours, theirs = load_file(running.federation.last_run() / "model.safetensors"), load_file(expected)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_each_hospital_has_written_down_all_that_left(running: Running) -> None:
    for name in NAMES:
        entries = [entry["content"] for entry in running.federation.journal(name)]

        released = [entry for entry in entries if entry["kind"] == "release"]
        assert {"approval", "start", "run", "release"} <= {entry["kind"] for entry in entries}
        assert len(released) >= 2 * 2  # two rounds, each trained and measured
        assert all(entry["bytes"] > 0 and len(entry["sha256"]) == 64 for entry in released)


def test_nothing_planted_at_a_hospital_is_in_anything_that_left(running: Running) -> None:
    sent = running.tap.all_sent()
    planted = [*PLANTED.values(), str(running.federation.folder), "Traceback", 'File "', "HOSPITAL_SECRET"]

    found = [word for word in planted for coded in _codings(word) if coded in sent]

    assert len(sent) > 10_000
    assert b"switzerland" in sent  # it is readable
    assert found == []


def _codings(word: str) -> Iterator[bytes]:
    raw = word.encode()
    yield raw
    yield raw.hex().encode()
    for shift in range(3):  # wherever it begins in what was coded, all but its ends look alike
        yield base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : -4]


def test_a_hospitals_request_that_is_sent_again_is_refused(running: Running) -> None:
    made = running.federation
    requests = [_last_request(bytes(each)) for each in running.tap.sent]
    recorded = next(each for each in reversed(requests) if b"/v1/fleet/pull-messages" in each)
    context = ssl.create_default_context(cafile=str(made.folder / "federation" / "pki" / "ca.crt"))

    with (
        socket.create_connection(("127.0.0.1", made.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(recorded)
        answer = connection.recv(1 << 16)

    assert answer.startswith(b"HTTP/1.1 409")
    assert "seen before" in (made.folder / "federation" / "logs" / "guard.jsonl").read_text()


def _last_request(sent: bytes) -> bytes:
    """The last whole request of a connection, as it was sent."""
    start = sent.rfind(b"POST /v1/fleet/")
    return sent[start:] if start >= 0 else b""


def test_nothing_of_a_hospital_listens_beyond_loopback(running: Running) -> None:
    for name in NAMES:
        inodes = {inode for pid in running.federation.pids(name) for inode in _sockets(pid)}

        listening = [address for inode, address in _listening() if inode in inodes]

        assert listening
        assert all(address == "127.0.0.1" for address in listening)


def _sockets(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if match := re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                found.add(match[1])
        except OSError:
            continue
    return found


def _listening() -> Iterator[tuple[str, str]]:
    """Inode and address of each listening TCP socket of this machine."""
    for table, size in (("tcp", 4), ("tcp6", 16)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                raw = bytes.fromhex(words[1].partition(":")[0])
                is_v4 = size == 4
                yield (
                    words[9],
                    ".".join(map(str, reversed(raw))) if is_v4 else ("::" if raw == bytes(16) else raw.hex()),
                )


def test_what_is_kept_is_its_owners_alone(running: Running) -> None:
    kept = [*running.federation.folder.glob("federation/**/*"), *running.federation.folder.glob("hospitals/*/**/*")]

    readable = [path for path in kept if not path.is_symlink() and path.stat().st_mode & 0o077]

    allowed = {"site.toml"}  # which the test wrote
    assert [path for path in readable if path.name not in allowed and not _is_below_private(path)] == []


def _is_below_private(path: Path) -> bool:
    return any(parent.stat().st_mode & 0o077 == 0 for parent in path.parents)


def test_a_run_that_fails_exits_with_1_and_says_why(running: Running) -> None:
    words = ("--set", "federation.min-sites=6", "--set", "federation.round-timeout-seconds=5.0")

    done = running.federation.run_study("heart-disease", *words, *PLAIN, check=False)

    assert done.returncode == 1
    assert "federation.min-sites" in done.stdout + done.stderr


def test_a_run_setting_that_no_hospital_allows_is_refused(running: Running) -> None:
    done = running.federation.run_study("heart-disease", *PLAIN, "--set", "training.batch-size=8", check=False)

    assert done.returncode == 1
    assert "policy" in done.stdout + done.stderr
