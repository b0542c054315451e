"""The coordinator knows the keys of the hospitals that take part now, and whether a request is signed with one."""

import base64
from pathlib import Path

import coordinators
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from fl_server.host.federation import FederationFolder
from fl_server.host.node_signature import NodeKeys, NodeSignature
from fl_server.host.site_record import SiteRecord

KEY = ec.generate_private_key(ec.SECP384R1())
PEM = public_key_to_bytes(KEY.public_key())


def record(*, expelled_at: str = "") -> SiteRecord:
    raw = {
        "site": "north",
        "node-id": 7,
        "public-key": coordinators.new_request("north", KEY).public_key,
        "fingerprint": "SHA256:north",
        "admitted-at": "2026-11-29T12:00:00+00:00",
        "expelled-at": expelled_at,
    }
    return SiteRecord.parse(raw, origin="test")


@pytest.fixture
def folder(tmp_path: Path) -> FederationFolder:
    folder = FederationFolder(tmp_path)
    folder.sites.mkdir()
    return folder


def test_a_hospital_is_known_from_its_admission_to_its_expulsion(folder: FederationFolder) -> None:
    keys = NodeKeys(folder)

    before = PEM in keys
    record().write(folder)
    admitted = PEM in keys
    record(expelled_at="2026-11-29T13:00:00+00:00").write(folder)

    assert (before, admitted, PEM in keys) == (False, True, False)


def test_a_record_that_is_damaged_hides_no_other(folder: FederationFolder) -> None:
    record().write(folder)
    (folder.sites / "east.json").write_text("{", encoding="utf-8")

    assert PEM in NodeKeys(folder)


def test_a_folder_that_is_not_there_holds_no_key(tmp_path: Path) -> None:
    assert PEM not in NodeKeys(FederationFolder(tmp_path / "none"))


@pytest.mark.parametrize(
    ("public_key", "signature", "fits"),
    [
        (PEM, sign_message(KEY, b"12:00"), True),
        (PEM, sign_message(KEY, b"12:01"), False),
        (PEM, b"", False),
        (b"no key", sign_message(KEY, b"12:00"), False),
        (b"", b"", False),
    ],
)
def test_a_signature_fits_only_what_its_key_signed(public_key: bytes, signature: bytes, fits: bool) -> None:
    assert NodeSignature(public_key=public_key, time=b"12:00", signature=signature).fits() is fits


def test_headers_are_read_as_flower_reads_them() -> None:
    named = [
        (b"flwr-public-key", base64.b64encode(PEM)),
        (b"flwr-timestamp", b"12:00"),
        (b"flwr-signature", base64.b64encode(b"first")),
        (b"flwr-signature", base64.b64encode(b"second")),
    ]

    found = NodeSignature.of(named)

    assert found is not None
    assert (found.public_key, found.time, found.signature) == (PEM, b"12:00", b"first")
    assert NodeSignature.of(named[:2]) is None
    assert NodeSignature.of([*named[:2], (b"flwr-signature", b"no base64")]) is None
