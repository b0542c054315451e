"""A data set is fetched whole and right or not at all, from a real server on this machine."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fl_client import data_sets
from fl_client.cli import app
from fl_client.data_sets import DATA_SETS, RemoteFile, fetch
from fl_contract.errors import SettingError

CONTENT = b"63.0,1.0,?\n" * 10_000
SHARED = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "data" / "heart_disease"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves what lies in the folder ``served``."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "patients.data").write_bytes(CONTENT)
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def remote(server: str, *, name: str = "patients.data", content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile(url=f"{server}/{name}", num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def test_a_file_is_fetched_once(server: str, tmp_path: Path) -> None:
    counted: list[int] = []

    fetched = [fetch(remote(server), tmp_path / "new" / "folder", counted.append) for _ in range(2)]

    assert fetched == [True, False]
    assert (tmp_path / "new" / "folder" / "patients.data").read_bytes() == CONTENT
    assert sum(counted) == len(CONTENT)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["patients.data"]


@pytest.mark.parametrize(
    "expected", [CONTENT[:-1], CONTENT + b"more", CONTENT.replace(b"63", b"64")], ids=["longer", "shorter", "changed"]
)
def test_a_file_of_other_content_is_not_kept(server: str, tmp_path: Path, expected: bytes) -> None:
    with pytest.raises(SettingError, match="nothing was kept"):
        fetch(remote(server, content=expected), tmp_path / "out")

    assert list((tmp_path / "out").iterdir()) == []


def test_no_more_is_read_than_the_file_should_have(server: str, tmp_path: Path) -> None:
    counted: list[int] = []

    with pytest.raises(SettingError, match="101 bytes"):
        fetch(remote(server, content=CONTENT[:100]), tmp_path / "out", counted.append)

    assert sum(counted) == 101


def test_another_file_of_that_name_is_left_alone(server: str, tmp_path: Path) -> None:
    (tmp_path / "patients.data").write_bytes(b"mine")

    with pytest.raises(SettingError, match="is another file than"):
        fetch(remote(server), tmp_path)

    assert (tmp_path / "patients.data").read_bytes() == b"mine"


def test_a_server_that_does_not_have_it_is_named(server: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"absent\.data: cannot be fetched \(.*; check the network"):
        fetch(remote(server, name="absent.data"), tmp_path)


def test_the_command_fetches_all_files_and_says_so(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(data_sets.DATA_SETS, "tried", (remote(server),))

    result = CliRunner().invoke(app, ["data", "get", "tried", "--to", str(tmp_path / "out")])

    assert result.exit_code == 0, result.output
    assert "patients.data: fetched" in result.output.replace("\n", "")
    assert (tmp_path / "out" / "patients.data").read_bytes() == CONTENT


def test_an_unknown_data_set_is_refused_by_name() -> None:
    result = CliRunner().invoke(app, ["data", "get", "hart-disease"])

    assert result.exit_code == 1
    assert "expected one of ['heart-disease']" in result.output.replace("\n", "")


def test_the_list_names_every_address() -> None:
    result = CliRunner().invoke(app, ["data", "list"])

    assert all(file.url in result.output for files in DATA_SETS.values() for file in files)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the heart-disease files are absent")
def test_the_checksums_are_those_of_the_real_files() -> None:
    for file in DATA_SETS["heart-disease"]:
        content = (SHARED / file.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.num_bytes, file.sha256)
