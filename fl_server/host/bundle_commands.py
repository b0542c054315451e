"""``fl-server bundle``, thin over `fl_server.host.bundle`."""

from pathlib import Path
from typing import Annotated

import typer


def bundle(
    out: Annotated[Path, typer.Option(help="Folder for the bundle and its signature.")] = Path("dist"),
    lead_key: Annotated[
        Path | None, typer.Option(help="The study lead's key; lead/lead.key of --folder if not given.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Of the federation.")] = Path("federation"),
) -> None:
    """Build what hospitals approve and run, and sign it with the study lead's key."""
    import io
    import zipfile

    from fl_server.exit_codes import exit_codes, open_console
    from fl_server.host.bundle import build_and_sign, write_bundle
    from fl_server.host.federation import FederationFolder
    from fl_server.host.lead import read_lead_key
    from fl_server.local_grid import PROJECT

    console = open_console()
    with exit_codes():
        content, signature = build_and_sign(PROJECT, read_lead_key(FederationFolder(folder), lead_key))
        path = write_bundle(content, signature, out)
        names = map(Path, zipfile.ZipFile(io.BytesIO(content)).namelist())
        studies = sorted(name.stem for name in names if name.parts[0] == "studies")
        lines = [
            f"bundle     {path}",
            f"signature  {path}.sig",
            f"sha256     {signature.sha256}",
            f"signed by  {signature.key}",
            f"studies    {', '.join(studies)}",
        ]
        console.print("\n".join(lines), soft_wrap=True)
