"""Commands of ``fl-client`` for a hospital's node: enroll, join, start."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fl_client.exit_codes import exit_codes

NOT_ADMITTED = 3
SiteFile = Annotated[Path, typer.Argument(metavar="SITE", help="The hospital's site.toml.")]


def enroll(
    site: SiteFile,
    out: Annotated[
        Path | None, typer.Option(help="The request; <site>.request.json in this folder if not given.")
    ] = None,
    *,
    new_key: Annotated[
        bool,
        typer.Option("--new-key", help="Ask with a new key; the old one stays in use until the new one is joined."),
    ] = False,
) -> None:
    """Make this hospital's node key, and a request to take part in a federation."""
    from fl_client.node.enrolment import enroll

    with exit_codes():
        made = enroll(site, out, new_key=new_key)
    _say(f"Request of {made.site}: {made.request}")
    _say(f"Fingerprint of this node's key: {made.fingerprint}")
    _say("Next: send the request to the coordinator, and read the fingerprint out by telephone.")
    _say(f"Then: fl-client join {site} INVITATION.json")


def join(
    site: SiteFile,
    invitation: Annotated[Path, typer.Argument(help="What the coordinator sent back.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Check the coordinator's invitation against this hospital, show it, and store it."""
    from fl_client.node.enrolment import check_invitation, join

    with exit_codes():
        checked = check_invitation(site, invitation)
    _say(f"Federation:    {checked.invitation.federation}")
    _say(f"Coordinator:   {checked.invitation.address}")
    for authority in checked.authorities:
        _say(f"Its authority: SHA-256 {authority}")
    _say(f"Study lead:    {checked.lead}")
    if not yes:
        _say(
            "Compare both fingerprints with the coordinator by telephone: whoever holds the lead's key signs what runs."
        )
        typer.confirm("Are they the same?", abort=True)
    with exit_codes():
        join(site, checked)
    _say(f"Joined. Next: fl-client approve {site} BUNDLE.fab, then fl-client start {site}")


def start(site: SiteFile) -> None:
    """Run this hospital's node in the foreground, until Ctrl-C or SIGTERM.

    Ends with 0 when it was asked to, 1 when something failed, 2 if a setting is wrong, 3 if the coordinator does not
    take this node: it was not admitted, or it was expelled.
    """
    from fl_client.node.start import NotAdmittedError, check_ready, start

    code = 0
    with exit_codes():
        try:
            code = start(check_ready(site), _say)
        except NotAdmittedError as error:
            _say_error(error)
            code = NOT_ADMITTED
    if code:
        raise typer.Exit(code)


def _say(text: str) -> None:
    Console(markup=False, highlight=False, emoji=False).print(text, soft_wrap=True)


def _say_error(error: Exception) -> None:
    Console(stderr=True, markup=False, highlight=False, emoji=False).print(f"error: {error}", soft_wrap=True)
