"""The only place where a hospital opens a bundle: its files are checked and read, and none of its code is run."""

import hashlib
import io
import re
import stat
import tomllib
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

from fl_contract.errors import SettingError

MAX_BUNDLE_BYTES = 10 * 1024 * 1024
"""Flower's own limit."""
MAX_UNPACKED_BYTES = 50 * 1024 * 1024
MAX_FILES = 2000
_MAX_DEPTH = 10
_MANIFEST = ".info/CONTENT"
_PACKAGES = ("fl_client", "fl_contract", "fl_server", "privacy", "strategies")
_EXPECTED = re.compile(
    rf"pyproject\.toml|LICENSE|studies/[\w-]+\.toml|(?:{'|'.join(_PACKAGES)})/(?:[\w-]+/)*\w+\.py", re.A
)
_OF_HOSTS = ("fl_client/node/", "fl_server/host/")
"""What approves and starts bundles is installed at a host and never comes in one."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle that holds what is expected, and nothing else.

    Attributes:
        sha256: Of its bytes, hexadecimal.
        version: Of Consilium, as its ``pyproject.toml`` says.
        files: Content by path, sorted.
    """

    sha256: str
    version: str
    files: dict[str, bytes]

    @property
    def studies(self) -> dict[str, bytes]:
        """The TOML of each study by its name."""
        return {
            path.removeprefix("studies/").removesuffix(".toml"): content
            for path, content in self.files.items()
            if path.startswith("studies/")
        }


def read_bundle(content: bytes) -> Bundle:
    """Open a bundle, and check that it holds what Consilium's bundles hold.

    Guarantees:
        - Size, number and depth of files are limited; nothing is written, and nothing is read beyond the limits.
        - Every file is a regular one of our packages, a study, the licence or ``pyproject.toml``, once, with the hash
          that the bundle's manifest gives; no file is left out of the manifest.
        - It starts our own two apps.

    Raises:
        SettingError: Names what is wrong with it.
    """
    if len(content) > MAX_BUNDLE_BYTES:
        raise SettingError(f"bundle: {len(content)} bytes; expected at most {MAX_BUNDLE_BYTES}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_members(archive.infolist())
            files = {info.filename: archive.read(info) for info in archive.infolist()}
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, EOFError, OSError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"bundle: cannot be unpacked ({error}); fetch it again") from error
    _check_manifest(files)
    project = _read_project(files)
    return Bundle(
        sha256=hashlib.sha256(content).hexdigest(),
        version=str(project["project"]["version"]),
        files={path: files[path] for path in sorted(files) if path != _MANIFEST},
    )


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_FILES:
        raise SettingError(f"bundle: {len(members)} files; expected at most {MAX_FILES}")
    if (size := sum(member.file_size for member in members)) > MAX_UNPACKED_BYTES:
        raise SettingError(f"bundle: {size} bytes unpacked; expected at most {MAX_UNPACKED_BYTES}")
    seen: set[str] = set()
    for member in members:
        name = member.orig_filename
        if name != member.filename or not (name == _MANIFEST or _EXPECTED.fullmatch(name)):
            raise SettingError(f"bundle: holds {name!r}; expected Python of {list(_PACKAGES)}, studies/*.toml, LICENSE")
        if name.startswith(_OF_HOSTS) or name.count("/") > _MAX_DEPTH:
            raise SettingError(f"bundle: holds {name!r}, which is installed at a host and never comes in a bundle")
        mode = member.external_attr >> 16
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise SettingError(f"bundle: {name!r} is a link or another special file; expected regular files")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SettingError(f"bundle: {name!r} is packed in another way than Flower's; fetch the bundle again")
        if member.flag_bits & 1:
            raise SettingError(f"bundle: {name!r} is encrypted; expected a file that can be read")
        if name.lower() in seen:
            raise SettingError(f"bundle: holds {name!r} twice")
        seen.add(name.lower())


def _check_manifest(files: dict[str, bytes]) -> None:
    try:
        lines = [line.split(",") for line in files[_MANIFEST].decode().splitlines()]
        said = {path: found for path, found, _ in lines}
    except (KeyError, ValueError) as error:
        raise SettingError(f"bundle: {_MANIFEST} is missing, or cannot be read; fetch the bundle again") from error
    found = {path: hashlib.sha256(content).hexdigest() for path, content in files.items() if path != _MANIFEST}
    if said != found or len(lines) != len(said):
        odd = sorted(path for path in said.keys() | found.keys() if said.get(path) != found.get(path))
        raise SettingError(f"bundle: {_MANIFEST} does not fit {odd[:5]}; Flower did not build this bundle")


def _read_project(files: dict[str, bytes]) -> dict[str, Any]:
    try:
        project = tomllib.loads(files["pyproject.toml"].decode())
        apps = dict(project["tool"]["flwr"]["app"]["components"])
        name, _ = project["project"]["name"], project["project"]["version"]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise SettingError("bundle: pyproject.toml is missing, or misses what Flower needs") from error
    expected = {"serverapp": "fl_server.app:app", "clientapp": "fl_client.app:app"}
    if (name, apps) != ("consilium", expected):
        raise SettingError(f"bundle: {name!r} starts {apps}; expected 'consilium' and {expected}")
    return project
