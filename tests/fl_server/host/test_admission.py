"""Only who holds a key of the right kind may be admitted with it, and a key that was expelled never comes back."""

from datetime import UTC, datetime
from pathlib import Path

import coordinators
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fl_contract.enrolment import EnrolmentRequest
from fl_contract.errors import SettingError
from fl_server.host.admission import check_request, invite
from fl_server.host.admission_commands import _to_compare
from fl_server.host.federation import FederationFolder
from fl_server.host.site_record import SiteRecord, find_site, name_nodes, read_sites

KEY = ec.generate_private_key(ec.SECP384R1())
OTHER = ec.generate_private_key(ec.SECP384R1())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FederationFolder:
    return coordinators.new_folder(tmp_path_factory.mktemp("admission") / "federation")


@pytest.fixture
def folder(made: FederationFolder) -> FederationFolder:
    for path in made.sites.iterdir():
        path.unlink()
    return made


def known(folder: FederationFolder, **changed: object) -> SiteRecord:
    """North's record as `admit` writes it, of `KEY`."""
    applicant = check_request(folder, coordinators.new_request("north", KEY))
    raw = {
        "site": "north",
        "node-id": 2**63 + 5,
        "public-key": applicant.public_key,
        "fingerprint": applicant.fingerprint,
        "admitted-at": "2026-11-29T12:00:00+00:00",
        **changed,
    }
    record = SiteRecord.parse(raw, origin="test")
    record.write(folder)
    return record


def test_a_new_hospital_with_a_key_of_its_own_passes(folder: FederationFolder) -> None:
    applicant = check_request(folder, coordinators.new_request("north", KEY))

    assert (applicant.site, applicant.change, applicant.before) == ("north", "new", None)
    assert applicant.fingerprint.startswith("SHA256:")
    assert len(applicant.fingerprint) == 50


def test_a_request_for_another_name_than_was_signed_is_refused(folder: FederationFolder) -> None:
    request = coordinators.new_request("north", KEY)

    with pytest.raises(SettingError, match="signature: not of the key in the request"):
        check_request(folder, request.model_copy(update={"site": "south"}))


def test_a_request_with_somebody_elses_key_is_refused(folder: FederationFolder) -> None:
    stolen = coordinators.new_request("north", OTHER).public_key

    with pytest.raises(SettingError, match="signature: not of the key in the request"):
        check_request(folder, coordinators.new_request("north", KEY).model_copy(update={"public_key": stolen}))


@pytest.mark.parametrize("signature", ["no base64!", "AAAA"])
def test_a_signature_that_is_none_is_refused(folder: FederationFolder, signature: str) -> None:
    request = coordinators.new_request("north", KEY).model_copy(update={"signature": signature})

    with pytest.raises(SettingError, match="signature: not of the key"):
        check_request(folder, request)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "no OpenSSH public key"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop", "expected NIST P-384"),
    ],
)
def test_a_key_of_another_kind_is_refused(folder: FederationFolder, line: str, message: str) -> None:
    request = coordinators.new_request("north", KEY).model_copy(update={"public_key": line})

    with pytest.raises(SettingError, match=message):
        check_request(folder, request)


def test_a_p256_key_is_refused(folder: FederationFolder) -> None:
    with pytest.raises(SettingError, match="expected NIST P-384"):
        check_request(folder, coordinators.new_request("north", ec.generate_private_key(ec.SECP256R1())))


def test_a_known_hospital_asks_again_or_with_another_key(folder: FederationFolder) -> None:
    record = known(folder)

    again = check_request(folder, coordinators.new_request("north", KEY))
    another = check_request(folder, coordinators.new_request("north", OTHER))

    assert (again.change, again.before) == ("again", record)
    assert (another.change, another.before) == ("another key", record)


def test_the_key_of_an_expelled_hospital_never_comes_back_but_the_hospital_may(folder: FederationFolder) -> None:
    known(folder, **{"expelled-at": "2026-11-29T13:00:00+00:00"})

    assert check_request(folder, coordinators.new_request("north", OTHER)).change == "return"
    for site in ("north", "south"):
        with pytest.raises(SettingError, match="was expelled or replaced and cannot come back"):
            check_request(folder, coordinators.new_request(site, KEY))


def test_a_replaced_key_never_comes_back(folder: FederationFolder) -> None:
    burned = check_request(folder, coordinators.new_request("north", OTHER)).fingerprint
    known(folder, **{"burned-keys": (burned,)})

    with pytest.raises(SettingError, match="was expelled or replaced"):
        check_request(folder, coordinators.new_request("north", OTHER))


def test_one_key_is_not_for_two_hospitals(folder: FederationFolder) -> None:
    known(folder)

    with pytest.raises(SettingError, match="is that of north; expected its own"):
        check_request(folder, coordinators.new_request("south", KEY))


def test_a_record_is_read_as_it_was_written(folder: FederationFolder) -> None:
    record = known(folder, **{"burned-keys": ("SHA256:a", "SHA256:b")})

    assert (find_site(folder, "north"), find_site(folder, "south")) == (record, None)
    assert read_sites(folder) == [record]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"site": "north"}'])
def test_a_damaged_record_is_named(folder: FederationFolder, text: str) -> None:
    (folder.sites / "north.json").write_text(text)

    with pytest.raises(SettingError, match=r"north\.json"):
        find_site(folder, "north")


def test_an_invitation_says_where_whom_to_trust_and_holds_no_secret(folder: FederationFolder) -> None:
    record = known(folder)

    invitation = invite(folder, record)

    assert invitation.address == f"127.0.0.1:{folder.settings().port}"
    assert invitation.authority == folder.authority_certificate.read_text()
    assert (invitation.site, invitation.node_key) == ("north", record.fingerprint)
    for secret in (folder.authority_key, folder.lead_key, folder.executor_secret, folder.server_key):
        assert secret.read_text().splitlines()[-2:][0] not in invitation.to_json()


def test_a_request_file_is_checked_as_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text('{"site": "../evil", "public-key": "x", "signature": "y"}')

    with pytest.raises(SettingError, match="site="):
        EnrolmentRequest.read(path)


def test_the_coordinator_is_shown_what_the_hospital_compares(folder: FederationFolder) -> None:
    from fl_client.node.enrolment import _authority_fingerprints
    from fl_client.node.node_keys import lead_fingerprint

    invitation = invite(folder, known(folder))

    told = _to_compare(folder)

    assert lead_fingerprint(invitation.lead_public_key) in told
    assert all(each in told for each in _authority_fingerprints(invitation.authority, datetime.now(UTC)))


def test_a_hospital_is_named_where_a_run_knew_its_nodes_number_alone(folder: FederationFolder) -> None:
    record = known(folder)

    told = name_nodes(folder, f"node {record.node_id}: policy; node 7: flower-7; mynode {record.node_id}")

    assert told == f"north: policy; node 7: flower-7; mynode {record.node_id}"
