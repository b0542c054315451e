"""The coordinator's bundle is the source tree's, and carries a signature that hospitals can check."""

import io
import zipfile
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from signed_bundles import LEAD, PYPROJECT, TREE
from typer.testing import CliRunner

from fl_contract.bundle_signature import BundleSignature, verify_bundle
from fl_contract.errors import RunError, SettingError
from fl_host.private_files import write_private
from fl_server.cli import app
from fl_server.host.bundle import build_and_sign
from fl_server.host.federation import FederationFolder
from fl_server.host.lead import read_lead_key


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small app that Flower makes a bundle of."""
    for name, content in TREE.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(content)
    return tmp_path / "tree"


@pytest.fixture
def lead_key(tmp_path: Path) -> Path:
    """The study lead's key, as ssh-keygen writes it."""
    path = tmp_path / "lead.key"
    write_private(path, LEAD.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return path


def test_a_tree_becomes_a_bundle_that_the_leads_public_key_accepts(tree: Path) -> None:
    content, signature = build_and_sign(tree, LEAD)

    verify_bundle(content, signature, LEAD.public_key())
    assert signature.version == "0.1.0"
    assert "fl_client/app.py" in zipfile.ZipFile(io.BytesIO(content)).namelist()


def test_the_same_tree_gives_the_same_hash(tree: Path) -> None:
    assert build_and_sign(tree, LEAD)[1].sha256 == build_and_sign(tree, LEAD)[1].sha256


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="built from a checkout"):
        build_and_sign(tmp_path / "nothing", LEAD)


def test_what_flower_refuses_is_said(tree: Path) -> None:
    (tree / "pyproject.toml").write_text(PYPROJECT.replace("fab-format-version = 1", 'fab-include = ["/absent/**"]'))

    with pytest.raises(RunError, match="Flower makes no bundle of it"):
        build_and_sign(tree, LEAD)


def test_a_key_that_cannot_sign_is_refused(tmp_path: Path) -> None:
    keys = {
        "absent": None,
        "text": b"no key",
        "curve": ec.generate_private_key(ec.SECP384R1()).private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        ),
    }
    rules = {"absent": "--lead-key", "text": "holds no OpenSSH", "curve": "Ed25519"}
    for name, content in keys.items():
        if content is not None:
            write_private(tmp_path / name, content)

        with pytest.raises(SettingError, match=rules[name]):
            read_lead_key(FederationFolder(tmp_path), tmp_path / name)


def test_a_key_that_others_may_read_is_refused(lead_key: Path) -> None:
    lead_key.chmod(0o644)

    with pytest.raises(SettingError, match="mode=0644"):
        read_lead_key(FederationFolder(lead_key.parent), lead_key)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.slow
def test_the_command_writes_bundle_and_signature_and_says_what_hospitals_must_compare(
    tmp_path: Path, lead_key: Path
) -> None:
    result = run("bundle", "--out", tmp_path / "dist", "--lead-key", lead_key)

    assert result.exit_code == 0, result.stderr
    (bundle,) = (tmp_path / "dist").glob("*.fab")
    signature = BundleSignature.read(bundle.with_name(f"{bundle.name}.sig"))
    verify_bundle(bundle.read_bytes(), signature, LEAD.public_key())
    assert bundle.name == f"consilium-{signature.version}-{signature.sha256[:8]}.fab"
    assert signature.sha256 in result.stdout
    assert "heart-disease" in result.stdout


def test_without_a_lead_key_the_command_says_where_it_looked(tmp_path: Path) -> None:
    result = run("bundle", "--folder", tmp_path / "federation")

    assert result.exit_code == 2
    assert str(tmp_path / "federation" / "lead" / "lead.key") in result.stderr.replace("\n", "")
