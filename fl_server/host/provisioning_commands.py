"""The commands that make a federation and renew its certificates."""

from pathlib import Path
from typing import Annotated

import typer

from fl_contract.errors import SettingError
from fl_server.exit_codes import exit_codes, open_console

FolderOption = Annotated[Path, typer.Option("--folder", help="The federation's folder at the coordinator.")]
FOLDER = Path("federation")


def init(
    name: Annotated[str, typer.Option(help="Of the federation: lower-case letters, digits and hyphens.")],
    address: Annotated[str, typer.Option(help="DNS name or IP address by which hospitals reach this host.")],
    also: Annotated[
        list[str] | None, typer.Option(help="A further name or address for the certificate. Repeatable.")
    ] = None,
    bind: Annotated[str, typer.Option(help="Address that the hospitals' port listens on.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(help="Hospitals' port.")] = 8443,
    operator_port: Annotated[int, typer.Option(help="Port of 127.0.0.1 for fl-server and the executor.")] = 8444,
    folder: FolderOption = FOLDER,
) -> None:
    """Make a federation: its certificate authority, certificate, keys and settings, in a new folder.

    Exits with 2 when the folder is in use or a value is wrong.
    """
    from fl_server.host.authority import Authority, fingerprint_of
    from fl_server.host.federation import FederationFolder, FederationSettings
    from fl_server.host.lead import lead_fingerprint
    from fl_server.host.provisioning import NewFederation, make_federation

    console = open_console()
    with exit_codes():
        raw = {"name": name, "address": address, "bind": bind, "port": port, "operator-port": operator_port}
        settings = FederationSettings.parse(raw, origin="fl-server init")
        made = FederationFolder(folder)
        make_federation(made, NewFederation(settings=settings, also=tuple(also or ())))
        authority = Authority.read(made.authority_key.read_bytes(), made.authority_certificate.read_bytes())
        console.print(
            f"federation {name} in {folder}\n"
            f"authority  SHA-256 {fingerprint_of(authority.certificate)}\n"
            f"lead       {lead_fingerprint(made)}\n"
            f"hospitals  {address}:{port}\n\n"
            "next\n"
            f"  open port {port} of this host to the hospitals, and no other\n"
            f"  fl-server start --folder {folder}\n"
            f"  fl-server admit REQUEST.json --folder {folder}    once for each hospital\n"
            f"  fl-server bundle --folder {folder}    what hospitals approve before a run\n\n"
            "keep secret, and back up where nobody else can read\n"
            f"  {made.authority_key}    signs the coordinator's certificate; needed by renew only\n"
            f"  {made.lead_key}    signs bundles and orders; the study lead may keep it elsewhere: --lead-key\n"
            f"  {made.executor_secret}    between SuperLink and executor, on this host only",
            soft_wrap=True,
        )


def renew(
    authority: Annotated[bool, typer.Option("--authority", help="Replace the certificate authority too.")] = False,
    finish: Annotated[bool, typer.Option("--finish", help="With --authority: trust the new one alone.")] = False,
    folder: FolderOption = FOLDER,
) -> None:
    """Renew the coordinator's certificate; a running coordinator takes it up, and no run is lost.

    With --authority, change the certificate authority in two steps: hospitals have time for their new invitation.
    """
    from fl_server.host.authority import fingerprint_of
    from fl_server.host.federation import FederationFolder
    from fl_server.host.provisioning import begin_authority_change, finish_authority_change, renew_certificate

    console = open_console()
    with exit_codes():
        if finish and not authority:
            raise SettingError("--finish; expected together with --authority")
        federation = FederationFolder(folder)
        if not authority:
            certificate = renew_certificate(federation)
            console.print(f"new certificate, good until {certificate.not_valid_after_utc:%Y-%m-%d}", soft_wrap=True)
            return
        if finish:
            certificate = finish_authority_change(federation)
            console.print(
                f"the only authority is SHA256 {fingerprint_of(certificate)}\n"
                "a hospital that has not joined with its new invitation can no longer connect",
                soft_wrap=True,
            )
            return
        certificate = begin_authority_change(federation)
        console.print(
            f"new authority  SHA256 {fingerprint_of(certificate)}\n"
            "hospitals that know the old one alone are still served; running runs go on\n\n"
            "next\n"
            f"  fl-server admit REQUEST.json --folder {folder}    writes each hospital's new invitation\n"
            "  fl-client join SITE INVITATION.json    at each hospital, then restart fl-client start\n"
            "  restart fl-server start when no run goes on\n"
            f"  fl-server renew --authority --finish --folder {folder}",
            soft_wrap=True,
        )
