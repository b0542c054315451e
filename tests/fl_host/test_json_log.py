"""A host's log is JSON lines, in a file that rotates and is its owner's alone, and on stderr."""

import json
import stat
from pathlib import Path

import pytest

from fl_host import json_log
from fl_host.json_log import open_json_log


def test_a_line_says_when_who_and_what_in_the_file_and_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = open_json_log(tmp_path / "logs", "superlink")

    log.warning('refused "%s"\nfrom %s', "GET", "10.0.0.9", extra={"peer": "10.0.0.9"})

    text = (tmp_path / "logs" / "superlink.jsonl").read_text()
    assert capsys.readouterr().err == text
    assert text.count("\n") == 1
    line = json.loads(text)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "process": "superlink",
        "message": 'refused "GET"\nfrom 10.0.0.9',
        "peer": "10.0.0.9",
    }


def test_an_exception_is_one_line_too(tmp_path: Path) -> None:
    log = open_json_log(tmp_path, "superlink")

    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")

    (line,) = (tmp_path / "superlink.jsonl").read_text().splitlines()
    assert "ValueError: broken" in json.loads(line)["exception"]


def test_the_same_log_opened_twice_writes_each_line_once(tmp_path: Path) -> None:
    open_json_log(tmp_path, "executor").info("one")
    open_json_log(tmp_path, "executor").info("two")

    assert len((tmp_path / "executor.jsonl").read_text().splitlines()) == 2


def test_full_files_rotate_and_stay_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_log, "MAX_BYTES", 400)
    log = open_json_log(tmp_path, "superlink")

    for number in range(60):
        log.info("line %d", number)

    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert json.loads((tmp_path / "superlink.jsonl").read_text().splitlines()[-1])["message"] == "line 59"
