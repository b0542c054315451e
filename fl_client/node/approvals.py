"""Which bundles a hospital runs: the only place that stores approvals, ``node/approvals.json``."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fl_client.journal import APPROVAL, WITHDRAWAL, Journal
from fl_client.node.bundle_file import Bundle, read_bundle
from fl_contract.bundle_signature import BundleSignature
from fl_contract.errors import SettingError
from fl_contract.settings import Settings
from fl_host.private_files import check_private, make_private_folder, write_private


class Approval(Settings):
    """A bundle that the hospital runs.

    Attributes:
        sha256: Of the bundle's bytes, hexadecimal.
        version: Of Consilium in it.
        signed_at: When the study lead signed it, by the lead's clock, UTC.
        key: Fingerprint of the lead's key.
        approved_at: By this host's clock, UTC.
        approved_by: The person who did, as they named themselves.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    version: str = Field(min_length=1)
    signed_at: str = Field(min_length=1)
    key: str = Field(min_length=1)
    approved_at: str = Field(min_length=1)
    approved_by: str = Field(min_length=1)


class _ApprovalFile(Settings):
    approvals: Annotated[tuple[Approval, ...], Field(strict=False)]


class Approvals:
    """The bundles that a hospital runs, in the order in which it approved them.

    Args:
        folder: That of the hospital's ``site.toml``.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder / "node"
        self._path = self._root / "approvals.json"
        self._bundles = self._root / "bundles"
        self._journal = Journal(folder)

    def is_approved(self, sha256: str) -> bool:
        """Whether a bundle with this SHA-256 may run.

        Raises:
            SettingError: The approvals cannot be trusted: damaged, or open to others. Nothing is approved then.
        """
        return any(approval.sha256 == sha256 for approval in self.list())

    def list(self) -> tuple[Approval, ...]:
        """All approvals, oldest first.

        Raises:
            SettingError: They cannot be trusted.
        """
        if not self._root.exists():
            return ()
        check_private(self._root)
        if not self._path.exists():
            return ()
        check_private(self._path)
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SettingError(
                f"{self._path}: cannot be read; nothing is approved; remove it and approve again"
            ) from error
        if not isinstance(raw, dict):
            raise SettingError(f"{self._path}: holds no table; nothing is approved; remove it and approve again")
        return _ApprovalFile.parse(raw, origin=str(self._path)).approvals

    def last(self) -> Approval | None:
        """The one that was approved last; None if there is none."""
        approvals = self.list()
        return approvals[-1] if approvals else None

    def last_bundle(self) -> Bundle | None:
        """What was approved last, to compare with; None if there is none, or its copy is gone or another one."""
        if (last := self.last()) is None:
            return None
        try:
            kept = read_bundle((self._bundles / f"{last.sha256}.fab").read_bytes())
        except (OSError, SettingError):
            return None
        return kept if kept.sha256 == last.sha256 else None

    def approve(self, content: bytes, signature: BundleSignature, *, by: str) -> Approval:
        """Let a bundle run from now on, and keep a copy of it.

        Whose signature it is, and whether the bundle is sane, was checked before. The journal says so before the
        approval holds: if it cannot be written, nothing is approved.

        Args:
            content: The bundle.
            signature: The lead's.
            by: Who approves it.
        """
        make_private_folder(self._bundles)
        with self._locked():
            others = tuple(approval for approval in self.list() if approval.sha256 != signature.sha256)
            raw = {
                "sha256": signature.sha256,
                "version": signature.version,
                "signed-at": signature.signed_at,
                "key": signature.key,
                "approved-at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "approved-by": by,
            }
            approval = Approval.parse(raw, origin="approval")
            write_private(self._bundles / f"{approval.sha256}.fab", content)
            self._journal.append(
                APPROVAL,
                sha256=approval.sha256,
                version=approval.version,
                bytes=len(content),
                key=approval.key,
                by=by,
                **{"signed-at": approval.signed_at},
            )
            self._write((*others, approval))
        return approval

    def withdraw(self, sha256: str) -> Approval:
        """Let a bundle run no longer; it holds before the journal says so.

        Args:
            sha256: Of the bundle, or how it begins.

        Raises:
            SettingError: No approved bundle begins so, or several do.
        """
        with self._locked():
            approvals = self.list()
            found = [approval for approval in approvals if sha256 and approval.sha256.startswith(sha256.lower())]
            if len(found) != 1:
                known = [approval.sha256[:12] for approval in approvals]
                raise SettingError(f"sha256={sha256!r}; fits {len(found)} approvals; expected one of {known}")
            self._write(tuple(approval for approval in approvals if approval != found[0]))
            self._journal.append(WITHDRAWAL, sha256=found[0].sha256, version=found[0].version)
        return found[0]

    def _write(self, approvals: tuple[Approval, ...]) -> None:
        held = _ApprovalFile(approvals=approvals).model_dump(by_alias=True, mode="json")
        write_private(self._path, (json.dumps(held, indent=2) + "\n").encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes out between reading and writing; a crash lets go of it."""
        make_private_folder(self._root)
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
