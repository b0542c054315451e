"""Public data sets that a study names and that do not ship with a library: fetched once, checked byte by byte."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from fl_contract.errors import SettingError

CHUNK_BYTES = 1 << 16
TIMEOUT_SECONDS = 30.0

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease"


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a data set.

    Attributes:
        url: Where it is.
        num_bytes: Its size; nothing is read beyond it.
        sha256: Of its content.
    """

    url: str
    num_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Of the file on disk: the last part of the address."""
        return self.url.rpartition("/")[2]


DATA_SETS: dict[str, tuple[RemoteFile, ...]] = {
    "heart-disease": (
        RemoteFile(
            url=f"{_UCI}/processed.cleveland.data",
            num_bytes=18_461,
            sha256="a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
        ),
        RemoteFile(
            url=f"{_UCI}/processed.hungarian.data",
            num_bytes=10_263,
            sha256="d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
        ),
        RemoteFile(
            url=f"{_UCI}/processed.switzerland.data",
            num_bytes=4_109,
            sha256="834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
        ),
        RemoteFile(
            url=f"{_UCI}/processed.va.data",
            num_bytes=6_737,
            sha256="e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
        ),
    )
}
"""UCI Heart Disease, CC BY 4.0 (Janosi, Steinbrunn, Pfisterer and Detrano 1988)."""


def fetch(file: RemoteFile, folder: Path, on_bytes: Callable[[int], object] = lambda count: None) -> bool:
    """Bring a file of a data set into a folder, whole and right or not at all.

    Args:
        file: Which.
        folder: Is made if it is not there.
        on_bytes: Called with the number of bytes of each part, to show progress.

    Returns:
        Whether it was fetched; one that is there already and right is kept.

    Raises:
        SettingError: The file cannot be fetched, is not what it should be, or another one of its name is there.
    """
    path = folder / file.name
    if path.exists():
        if _digest(path.read_bytes()) != file.sha256:
            raise SettingError(f"{path}: is another file than {file.url}; move it away, or choose another folder")
        return False
    folder.mkdir(parents=True, exist_ok=True)
    content = _download(file, on_bytes)
    if (found := _digest(content)) != file.sha256:
        raise SettingError(
            f"{file.url}: {len(content)} bytes with SHA-256 {found}; expected {file.num_bytes} bytes with "
            f"{file.sha256}; nothing was kept"
        )
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as stream:
        stream.write(content)
        os.fsync(stream.fileno())
    partial.replace(path)
    return True


def _download(file: RemoteFile, on_bytes: Callable[[int], object]) -> bytes:
    parts, left = [], file.num_bytes + 1  # one more, so that a longer file is noticed
    try:
        with urlopen(file.url, timeout=TIMEOUT_SECONDS) as reply:  # noqa: S310  addresses stand in this file
            while left and (part := reply.read(min(CHUNK_BYTES, left))):
                parts.append(part)
                left -= len(part)
                on_bytes(len(part))
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise SettingError(
            f"{file.url}: cannot be fetched ({reason}); check the network, or put the file into the folder by hand"
        ) from error
    return b"".join(parts)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
