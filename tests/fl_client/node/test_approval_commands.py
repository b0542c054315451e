"""``fl-client approve`` lets in what the study lead signed, after it was shown and said yes to; nothing of it runs."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from signed_bundles import PYPROJECT, TREE, build, pack, write_invitation, write_signed
from typer.testing import CliRunner

from fl_client.cli import app
from fl_client.journal import APPROVAL, WITHDRAWAL, Journal
from fl_client.node.approvals import Approvals

NEXT = {"fl_server/app.py": b"app = 2\n", "fl_server/new.py": b"x = '\x1b[2K'\n", "fl_client/__init__.py": None}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command, with answers to what it asks."""
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *words, answer=None: CliRunner().invoke(app, [str(word) for word in words], input=answer)


@pytest.fixture
def site(write_site_file: Callable[..., Path]) -> Path:
    """The file of a hospital that joined a federation."""
    path = write_site_file()
    write_invitation(path)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that the lead signed."""
    return write_signed(tmp_path / "consilium-0.1.0-aa.fab", build())


def test_a_signed_bundle_is_shown_and_approved(run: Callable[..., Result], site: Path, bundle: Path) -> None:
    result = run("approve", site, bundle, "--by", "officer A", answer="y\n")

    assert result.exit_code == 0, result.output
    (approval,) = Approvals(site.parent).list()
    shown = (approval.sha256, approval.key, "2026-11-29T12:00:00Z", "version    0.1.0", "all 6 files", "heart-disease:")
    assert [words for words in shown if words not in result.output] == []
    assert approval.approved_by == "officer A"
    assert [entry.kind for entry in Journal(site.parent).read()] == [APPROVAL]


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_without_a_yes_nothing_is_approved(run: Callable[..., Result], site: Path, bundle: Path, answer: str) -> None:
    result = run("approve", site, bundle, answer=answer)

    assert result.exit_code == 1
    assert Approvals(site.parent).list() == ()
    assert Journal(site.parent).read() == []


def test_what_changed_since_the_last_approved_bundle_is_shown(
    run: Callable[..., Result], site: Path, bundle: Path, tmp_path: Path
) -> None:
    run("approve", site, bundle, "--yes")
    following = write_signed(tmp_path / "next.fab", build(**NEXT))

    brief = run("approve", site, following, answer="n\n").output
    full = run("approve", site, following, "--diff", answer="n\n").output

    assert "version 0.1.0: 3 files differ" in brief
    for line in (
        "removed  fl_client/__init__.py  +0 -0",
        "changed  fl_server/app.py  +1 -1",
        "added    fl_server/new.py",
    ):
        assert line in brief
    assert "+app = 2" not in brief
    assert "-app = 1\n+app = 2\n" in full
    assert "+x = '\\x1b[2K'" in full
    assert "\x1b[2K" not in full


@pytest.mark.slow
def test_on_a_terminal_the_changed_lines_open_in_a_pager(
    run: Callable[..., Result], site: Path, bundle: Path, tmp_path: Path
) -> None:
    run("approve", site, bundle, "--yes")
    following = write_signed(tmp_path / "next.fab", build(**NEXT))
    ours, theirs = pty.openpty()
    command = [str(word) for word in (Path(sys.executable).with_name("fl-client"), "approve", site, following)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "PAGER": "cat"}
    ) as process:
        os.close(theirs)
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(ours, 65536)
        os.write(ours, b"y\n")
        process.wait(timeout=60)
    os.close(ours)

    assert process.returncode == 0
    assert b"+app = 2" in shown
    assert len(Approvals(site.parent).list()) == 2


def test_a_bundle_that_is_approved_is_not_asked_for_again(run: Callable[..., Result], site: Path, bundle: Path) -> None:
    run("approve", site, bundle, "--yes", "--by", "officer A")

    result = run("approve", site, bundle, "--yes", "--by", "officer B")

    assert result.exit_code == 0
    assert "approved already" in result.output
    assert [approval.approved_by for approval in Approvals(site.parent).list()] == ["officer A"]


def test_a_hospital_without_an_invitation_is_told_what_to_do(
    run: Callable[..., Result], write_site_file: Callable[..., Path], bundle: Path
) -> None:
    result = run("approve", write_site_file("st-barbara"), bundle, "--yes")

    assert result.exit_code == 2
    assert "fl-client join" in result.stderr


def _unsigned(bundle: Path) -> None:
    bundle.with_name(f"{bundle.name}.sig").unlink()


def _altered(bundle: Path) -> None:
    bundle.write_bytes(build(**{"fl_server/app.py": b"app = 6\n"}))


def _of_somebody_else(bundle: Path) -> None:
    write_signed(bundle, build(), key=Ed25519PrivateKey.generate())


def _of_another_version(bundle: Path) -> None:
    write_signed(bundle, build(**{"pyproject.toml": PYPROJECT.replace("0.1.0", "0.2.0").encode()}))


def _with_host_code(bundle: Path) -> None:
    write_signed(bundle, pack({**TREE, "fl_client/node/approvals.py": b""}))


def _too_large(bundle: Path) -> None:
    write_signed(bundle, bytes(10 * 1024 * 1024 + 2))


def _absent(bundle: Path) -> None:
    bundle.unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_unsigned, ".sig: is not there"),
        (_altered, "not the one that was signed"),
        (_of_somebody_else, "signed by somebody else"),
        (_of_another_version, "the signature says '0.1.0'"),
        (_with_host_code, "installed at a host"),
        (_too_large, "sha256="),
        (_absent, "cannot be read"),
    ],
)
def test_anything_else_is_refused_and_nothing_is_stored(
    run: Callable[..., Result], site: Path, bundle: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(bundle)

    result = run("approve", site, bundle, "--yes")

    assert result.exit_code == 2
    assert reason in result.stderr
    assert sorted(path.name for path in (site.parent / "node").iterdir()) == ["invitation.json"]


def test_a_signature_of_another_name_can_be_given(
    run: Callable[..., Result], site: Path, bundle: Path, tmp_path: Path
) -> None:
    bundle.with_name(f"{bundle.name}.sig").rename(tmp_path / "signature.json")

    assert run("approve", site, bundle, "--signature", tmp_path / "signature.json", "--yes").exit_code == 0


def test_approvals_are_listed_and_withdrawn(run: Callable[..., Result], site: Path, bundle: Path) -> None:
    assert "none runs here" in run("approvals", site).output
    run("approve", site, bundle, "--yes", "--by", "officer A [Privacy]")
    (approval,) = Approvals(site.parent).list()

    listed = run("approvals", site).output
    result = run("approvals", site, "--withdraw", approval.sha256[:10])

    assert approval.sha256 in listed
    assert "by officer A [Privacy]" in listed
    assert result.exit_code == 0
    assert "none runs here" in result.output
    assert [entry.kind for entry in Journal(site.parent).read()] == [APPROVAL, WITHDRAWAL]
    assert run("approvals", site, "--withdraw", approval.sha256[:10]).exit_code == 2
