"""``fl-client approve`` and ``fl-client approvals``, thin over `fl_client.node.approvals`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from fl_client.node.bundle_diff import FileChange
    from fl_client.node.bundle_file import Bundle
    from fl_contract.bundle_signature import BundleSignature

SiteFile = Annotated[Path, typer.Argument(metavar="SITE", help="The hospital's site.toml.")]


def approve(
    site: SiteFile,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE.fab", help="What the coordinator handed over.")],
    signature: Annotated[Path | None, typer.Option(help="The lead's signature; BUNDLE.fab.sig if not given.")] = None,
    by: Annotated[str | None, typer.Option(help="Who approves it; the name of this account if not given.")] = None,
    *,
    diff: Annotated[bool, typer.Option("--diff", help="Print every changed line.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Check a bundle's signature, show what it would do and what changed, and let it run here if you say so."""
    from fl_client.exit_codes import exit_codes
    from fl_client.node.approvals import Approvals
    from fl_client.node.bundle_diff import compare
    from fl_client.node.signed_bundle import open_signed_bundle

    with exit_codes():
        opened = open_signed_bundle(site, bundle, signature)
        approvals = Approvals(site.parent)
        if approvals.is_approved(opened.bundle.sha256):
            _say(f"{opened.bundle.sha256} is approved already: fl-client approvals {site}")
            return
        _show(opened.bundle, opened.signature)
        before, last = approvals.last_bundle(), approvals.last()
    if before is None and last is not None:
        _say("\nThe copy of the last approved bundle is gone: everything counts as new.")
    changes = compare({} if before is None else before.files, opened.bundle.files)
    _show_changes(changes, None if before is None else before.version, in_full=diff)
    if before is not None and not diff and not yes and sys.stdout.isatty():
        typer.echo_via_pager("".join(change.diff for change in changes))
    if not yes:
        _say("\nCompare the SHA-256 with the one that the coordinator reads out to you.")
        typer.confirm("Let this bundle run at this hospital?", abort=True)
    with exit_codes():
        approval = approvals.approve(opened.content, opened.signature, by=by or _account())
    _say(f"approved by {approval.approved_by}")
    _say(f"next, if the node does not run yet: fl-client start {site}")
    _say(f"to take it back: fl-client approvals {site} --withdraw {approval.sha256[:12]}")


def approvals(
    site: SiteFile,
    withdraw: Annotated[
        str | None, typer.Option(metavar="SHA256", help="Let this bundle run no longer; its first characters do.")
    ] = None,
) -> None:
    """List the bundles that may run at this hospital, or withdraw one."""
    from fl_client.exit_codes import exit_codes
    from fl_client.node.approvals import Approvals
    from fl_client.settings import read_site_settings

    with exit_codes():
        read_site_settings(site)
        held = Approvals(site.parent)
        if withdraw is not None:
            _say(f"withdrawn: {held.withdraw(withdraw).sha256}")
        found = held.list()
    for approval in found:
        _say(
            f"{approval.sha256}\n  version {approval.version}, signed {approval.signed_at} by {approval.key}\n"
            f"  approved {approval.approved_at} by {approval.approved_by}"
        )
    if not found:
        _say("no bundle is approved: none runs here")


def _show(bundle: "Bundle", signature: "BundleSignature") -> None:
    from fl_client.node.study_words import study_in_words

    _say(f"sha256     {bundle.sha256}\nversion    {bundle.version}, {len(bundle.files)} files")
    _say(f"signed by  {signature.key}, the study lead of this hospital's invitation\nsigned at  {signature.signed_at}")
    for name, toml in bundle.studies.items():
        first, *rest = study_in_words(name, toml)
        _say("\n" + "\n".join([first, *(f"  {line}" for line in rest)]))


def _show_changes(changes: "list[FileChange]", version: str | None, *, in_full: bool) -> None:
    if version is None:
        lines = sum(change.lines_added for change in changes)
        _say(f"\nFirst bundle here: all {len(changes)} files, {lines} lines, are new; --diff prints them.")
    else:
        _say(f"\nSince the last approved bundle, version {version}: {len(changes)} files differ.")
        for change in changes:
            _say(f"  {change.kind:8} {change.path}  +{change.lines_added} -{change.lines_removed}")
    if in_full:
        _say("\n" + "".join(change.diff for change in changes))


def _account() -> str:
    import getpass
    import os

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return f"user {os.getuid()}"


def _say(text: str) -> None:
    Console(markup=False, highlight=False, emoji=False).print(text, soft_wrap=True)
