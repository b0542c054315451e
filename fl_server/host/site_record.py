"""What the coordinator keeps of each hospital: the only place that reads and writes ``sites/<name>.json``."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import Field

from fl_contract.errors import SettingError
from fl_contract.settings import Settings
from fl_host.private_files import write_private
from fl_server.host.federation import FederationFolder


class SiteRecord(Settings):
    """A hospital that was admitted.

    Attributes:
        site: Its name.
        node_id: Flower's, of the key that counts now.
        public_key: Of its node, OpenSSH, one line.
        fingerprint: Of that key, as ``ssh-keygen -l`` prints it.
        admitted_at: UTC, of that key.
        expelled_at: UTC; empty while the hospital takes part.
        burned_keys: Fingerprints of keys that it had before; Flower never takes one again.
    """

    site: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    node_id: int = Field(gt=0)
    public_key: str
    fingerprint: str
    admitted_at: str
    expelled_at: str = ""
    burned_keys: tuple[str, ...] = ()

    @property
    def is_expelled(self) -> bool:
        """Whether it takes part no longer."""
        return bool(self.expelled_at)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            SettingError: It is absent, damaged, or breaks a rule.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            raw["burned-keys"] = tuple(raw.get("burned-keys", ()))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise SettingError(f"{path}: cannot be read ({error}); restore it from a backup") from error
        return cls.parse(raw, origin=str(path))

    def write(self, folder: FederationFolder) -> None:
        """Write the record, durably."""
        text = json.dumps(self.model_dump(by_alias=True), indent=2) + "\n"
        write_private(folder.sites / f"{self.site}.json", text.encode())


def find_site(folder: FederationFolder, name: str) -> SiteRecord | None:
    """The record of a hospital; None if it was never admitted."""
    path = folder.sites / f"{name}.json"
    return SiteRecord.read(path) if path.exists() else None


def read_sites(folder: FederationFolder) -> list[SiteRecord]:
    """All records, by name."""
    return [SiteRecord.read(path) for path in sorted(folder.sites.glob("*.json"))]


def name_nodes(folder: FederationFolder, text: str) -> str:
    """A text in which hospitals are named where Flower's number of their node is all that a run knew."""
    names = {str(record.node_id): record.site for record in read_sites(folder)}
    return re.sub(r"\bnode (\d+)\b", lambda found: names.get(found[1], found[0]), text)


def utc_now() -> str:
    """For records."""
    return datetime.now(UTC).isoformat(timespec="seconds")
