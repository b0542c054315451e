"""The hospital's folder of its node: the only place that knows what lies where in it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NodeFolder:
    """Paths below ``node/``, beside ``site.toml``; all of it is its owner's alone.

    Attributes:
        root: The folder.
    """

    root: Path

    @classmethod
    def of(cls, site_file: Path) -> "NodeFolder":
        """The folder that belongs to a ``site.toml``."""
        return cls(site_file.resolve().parent / "node")

    @property
    def key(self) -> Path:
        """The node's private key, EC P-384, OpenSSH; the federation knows the hospital by it."""
        return self.root / "node.key"

    @property
    def public_key(self) -> Path:
        """The node's public key, OpenSSH, one line."""
        return self.root / "node.pub"

    @property
    def next_key(self) -> Path:
        """A private key that was asked for and not yet joined with."""
        return self.root / "next.key"

    @property
    def next_public_key(self) -> Path:
        """Its public key."""
        return self.root / "next.pub"

    @property
    def invitation(self) -> Path:
        """The coordinator's invitation, checked."""
        return self.root / "invitation.json"

    @property
    def authority(self) -> Path:
        """Certificates that the coordinator's own is checked against, PEM."""
        return self.root / "ca.crt"

    @property
    def executor_secret(self) -> Path:
        """Secret that SuperNode and executor share."""
        return self.root / "executor.secret"

    @property
    def flower_home(self) -> Path:
        """Flower's own folder, ``FLWR_HOME``; installed bundles lie in it."""
        return self.root / "flower"

    @property
    def logs(self) -> Path:
        """JSON lines of each process, rotated."""
        return self.root / "logs"

    @property
    def connection(self) -> Path:
        """What the SuperNode says of its connection, for ``fl-client start``: `CONNECTED`, or why it was refused."""
        return self.root / "connection"

    @property
    def lock(self) -> Path:
        """Locked while the node runs."""
        return self.root / "running.lock"


CONNECTED = "connected"
