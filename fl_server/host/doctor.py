"""``fl-server doctor``: the only place that lists what has to be right at a coordinator."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography import x509

from fl_host.checks import SETTINGS, Finding, Question, Status, failed, ok, skipped, warning
from fl_host.endpoint import Endpoint
from fl_host.listening import is_loopback, listening_addresses
from fl_host.machine_checks import (
    LOG_BYTES,
    check_disk,
    check_private_files,
    check_time_service,
    check_versions,
    folder_bytes,
)
from fl_host.network_checks import certificate_names, check_address, check_certificate, check_expiry
from fl_host.running import has_process, is_locked
from fl_server.host.database_check import check_database, online_sites
from fl_server.host.federation import FederationFolder, FederationSettings
from fl_server.host.lead import read_trusted_leads
from fl_server.host.provisioning import lock_file
from fl_server.host.site_record import read_sites

NUM_PROCESSES = 3
"""Supervisor with SuperLink and guard, executor, server app: each with logs of its own."""
LOOPBACK = "127.0.0.1"
ANYWHERE = {"0.0.0.0", "::"}  # noqa: S104  # compared with, not bound to
FORBIDDEN, UNAUTHORIZED, FOUND = 403, 401, 200
CONTROL_PATH = "/v1/control/list-runs"
RUNS = "running"


@dataclass(frozen=True)
class CoordinatorDoctor:
    """What a doctor looks at, read when it is first needed.

    Attributes:
        root: The federation's folder.
    """

    root: Path

    @cached_property
    def folder(self) -> FederationFolder:
        """Paths in it."""
        return FederationFolder(self.root.resolve())

    @cached_property
    def settings(self) -> FederationSettings:
        """``federation.toml``."""
        return self.folder.settings()

    @cached_property
    def public(self) -> Endpoint:
        """The hospitals' port, asked from this host under the name that hospitals use."""
        bind = self.settings.bind
        return Endpoint(host=self.settings.address, port=self.settings.port, at=LOOPBACK if bind in ANYWHERE else bind)

    @cached_property
    def operator(self) -> Endpoint:
        """The operators' port."""
        return Endpoint(host=LOOPBACK, port=self.settings.operator_port)

    def questions(self) -> Iterator[Question]:
        """All checks, in the order in which one helps to understand the next."""
        yield Question(name=SETTINGS, ask=self._check_settings)
        yield Question(name="private files", ask=self._check_private, needs=(SETTINGS,))
        yield Question(name="certificate", ask=self._check_certificate, needs=(SETTINGS,))
        yield Question(name="authority", ask=self._check_authority, needs=(SETTINGS,))
        yield Question(name="lead key", ask=self._check_lead, needs=(SETTINGS,))
        yield Question(name="address", ask=lambda: check_address(self._by_name()), needs=(SETTINGS,))
        yield Question(name=RUNS, ask=self._check_running, needs=(SETTINGS,))
        yield Question(name="ports", ask=self._check_ports, needs=(SETTINGS,))
        yield Question(name="hospitals' port", ask=self._check_public, needs=("ports",))
        yield Question(name="operators' port", ask=self._check_operator, needs=("ports",))
        yield Question(name="database", ask=lambda: check_database(self.folder.database), needs=(SETTINGS,))
        yield Question(name="sites", ask=self._check_sites, needs=("database",))
        yield Question(name="disk", ask=self._check_disk, needs=(SETTINGS,))
        yield Question(name="time service", ask=check_time_service)
        yield Question(name="versions", ask=check_versions)

    def _by_name(self) -> Endpoint:
        return Endpoint(host=self.settings.address, port=self.settings.port)

    def _check_settings(self) -> Finding:
        settings = self.settings
        return ok(f"{self.folder.settings_file}: {settings.name} at {settings.address}:{settings.port}")

    def _check_private(self) -> Finding:
        folder = self.folder
        folders = (folder.root, folder.logs, folder.sites, folder.runs, folder.flower_home)
        secrets = (folder.authority_key, folder.server_key, folder.lead_key, folder.executor_secret)
        parents = [path.parent for path in secrets]
        return check_private_files(dict.fromkeys([*folders, *parents, *secrets, folder.database]))

    def _check_certificate(self) -> Finding:
        certificate = x509.load_pem_x509_certificate(self.folder.server_certificate.read_bytes())
        names = certificate_names(certificate)
        if self.settings.address not in names:
            return failed(
                f"it is for {', '.join(names)}, not for {self.settings.address}, which federation.toml gives hospitals",
                "set address in federation.toml to one of these names",
            )
        return check_expiry(certificate, f"for {', '.join(names)}")

    def _check_authority(self) -> Finding:
        found = x509.load_pem_x509_certificates(self.folder.authority_certificate.read_bytes())
        newest = max(found, key=lambda certificate: certificate.not_valid_after_utc)
        told = "one authority"
        if len(found) > 1:
            told = "two, while one replaces the other: finish with fl-server renew --authority --finish"
        return check_expiry(newest, told, renew="at the coordinator: fl-server renew --authority")

    def _check_lead(self) -> Finding:
        leads = read_trusted_leads(self.folder)
        if not leads:
            return failed(
                f"{self.folder.lead_public_key.parent} holds no public key of a study lead",
                "restore lead.pub from backup",
            )
        place = "here, its owner's alone" if self.folder.lead_key.exists() else "kept elsewhere"
        return ok(f"{len(leads)} may give orders; private key {place}")

    def _check_running(self) -> Finding:
        if not is_locked(lock_file(self.folder)):
            return ok("fl-server start does not run in this folder")
        processes = {
            "the SuperLink": ("fl_server.host.superlink", str(self.folder.root)),
            "the executor": ("fl_server.host.executor", str(self.folder.root)),
        }
        missing = [name for name, words in processes.items() if not has_process(words)]
        if missing:
            return failed(
                f"fl-server start runs, but {' and '.join(missing)} does not",
                f"it is started again by itself; if not within a minute, look at {self.folder.logs}",
            )
        return ok(f"fl-server start runs, with {' and '.join(processes)}")

    def _check_ports(self) -> Finding:
        settings = self.settings
        found = {port: listening_addresses(port) for port in (settings.port, settings.operator_port)}
        is_running = is_locked(lock_file(self.folder))
        told = ", ".join(f"{port} on {' and '.join(addresses) or 'nothing'}" for port, addresses in found.items())
        if not is_running:
            if any(found.values()):
                return failed(f"taken by another program: {told}", "end it, or set other ports in federation.toml")
            return skipped("free; fl-server start will listen on them")
        if exposed := [each for each in found[settings.operator_port] if not is_loopback(each)]:
            return failed(
                f"the operators' port can be reached from outside, on {' and '.join(exposed)}",
                "stop the coordinator: whoever reaches this port can try to give orders; find what listens there",
            )
        if not all(found.values()):
            return failed(f"listens: {told}", f"wait a minute if it just started; look at {self.folder.logs}")
        return ok(f"listens: {told}")

    def _check_public(self) -> Finding:
        shown = check_certificate(self.public, self.folder.authority_certificate)
        if shown.status not in (Status.OK, Status.WARNING):
            return shown
        health = self.public.ask(self.folder.authority_certificate, "/health")
        control = self.public.ask(self.folder.authority_certificate, CONTROL_PATH, method="POST")
        told = f"/health answers {health.status}, {CONTROL_PATH} {control.status}"
        if control.status != FORBIDDEN:
            return failed(
                f"{told}; expected {FORBIDDEN} for the latter",
                "stop the coordinator: another program than fl-server start answers here, without its guard",
            )
        if health.status != FOUND:
            return failed(told, f"the SuperLink is not well; look at {self.folder.logs}")
        return ok(told)

    def _check_operator(self) -> Finding:
        unsigned = self.operator.ask(self.folder.authority_certificate, CONTROL_PATH, method="POST")
        told = f"on {LOOPBACK} only; an unsigned order is answered {unsigned.status}"
        if unsigned.status != UNAUTHORIZED:
            return failed(f"{told}; expected {UNAUTHORIZED}", "stop the coordinator: its guard does not work")
        return ok(told)

    def _check_sites(self) -> Finding:
        records = read_sites(self.folder)
        if not records:
            return ok("none admitted yet")
        admitted = [record.site for record in records if not record.is_expelled]
        online = online_sites(self.folder.database)
        away = [name for name in admitted if not online.get(name)]
        told = f"{len(admitted)} admitted, {len(admitted) - len(away)} online"
        if away and is_locked(lock_file(self.folder)):
            return warning(f"{told}; not online: {', '.join(away)}", "ask these hospitals to run fl-client doctor")
        return ok(told)

    def _check_disk(self) -> Finding:
        runs = [folder_bytes(run) for run in self.folder.runs.iterdir()] if self.folder.runs.exists() else []
        database = self.folder.database.stat().st_size if self.folder.database.exists() else 0
        needed = NUM_PROCESSES * LOG_BYTES + database + max(runs, default=0)
        return check_disk(self.folder.root, needed=needed, what="logs, the database and one more run like the largest")
