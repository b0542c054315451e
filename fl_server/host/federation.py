"""The coordinator's folder of one federation: the only place that knows what lies where in it."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from fl_contract.errors import SettingError
from fl_contract.settings import Settings, read_toml


class FederationSettings(Settings):
    """``federation.toml``, which ``fl-server init`` writes.

    Attributes:
        name: Of the federation, as hospitals see it.
        address: Name or IP address by which hospitals reach the coordinator; the first that the certificate holds.
        bind: Address that the hospitals' port listens on.
        port: Hospitals' port; answers Fleet requests and ``/health``, nothing else.
        operator_port: On 127.0.0.1: signed requests of the study lead, and the executor of server apps.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    address: str = Field(min_length=1)
    bind: str = "0.0.0.0"  # noqa: S104  # hospitals come from outside
    port: int = Field(default=8443, ge=1, le=65535)
    operator_port: int = Field(default=8444, ge=1, le=65535)


@dataclass(frozen=True)
class FederationFolder:
    """Paths below the coordinator's folder; all of it is its owner's alone.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def settings_file(self) -> Path:
        """``federation.toml``."""
        return self.root / "federation.toml"

    def settings(self) -> FederationSettings:
        """Read ``federation.toml``.

        Raises:
            SettingError: It is absent or breaks a rule.
        """
        if not self.settings_file.exists():
            raise SettingError(f"{self.settings_file}: is not there; make it: fl-server init, or name --folder")
        return FederationSettings.parse(read_toml(self.settings_file), origin=str(self.settings_file))

    @property
    def authority_key(self) -> Path:
        """Private key of the federation's certificate authority, PEM."""
        return self.root / "pki" / "ca.key"

    @property
    def authority_certificate(self) -> Path:
        """What hospitals and the executor trust: one authority's certificate, or two while one replaces another."""
        return self.root / "pki" / "ca.crt"

    @property
    def server_key(self) -> Path:
        """Private key of the coordinator's certificate, PEM."""
        return self.root / "pki" / "server.key"

    @property
    def server_certificate(self) -> Path:
        """The coordinator's certificate, PEM."""
        return self.root / "pki" / "server.crt"

    @property
    def lead_key(self) -> Path:
        """The study lead's private Ed25519 key, OpenSSH; signs bundles and requests. May be moved to the lead."""
        return self.root / "lead" / "lead.key"

    @property
    def lead_public_key(self) -> Path:
        """The study lead's public key, OpenSSH, one line."""
        return self.root / "lead" / "lead.pub"

    @property
    def executor_secret(self) -> Path:
        """Secret that SuperLink and executor share."""
        return self.root / "executor.secret"

    @property
    def database(self) -> Path:
        """SuperLink's state, SQLite."""
        return self.root / "state" / "superlink.db"

    @property
    def flower_home(self) -> Path:
        """Flower's own folder, ``FLWR_HOME``."""
        return self.root / "state" / "flower"

    @property
    def logs(self) -> Path:
        """JSON lines of each process, rotated."""
        return self.root / "logs"

    @property
    def sites(self) -> Path:
        """One JSON file for each admitted hospital, ``<name>.json``."""
        return self.root / "sites"

    @property
    def runs(self) -> Path:
        """Results, one folder a run."""
        return self.root / "runs"
