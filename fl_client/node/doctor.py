"""``fl-client doctor``: the only place that lists what has to be right at a hospital before it can take part."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from fl_client.node.node_folder import CONNECTED, NodeFolder
from fl_client.settings import SiteSettings, read_site_settings
from fl_contract.enrolment import Invitation
from fl_host.checks import SETTINGS, Finding, Question, failed, ok, warning
from fl_host.endpoint import Endpoint
from fl_host.listening import is_loopback, listening_addresses
from fl_host.machine_checks import (
    LOG_BYTES,
    check_disk,
    check_gpu,
    check_private_files,
    check_time_service,
    check_versions,
    folder_bytes,
)
from fl_host.network_checks import check_address, check_certificate, check_clock, check_route
from fl_host.running import is_locked

NUM_PROCESSES = 2
"""SuperNode and executor, each with logs of its own."""
LOW_BUDGET = 0.1
"""Share of the budget below which a person should look."""


@dataclass(frozen=True)
class HospitalDoctor:
    """What a doctor looks at, read when it is first needed.

    Attributes:
        site_file: The hospital's ``site.toml``.
        study: Whose records to check; None to see only whether the source opens.
    """

    site_file: Path
    study: str | None = None

    @cached_property
    def settings(self) -> SiteSettings:
        """The hospital's settings."""
        return read_site_settings(self.site_file)

    @cached_property
    def folder(self) -> Path:
        """That of ``site.toml``."""
        return self.site_file.resolve().parent

    @cached_property
    def node(self) -> NodeFolder:
        """The node's folder."""
        return NodeFolder.of(self.site_file)

    @cached_property
    def endpoint(self) -> Endpoint:
        """The coordinator, as the invitation and the settings say."""
        return Endpoint.parse(Invitation.read(self.node.invitation).address, self.settings.node.proxy)

    def questions(self) -> Iterator[Question]:
        """All checks, in the order in which one helps to understand the next."""
        yield Question(name=SETTINGS, ask=self._check_settings)
        yield Question(name="private files", ask=self._check_private, needs=(SETTINGS,))
        yield Question(name="node key", ask=self._check_key, needs=(SETTINGS,))
        yield Question(name="invitation", ask=self._check_invitation, needs=("node key",))
        yield from self._network_questions()
        yield Question(name="time service", ask=check_time_service)
        yield Question(name="versions", ask=check_versions)
        yield Question(name="disk", ask=self._check_disk, needs=(SETTINGS,))
        yield Question(name="GPU", ask=check_gpu)
        yield Question(name="data source", ask=self._check_source, needs=(SETTINGS,))
        yield Question(name="budget", ask=self._check_budget, needs=(SETTINGS,))
        yield Question(name="ledger", ask=self._check_ledger, needs=(SETTINGS,))
        yield Question(name="journal", ask=self._check_journal, needs=(SETTINGS,))
        yield Question(name="approvals", ask=self._check_approvals, needs=(SETTINGS,))
        yield Question(name="node", ask=self._check_node, needs=(SETTINGS,))

    def _network_questions(self) -> Iterator[Question]:
        def reached(check: str) -> Finding:
            checks = {
                "name": partial(check_address, self.endpoint),
                "route": partial(check_route, self.endpoint),
                "certificate": partial(check_certificate, self.endpoint, self.node.authority),
                "clock": partial(check_clock, self.endpoint, self.node.authority),
            }
            return checks[check]()

        yield Question(name="name", ask=partial(reached, "name"), needs=("invitation",))
        yield Question(name="route", ask=partial(reached, "route"), needs=("name",))
        yield Question(name="certificate", ask=partial(reached, "certificate"), needs=("route",))
        yield Question(name="clock", ask=partial(reached, "clock"), needs=("certificate",))
        yield Question(name="admitted", ask=self._check_registered, needs=("certificate", "node key"))

    def _check_settings(self) -> Finding:
        return ok(f"{self.site_file}: {self.settings.name}, source {self.settings.source.kind}")

    def _check_private(self) -> Finding:
        from fl_client.journal import JOURNAL_FILE
        from fl_client.site import LEDGER_FILE, receipt_path

        if not self.node.root.exists():
            return failed(f"{self.node.root} does not exist", f"fl-client enroll {self.site_file}")
        node, receipt = self.node, receipt_path(self.settings, self.folder)
        secrets = (node.root, node.key, node.next_key, node.executor_secret, node.logs)
        books = (self.folder / LEDGER_FILE, self.folder / JOURNAL_FILE, receipt)
        return check_private_files([*secrets, *books])

    def _check_key(self) -> Finding:
        from fl_client.node.node_keys import fingerprint, public_line, read_key

        if not self.node.key.exists():
            return failed(f"{self.node.key} does not exist", f"fl-client enroll {self.site_file}")
        return ok(f"EC P-384, {fingerprint(public_line(read_key(self.node.key)))}")

    def _check_invitation(self) -> Finding:
        from fl_client.node.enrolment import check_invitation

        advice = f"fl-client join {self.site_file} INVITATION.json, with the file that the coordinator sent"
        if not self.node.invitation.exists():
            return failed(f"{self.node.invitation} does not exist", advice)
        checked = check_invitation(self.site_file, self.node.invitation)
        invitation = checked.invitation
        if not self.node.authority.exists() or self.node.authority.read_text() != invitation.authority:
            return failed(f"{self.node.authority} is not what the invitation holds", advice)
        return ok(f"federation {invitation.federation} at {invitation.address}; study lead {checked.lead}")

    def _check_registered(self) -> Finding:
        from fl_client.node.registration import check_registered

        return check_registered(self.endpoint, self.node)

    def _check_disk(self) -> Finding:
        needed = NUM_PROCESSES * LOG_BYTES + folder_bytes(self.folder)
        return check_disk(self.folder, needed=needed, what="logs, and what was written so far once more,")

    def _check_source(self) -> Finding:
        if self.study is not None:
            return self._check_records(self.study)
        from fl_client.data.opening import check_opens

        return ok(check_opens(self.settings.source, self.folder) + "; --study NAME reads and checks the records")

    def _check_records(self, study: str) -> Finding:
        from fl_client.data_check import check_site
        from fl_client.site import Site
        from fl_contract.study_file import load_study

        weights = self.folder / self.settings.weights_folder
        opened = Site(settings=self.settings, folder=self.folder, study=load_study(study), weights=weights)
        report = check_site(opened)
        advice = f"fl-client check {self.site_file} --study {study} says more"
        if not report.is_ok:
            return failed("; ".join(problem.detail for problem in report.problems), advice)
        if report.warnings:
            return warning("; ".join(report.warnings), advice)
        return ok(f"the records fit {study}, and the policy admits it")

    def _check_budget(self) -> Finding:
        from fl_client.budget import read_budgets

        budgets = read_budgets(self.site_file)
        told = ", ".join(f"{each.cohort}: {each.remaining:.3f} of {each.budget:g} left" for each in budgets)
        low = [each.cohort for each in budgets if each.remaining < LOW_BUDGET * each.budget]
        if low:
            advice = "a round that does not fit is refused; the privacy officer decides on policy.epsilon-budget"
            return warning(f"ε {told}", advice)
        return ok(f"ε {told}")

    def _check_ledger(self) -> Finding:
        from fl_client.budget import verify_ledgers

        (state,) = verify_ledgers(self.site_file).values()
        return ok("none yet, nothing spent" if state is None else f"{state.num_rows} rows, last hash {state.last_hash}")

    def _check_journal(self) -> Finding:
        from fl_client.journal import Journal

        return ok(f"{len(Journal(self.folder).read())} entries, chain unbroken")

    def _check_approvals(self) -> Finding:
        from fl_client.node.approvals import Approvals

        last = Approvals(self.folder).last()
        if last is None:
            return failed("no bundle is approved", f"fl-client approve {self.site_file} BUNDLE.fab")
        return ok(f"last approved: {last.version}, SHA-256 {last.sha256}")

    def _check_node(self) -> Finding:
        port = self.settings.node.runtime_port
        is_running, addresses = is_locked(self.node.lock), listening_addresses(port)
        logs = f"look at {self.node.logs}"
        if exposed := [each for each in addresses if not is_loopback(each)]:
            advice = "nothing of a hospital's node may: end the program that listens there (ss -ltnp)"
            return failed(f"port {port} can be reached from outside, on {' and '.join(exposed)}", advice)
        if not is_running and addresses:
            return failed(f"port {port} is another program's", "set node.runtime-port in site.toml to a free one")
        if not is_running:
            return ok(f"does not run; port {port} is free")
        if not addresses:
            return warning(f"runs, but nothing listens on port {port} yet", f"{logs}; ask again in a minute")
        state = self.node.connection.read_text().strip() if self.node.connection.exists() else "not connected yet"
        return ok(f"runs, {state}") if state == CONNECTED else warning(f"runs: {state}", logs)
