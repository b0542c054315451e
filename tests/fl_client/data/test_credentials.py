"""A database's password is read from the environment or from a private file, and is in no repr and no refusal."""

import os
from pathlib import Path

import pytest

from fl_client.data.credentials import Credentials, read_credentials
from fl_client.source_settings import CredentialsSettings
from fl_contract.errors import RefusalCode, RefusalError

SECRET = "tell-nobody"


def from_text(monkeypatch: pytest.MonkeyPatch, text: str) -> Credentials:
    monkeypatch.setenv("ST_ANNA_DATABASE", text)
    return read_credentials(CredentialsSettings(environment="ST_ANNA_DATABASE"), folder=Path())


def from_file(path: Path) -> Credentials:
    return read_credentials(CredentialsSettings(file=path.name), folder=path.parent)


def refusal(path: Path) -> str:
    with pytest.raises(RefusalError) as caught:
        from_file(path)
    assert caught.value.code is RefusalCode.INVALID_DATA
    assert SECRET not in caught.value.detail
    return caught.value.detail


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "credentials"
    path.write_text(f"reader:{SECRET}\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("text", "user", "password"),
    [
        ("reader:secret", "reader", "secret"),
        ("reader:secret\n", "reader", "secret"),
        ("reader:secret\r\n", "reader", "secret"),
        ("reader:a:b: c ", "reader", "a:b: c "),
        ("reader:p@ss/%word?", "reader", "p@ss/%word?"),
    ],
)
def test_what_follows_the_first_colon_is_the_password(
    monkeypatch: pytest.MonkeyPatch, text: str, user: str, password: str
) -> None:
    credentials = from_text(monkeypatch, text)

    assert (credentials.user, credentials.password) == (user, password)


@pytest.mark.parametrize("text", ["", "\n", SECRET, f":{SECRET}", "reader:", f"reader:{SECRET}\nother:{SECRET}"])
def test_another_form_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises(RefusalError) as caught:
        from_text(monkeypatch, text)

    assert caught.value.detail == "environment variable ST_ANNA_DATABASE: expected one line, user:password"


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(RefusalError, match="environment variable ST_ANNA_DATABASE is not set"):
        read_credentials(CredentialsSettings(environment="ST_ANNA_DATABASE"), folder=Path())


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_of_its_owner_s_alone_is_read(path: Path, mode: int) -> None:
    path.chmod(mode)

    assert from_file(path).password == SECRET


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o660, 0o644, 0o610])
def test_a_file_that_others_have_rights_to_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)

    assert f"others have rights, mode {mode:04o}; expected a file of your own" in refusal(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_user_s_file_is_refused(path: Path) -> None:
    os.chown(path, 65534, -1)

    assert "belongs to another user" in refusal(path)


def test_a_link_is_judged_by_the_file_it_leads_to(path: Path) -> None:
    path.chmod(0o644)
    (path.parent / "link").symlink_to(path)

    assert "others have rights, mode 0644" in refusal(path.parent / "link")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    assert "credentials: cannot be read (No such file or directory)" in refusal(tmp_path / "credentials")


def test_a_file_that_is_no_text_is_not_repeated(path: Path) -> None:
    path.write_bytes(b"reader:" + SECRET.encode() + b"\xff")

    assert "expected one line in UTF-8" in refusal(path)


def test_a_repr_holds_neither_user_nor_password() -> None:
    assert repr(Credentials(user="reader", password=SECRET)) == "Credentials()"
