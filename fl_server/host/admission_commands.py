"""The commands that admit, list and expel hospitals."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_contract.errors import SettingError
from fl_server.exit_codes import exit_codes, open_console, print_columns
from fl_server.host.provisioning_commands import FOLDER, FolderOption

if TYPE_CHECKING:
    from fl_server.host.federation import FederationFolder

LeadKeyOption = Annotated[
    Path | None, typer.Option("--lead-key", help="The study lead's key, if it is not in the folder.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def admit(
    request: Annotated[Path, typer.Argument(help="What fl-client enroll wrote at the hospital.")],
    out: Annotated[
        Path | None, typer.Option(help="Invitation; by default <site>.invitation.json.", show_default=False)
    ] = None,
    yes: YesOption = False,
    folder: FolderOption = FOLDER,
    lead_key: LeadKeyOption = None,
) -> None:
    """Admit a hospital and write its invitation, which holds no secret.

    A hospital that is known gets a new invitation; with another key, the key before it no longer counts.
    """
    from fl_contract.enrolment import EnrolmentRequest
    from fl_host.outputs import check_output
    from fl_server.host.admission import admit, check_request, invite
    from fl_server.host.control import open_control
    from fl_server.host.federation import FederationFolder

    console = open_console()
    with exit_codes():
        federation = FederationFolder(folder)
        applicant = check_request(federation, EnrolmentRequest.read(request))
        path = out or Path(f"{applicant.site}.invitation.json")
        check_output(path)
        before = applicant.before
        if before is not None and applicant.change == "another key":
            _ask(
                f"{applicant.site} has the key {before.fingerprint}, admitted on {before.admitted_at}. "
                f"Replace it by {applicant.fingerprint}? Its running node is cut off.",
                yes,
            )
        if before is not None and applicant.change == "return":
            _ask(f"{applicant.site} was expelled on {before.expelled_at}. Admit it again?", yes)
        with open_control(federation, lead_key) as control:
            record = admit(federation, control, applicant)
        path.write_text(invite(federation, record).to_json(), encoding="utf-8")
        console.print(
            f"{record.site}  {applicant.change}\n"
            f"key         {record.fingerprint}; compare it with the hospital by telephone\n"
            f"{_to_compare(federation)}"
            f"invitation  {path}; hand it to the hospital: fl-client join SITE {path.name}",
            soft_wrap=True,
        )


def sites(folder: FolderOption = FOLDER, lead_key: LeadKeyOption = None) -> None:
    """List the hospitals that were admitted: whether they are online, and their keys."""
    from fl_server.host.admission import look_at_sites
    from fl_server.host.control import open_control
    from fl_server.host.federation import FederationFolder

    console = open_console()
    with exit_codes():
        federation = FederationFolder(folder)
        with open_control(federation, lead_key) as control:
            found = look_at_sites(federation, control)
        if not found:
            console.print("no hospital was admitted yet; admit one: fl-server admit REQUEST.json")
            return
        rows = [("site", "state", "last seen", "admitted", "node", "key")]
        for each in found:
            record = each.record
            seen = each.last_seen[:19] or "–"
            rows.append(
                (record.site, each.state, seen, record.admitted_at[:19], str(record.node_id), record.fingerprint)
            )
        print_columns(rows, console)


def expel(
    site: Annotated[str, typer.Argument(help="The hospital's name.")],
    yes: YesOption = False,
    folder: FolderOption = FOLDER,
    lead_key: LeadKeyOption = None,
) -> None:
    """Revoke a hospital's key: its node is cut off at once, and the key never counts again."""
    from fl_server.host.admission import expel
    from fl_server.host.control import open_control
    from fl_server.host.federation import FederationFolder

    console = open_console()
    with exit_codes():
        federation = FederationFolder(folder)
        _ask(f"Expel {site}? Its key can never come back.", yes)
        with open_control(federation, lead_key) as control:
            record = expel(federation, control, site)
        console.print(f"{record.site} was expelled; its record stays in {federation.sites}", soft_wrap=True)


def _to_compare(federation: "FederationFolder") -> str:
    """What fl-client join shows at the hospital."""
    from cryptography import x509

    from fl_server.host.authority import fingerprint_of
    from fl_server.host.lead import lead_fingerprint

    authorities = x509.load_pem_x509_certificates(federation.authority_certificate.read_bytes())
    told = [f"authority   SHA-256 {fingerprint_of(each)}; the hospital compares it, too\n" for each in authorities]
    return "".join([*told, f"lead        {lead_fingerprint(federation)}; and this\n"])


def _ask(question: str, yes: bool) -> None:
    if yes:
        return
    try:
        agreed = typer.confirm(question)
    except typer.Abort as error:
        raise SettingError(f"{question} Nobody answered; say it with --yes") from error
    if not agreed:
        raise SettingError("nothing was changed")
