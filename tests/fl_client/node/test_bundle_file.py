"""A bundle is opened only if it holds what Consilium's bundles hold; whatever else is in an archive is named."""

import contextlib
import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from signed_bundles import PYPROJECT, TREE, build, pack

from fl_client.node import bundle_file
from fl_client.node.bundle_file import read_bundle
from fl_contract.errors import SettingError


def test_a_bundle_of_flower_is_read_as_it_is() -> None:
    bundle = read_bundle(build())

    assert bundle.version == "0.1.0"
    assert sorted(bundle.files) == sorted(TREE)
    assert bundle.files["fl_server/app.py"] == b"app = 1\n"
    assert bundle.studies == {"heart-disease": TREE["studies/heart-disease.toml"]}


@pytest.mark.slow
def test_the_bundle_of_this_repository_is_accepted() -> None:
    from flwr.cli.build import build_fab_from_disk

    bundle = read_bundle(build_fab_from_disk(Path(__file__).parents[3]))

    assert {"heart-disease", "breast-cancer"} <= bundle.studies.keys()


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.py", "/etc/passwd", "fl_client/../../evil.py", "fl_client//app2.py", "./fl_client/app2.py"),
        *(
            "fl_client\\app2.py",
            "C:/evil.py",
            "fl_client/a\nb.py",
            "fl_client/",
            "fl_client/evil.so",
            "fl_client/x.pth",
        ),
        *("torch/__init__.py", "sitecustomize.py", "studies/deep/x.toml", "site.toml", "fl_client/ünsafe.py"),
        *("fl_client/node/approvals.py", "fl_server/host/start.py", "fl_host/supervisor.py", ".info/EVIL"),
        "fl_client/" + 11 * "a/" + "b.py",
    ],
)
def test_a_file_of_another_kind_or_place_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match="bundle: holds"):
        read_bundle(pack({**TREE, name: b""}))


def test_a_file_that_is_there_twice_is_refused() -> None:
    with pytest.raises(SettingError, match="twice"):
        read_bundle(pack({**TREE, "fl_client/APP.py": b""}))


def _as_link(info: zipfile.ZipInfo) -> None:
    if info.filename == "fl_server/app.py":
        info.external_attr = (stat.S_IFLNK | 0o777) << 16


def test_a_link_is_refused() -> None:
    with pytest.raises(SettingError, match="link"):
        read_bundle(pack(TREE, edit=_as_link))


def test_a_bundle_that_was_damaged_on_its_way_is_refused_in_words() -> None:
    """Not by an error of Python's: whatever byte is another one, the hospital reads what to do."""
    whole = repacked(zipfile.ZIP_DEFLATED)
    for at in range(0, len(whole), 11):
        with contextlib.suppress(SettingError):
            read_bundle(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])


def test_a_file_that_is_packed_in_another_way_is_refused() -> None:
    with pytest.raises(SettingError, match="packed in another way"):
        read_bundle(repacked(zipfile.ZIP_LZMA))


def test_settings_that_are_nested_beyond_reason_are_refused_in_words() -> None:
    with pytest.raises(SettingError, match=r"pyproject\.toml"):
        read_bundle(pack({**TREE, "pyproject.toml": b"x = " + b"[" * 100_000}))


def repacked(compression: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(build())) as before, zipfile.ZipFile(content, "w", compression) as after:
        for info in before.infolist():
            after.writestr(info.filename, before.read(info))
    return content.getvalue()


def test_an_encrypted_file_is_refused() -> None:
    content = bytearray(pack(TREE))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags of a file, in both of its headers
        content[content.index(mark) + offset] |= 1

    with pytest.raises(SettingError, match="encrypted"):
        read_bundle(bytes(content))


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked() -> None:
    bomb = pack({**TREE, "fl_client/zeros.py": bytes(bundle_file.MAX_UNPACKED_BYTES)})

    assert len(bomb) < bundle_file.MAX_BUNDLE_BYTES
    with pytest.raises(SettingError, match="unpacked"):
        read_bundle(bomb)


def test_too_many_files_or_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_file, "MAX_FILES", 3)
    with pytest.raises(SettingError, match="files; expected at most 3"):
        read_bundle(build())

    monkeypatch.setattr(bundle_file, "MAX_BUNDLE_BYTES", 10)
    with pytest.raises(SettingError, match="bytes; expected at most 10"):
        read_bundle(build())


def _without_manifest(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            if name != ".info/CONTENT":
                new.writestr(name, old.read(name))
    return buffer.getvalue()


def _with_unlisted_file(content: bytes) -> bytes:
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("fl_client/unlisted.py", "")
    return buffer.getvalue()


@pytest.mark.parametrize("damage", [_without_manifest, _with_unlisted_file])
def test_an_archive_whose_manifest_does_not_fit_is_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(SettingError, match=r"\.info/CONTENT"):
        read_bundle(damage(build()))


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive", build()[:-30], build()[: len(build()) // 2]])
def test_what_is_no_archive_is_refused(content: bytes) -> None:
    with pytest.raises(SettingError, match="bundle"):
        read_bundle(content)


def test_a_file_with_damaged_bytes_is_refused() -> None:
    content = bytearray(build())
    content[content.index(b"app = 1")] ^= 1

    with pytest.raises(SettingError, match="bundle"):
        read_bundle(bytes(content))


@pytest.mark.parametrize(
    "pyproject",
    [
        "",
        "[",
        PYPROJECT.replace("fl_client.app:app", "fl_client.evil:app"),
        PYPROJECT.replace('"consilium"', '"other"'),
        PYPROJECT.replace('version = "0.1.0"', ""),
    ],
)
def test_a_bundle_that_starts_something_else_is_refused(pyproject: str) -> None:
    with pytest.raises(SettingError, match="bundle: "):
        read_bundle(pack({**TREE, "pyproject.toml": pyproject.encode()}))
