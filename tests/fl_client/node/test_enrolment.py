"""A hospital's key is made once and never lost; an invitation that does not fit it exactly is not stored."""

import base64
import datetime
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import ssh
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from fl_client.cli import app
from fl_client.node.enrolment import check_invitation, enroll, join
from fl_client.node.node_folder import NodeFolder
from fl_contract.enrolment import EnrolmentRequest, Invitation
from fl_contract.errors import SettingError


def lead_line() -> str:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def certificate(*, is_authority: bool = True, days: int = 10, since: int = -1) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cardio authority")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now + datetime.timedelta(days=since))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM).decode()


def hidden_authority() -> str:
    """A block that OpenSSL trusts as an authority, and that other readers of PEM pass over."""
    made = subprocess.run(
        ["openssl", "x509", "-trustout"], input=certificate(), check=True, capture_output=True, text=True
    ).stdout
    assert made.startswith("-----BEGIN TRUSTED CERTIFICATE-----")
    return made


@pytest.fixture
def site_file(write_site_file: Callable[..., Path]) -> Path:
    return write_site_file("st-anna")


@pytest.fixture
def invite(site_file: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the coordinator's answer to this hospital's request."""

    def invite(**changes: str) -> Path:
        fields = {
            "federation": "cardio",
            "site": "st-anna",
            "address": "fl.example.org:8443",
            "authority": certificate(),
            "lead-public-key": lead_line(),
            "node-key": "SHA256:" + "A" * 43,
        }
        path = tmp_path / "invitation.json"
        path.write_text(Invitation.parse({**fields, **changes}, origin="test").to_json(), encoding="utf-8")
        return path

    return invite


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_key_is_private_and_the_request_is_signed_with_it(site_file: Path, tmp_path: Path) -> None:
    made = enroll(site_file, tmp_path / "asked.json")

    folder, request = NodeFolder.of(site_file), EnrolmentRequest.read(made.request)
    assert (mode(folder.root), mode(folder.key)) == (0o700, 0o600)
    assert "PRIVATE" not in made.request.read_text(encoding="utf-8")
    key = ssh.load_ssh_public_key(request.public_key.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    signed = EnrolmentRequest.signed_text("st-anna", request.public_key)
    key.verify(base64.b64decode(request.signature), signed, ec.ECDSA(hashes.SHA384()))  # raises if it is not right


def test_the_fingerprint_is_the_one_that_ssh_keygen_shows(site_file: Path, tmp_path: Path) -> None:
    made = enroll(site_file, tmp_path / "asked.json")

    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", NodeFolder.of(site_file).public_key], check=True, capture_output=True, text=True
    ).stdout
    assert made.fingerprint == shown.split()[1]


def test_asking_again_keeps_the_key(site_file: Path, tmp_path: Path) -> None:
    first = enroll(site_file, tmp_path / "first.json")

    second = enroll(site_file, tmp_path / "second.json")

    assert first.fingerprint == second.fingerprint


def test_a_new_key_is_used_from_the_moment_that_it_is_joined_with(
    site_file: Path, invite: Callable[..., Path], tmp_path: Path
) -> None:
    folder = NodeFolder.of(site_file)
    old = enroll(site_file, tmp_path / "old.json")
    kept = folder.key.read_bytes()

    new = enroll(site_file, tmp_path / "new.json", new_key=True)
    again = enroll(site_file, tmp_path / "again.json", new_key=True)
    before_joined = folder.key.read_bytes()
    join(site_file, check_invitation(site_file, invite(**{"node-key": new.fingerprint})))

    assert old.fingerprint != new.fingerprint == again.fingerprint
    assert before_joined == kept != folder.key.read_bytes()
    assert not folder.next_key.exists()
    assert enroll(site_file, tmp_path / "after.json").fingerprint == new.fingerprint


def test_an_invitation_to_the_old_key_leaves_the_new_one_waiting(
    site_file: Path, invite: Callable[..., Path], tmp_path: Path
) -> None:
    old = enroll(site_file, tmp_path / "old.json")
    enroll(site_file, tmp_path / "new.json", new_key=True)

    join(site_file, check_invitation(site_file, invite(**{"node-key": old.fingerprint})))

    assert NodeFolder.of(site_file).next_key.exists()


def test_an_invitation_is_stored_for_its_owner_alone(
    site_file: Path, invite: Callable[..., Path], tmp_path: Path
) -> None:
    made = enroll(site_file, tmp_path / "asked.json")
    path = invite(**{"node-key": made.fingerprint})

    join(site_file, check_invitation(site_file, path))

    folder = NodeFolder.of(site_file)
    assert folder.invitation.read_bytes() == path.read_bytes()
    assert folder.authority.read_text(encoding="utf-8") == Invitation.read(path).authority
    assert mode(folder.invitation) == mode(folder.authority) == 0o600


def test_while_one_authority_replaces_another_both_are_shown(
    site_file: Path, invite: Callable[..., Path], tmp_path: Path
) -> None:
    made = enroll(site_file, tmp_path / "asked.json")

    checked = check_invitation(
        site_file, invite(**{"node-key": made.fingerprint, "authority": certificate() + certificate()})
    )

    assert len(set(checked.authorities)) == 2


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"site": "st-josef"}, "another hospital than 'st-anna'"),
        ({"node-key": "SHA256:" + "B" * 43}, "for another key"),
        ({"authority": "no certificate"}, "no PEM certificate"),
        ({"authority": certificate(is_authority=False)}, "no certificate authority"),
        ({"authority": certificate() + hidden_authority()}, "something beside PEM certificates"),
        ({"authority": "by telephone: yes\n" + certificate()}, "something beside PEM certificates"),
        ({"authority": certificate(since=-3, days=-1)}, "check this host's clock"),
        ({"authority": certificate(since=1)}, "check this host's clock"),
        ({"authority": certificate() + certificate(days=-1, since=-2)}, "check this host's clock"),
        ({"lead-public-key": "ssh-ed25519 AAAA"}, "lead-public-key: is no OpenSSH"),
        (
            {"lead-public-key": "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBA=="},
            "lead-public-key: is no",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_an_invitation_that_does_not_fit_is_not_stored(
    site_file: Path, invite: Callable[..., Path], tmp_path: Path, changes: dict[str, str], rule: str
) -> None:
    made = enroll(site_file, tmp_path / "asked.json")

    with pytest.raises(SettingError, match=rule):
        check_invitation(site_file, invite(**{"node-key": made.fingerprint, **changes}))

    assert not NodeFolder.of(site_file).invitation.exists()


def test_a_key_that_others_may_read_is_not_used(site_file: Path, tmp_path: Path) -> None:
    enroll(site_file, tmp_path / "asked.json")
    NodeFolder.of(site_file).key.chmod(0o640)

    with pytest.raises(SettingError, match="mode=0640"):
        enroll(site_file, tmp_path / "again.json")


def test_join_shows_what_to_compare_and_stores_nothing_when_it_is_not_the_same(
    site_file: Path, invite: Callable[..., Path], tmp_path: Path
) -> None:
    made = enroll(site_file, tmp_path / "asked.json")
    path = invite(**{"node-key": made.fingerprint})
    checked = check_invitation(site_file, path)

    refused = CliRunner().invoke(app, ["join", str(site_file), str(path)], input="n\n")
    was_stored = NodeFolder.of(site_file).invitation.exists()
    accepted = CliRunner().invoke(app, ["join", str(site_file), str(path)], input="y\n")

    assert (refused.exit_code, was_stored, accepted.exit_code) == (1, False, 0)
    assert all(
        shown in refused.output for shown in ("cardio", "fl.example.org:8443", checked.lead, *checked.authorities)
    )
    assert NodeFolder.of(site_file).invitation.exists()


def test_enroll_says_what_to_do_next(site_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "asked.json"

    result = CliRunner().invoke(app, ["enroll", str(site_file), "--out", str(out)])

    assert result.exit_code == 0, result.output
    assert str(out) in result.output
    assert "SHA256:" in result.output
    assert "fl-client join" in result.output


def test_a_wrong_invitation_ends_with_2(site_file: Path, invite: Callable[..., Path], tmp_path: Path) -> None:
    enroll(site_file, tmp_path / "asked.json")

    result = CliRunner().invoke(app, ["join", str(site_file), str(invite()), "--yes"])

    assert result.exit_code == 2


def test_a_request_that_cannot_be_written_makes_no_key(site_file: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="there is no folder"):
        enroll(site_file, tmp_path / "absent" / "asked.json")

    assert not NodeFolder.of(site_file).root.exists()
