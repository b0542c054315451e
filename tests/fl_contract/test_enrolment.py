"""An invitation names a coordinator by a plain host and port, and holds nothing that could steer a terminal."""

from pathlib import Path

import pytest

from fl_contract.enrolment import Invitation
from fl_contract.errors import SettingError

FIELDS = {
    "federation": "cardio",
    "site": "st-anna",
    "address": "fl.example.org:8443",
    "authority": "PEM",
    "lead-public-key": "ssh-ed25519 AAAA",
    "node-key": "SHA256:" + "A" * 43,
}


@pytest.mark.parametrize("address", ["fl.example.org:8443", "10.0.0.1:1", "[2001:db8::1]:65535", "localhost:8443"])
def test_a_plain_address_is_taken(address: str) -> None:
    assert Invitation.parse({**FIELDS, "address": address}, origin="test").address == address


@pytest.mark.parametrize(
    "address",
    [
        "fl.example.org/v1:8443",
        "user@fl.example.org:8443",
        "https://fl.example.org:8443",
        "fl.example.org:8443\n",
        "fl.example.org\r:8443",
        " fl.example.org:8443",
        "fl.example.org:0",
        "fl.example.org:65536",
        "2001:db8::1:8443",
        "fl.example.org",
        ":8443",
    ],
)
def test_an_address_with_anything_else_in_it_is_refused(address: str) -> None:
    with pytest.raises(SettingError, match="address"):
        Invitation.parse({**FIELDS, "address": address}, origin="test")


@pytest.mark.parametrize("federation", ["cardio\x1b[2K", "cardio\nStudy lead: SHA256:", "", "Cardio"])
def test_a_federations_name_is_a_plain_one(federation: str) -> None:
    with pytest.raises(SettingError, match="federation"):
        Invitation.parse({**FIELDS, "federation": federation}, origin="test")


def test_json_that_is_nested_beyond_reason_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "invitation.json"
    path.write_text("[" * 100_000, encoding="utf-8")

    with pytest.raises(SettingError, match="is not valid JSON"):
        Invitation.read(path)
