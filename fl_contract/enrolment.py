"""What a hospital and the coordinator hand to each other before they can talk: JSON files without a secret."""

import json
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator

from fl_contract.errors import SettingError
from fl_contract.settings import Settings


class HandedOver(Settings):
    """A JSON file that a person carries from one host to another."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            SettingError: It is absent, no JSON, or breaks a rule.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        except (ValueError, RecursionError) as error:
            raise SettingError(f"{path}: is not valid JSON ({error})") from error
        if not isinstance(raw, dict):
            raise SettingError(f"{path}: holds {type(raw).__name__}; expected an object")
        return cls.parse(raw, origin=str(path))

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(self.model_dump(by_alias=True), indent=2) + "\n"


class EnrolmentRequest(HandedOver):
    """``fl-client enroll`` makes it; ``fl-server admit`` takes it.

    Attributes:
        site: The hospital's name.
        public_key: Of its node, OpenSSH, one line, NIST P-384; the private key never leaves the hospital.
        signature: Base64 of the node key's ECDSA-SHA384 signature over `signed_text`: whoever made the request holds
            the key.
    """

    site: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    public_key: str = Field(min_length=1)
    signature: str = Field(min_length=1)

    @staticmethod
    def signed_text(site: str, public_key: str) -> bytes:
        """What the signature is over: a line that says what it is for, the name, the key.

        >>> EnrolmentRequest.signed_text("hospital-north", "ecdsa-sha2-nistp384 AAAA").splitlines()
        [b'consilium enrolment v1', b'hospital-north', b'ecdsa-sha2-nistp384 AAAA']
        """
        return f"consilium enrolment v1\n{site}\n{public_key}".encode()


class Invitation(HandedOver):
    """``fl-server admit`` makes it; ``fl-client join`` takes it. Holds no secret.

    Attributes:
        federation: Name of the federation.
        site: The hospital's name, as it asked for.
        address: ``host:port`` of the coordinator, an IPv6 address in brackets.
        authority: PEM certificates that the coordinator's own is checked against.
        lead_public_key: The study lead's, OpenSSH Ed25519, one line; bundles are signed with it.
        node_key: SHA-256 fingerprint of the admitted node's public key, as ``ssh-keygen -l`` prints it.
    """

    federation: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    site: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    address: str = Field(pattern=r"^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$")
    authority: str = Field(min_length=1)
    lead_public_key: str = Field(min_length=1)
    node_key: str = Field(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")

    @field_validator("address")
    @classmethod
    def _check_port(cls, address: str) -> str:
        if not 1 <= int(address.rpartition(":")[2]) <= 65535:
            raise ValueError("expected a port from 1 to 65535")
        return address
