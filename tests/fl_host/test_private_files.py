"""What is written as private is its owner's alone from the first moment, whole after a crash, and checked."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_contract.errors import SettingError
from fl_host.private_files import check_private, make_private_folder, write_private


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("open_umask")
def test_a_private_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "secret"

    write_private(path, b"one")
    write_private(path, b"two")

    assert (path.read_bytes(), mode(path)) == (b"two", 0o600)
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]


def test_an_open_file_becomes_private_when_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"open")
    path.chmod(0o644)

    write_private(path, b"closed")

    assert mode(path) == 0o600


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "inner").touch()

    with pytest.raises(OSError, match="directory"):
        write_private(folder, b"content")

    assert [each.name for each in tmp_path.iterdir()] == ["taken"]


@pytest.mark.usefixtures("open_umask")
def test_a_private_folder_and_its_missing_parents_are_their_owners_alone(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a" / "b")
    make_private_folder(tmp_path / "a" / "b")

    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o700, 0o700)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o610, 0o601, 0o602])
def test_what_others_may_use_is_refused_with_the_command_that_closes_it(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "key"
    path.touch()
    path.chmod(bits)

    with pytest.raises(SettingError, match=rf"mode={bits:04o}; expected none for group and others; chmod go= "):
        check_private(path)


def test_private_files_and_folders_pass(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "folder")
    write_private(tmp_path / "folder" / "key", b"")

    check_private(tmp_path / "folder")
    check_private(tmp_path / "folder" / "key")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="No such file or directory"):
        check_private(tmp_path / "key")


def test_another_users_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    write_private(path, b"")
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    with pytest.raises(SettingError, match=f"belongs to user {owner}; expected {owner + 1}"):
        check_private(path)
