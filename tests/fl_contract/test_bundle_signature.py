"""A signature holds for the bytes, the version and the time that the study lead signed, and for nothing else."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_contract.bundle_signature import BundleSignature, key_fingerprint, sign_bundle, verify_bundle
from fl_contract.errors import SettingError

LEAD = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
BUNDLE = b"what hospitals run"
SIGNATURE = sign_bundle(BUNDLE, version="0.1.0", signed_at="2026-11-29T12:00:00Z", key=LEAD)


def test_what_the_lead_signed_is_accepted_after_it_went_through_a_file(tmp_path: Path) -> None:
    file = tmp_path / "consilium.fab.sig"
    file.write_text(SIGNATURE.to_json())

    verify_bundle(BUNDLE, BundleSignature.read(file), LEAD.public_key())


def test_the_file_says_what_was_signed_by_whom() -> None:
    written = json.loads(SIGNATURE.to_json())

    assert sorted(written) == ["key", "sha256", "signature", "signed-at", "version"]
    assert written["key"] == key_fingerprint(LEAD.public_key())


@pytest.mark.parametrize("altered", [b"", BUNDLE + b"\n", BUNDLE[:-1], b"W" + BUNDLE[1:]])
def test_other_bytes_are_refused(altered: bytes) -> None:
    with pytest.raises(SettingError, match=r"sha256=.*not the one that was signed"):
        verify_bundle(altered, SIGNATURE, LEAD.public_key())


def test_other_bytes_are_refused_also_where_the_hash_was_made_to_fit() -> None:
    altered = BUNDLE + b"!"
    forged = sign_bundle(altered, version="0.1.0", signed_at="2026-11-29T12:00:00Z", key=Ed25519PrivateKey.generate())
    forged = forged.model_copy(update={"key": SIGNATURE.key})

    with pytest.raises(SettingError, match="signature; not the lead's"):
        verify_bundle(altered, forged, LEAD.public_key())


def test_somebody_elses_signature_is_refused_by_name() -> None:
    other = Ed25519PrivateKey.generate()
    signature = sign_bundle(BUNDLE, version="0.1.0", signed_at="2026-11-29T12:00:00Z", key=other)

    with pytest.raises(SettingError, match=r"signed by somebody else; expected SHA256:"):
        verify_bundle(BUNDLE, signature, LEAD.public_key())


@pytest.mark.parametrize("change", [{"version": "0.2.0"}, {"signed_at": "2026-11-30T12:00:00Z"}])
def test_another_version_or_time_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(SettingError, match="signature; not the lead's"):
        verify_bundle(BUNDLE, SIGNATURE.model_copy(update=change), LEAD.public_key())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sha256", "ABC"),
        ("sha256", "0" * 63),
        ("version", "0.1.0\n2026-11-29T12:00:00Z"),
        ("version", ""),
        ("signed-at", "yesterday"),
        ("key", "MD5:00"),
        ("signature", "not base64!"),
        ("signature", base64.b64encode(bytes(63)).decode()),
        ("signature", 7),
        ("unknown", "x"),
    ],
)
def test_a_malformed_file_is_refused_with_the_key(tmp_path: Path, key: str, value: object) -> None:
    file = tmp_path / "consilium.fab.sig"
    file.write_text(json.dumps({**json.loads(SIGNATURE.to_json()), key: value}))

    with pytest.raises(SettingError, match=key):
        BundleSignature.read(file)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_file_that_is_no_signature_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "consilium.fab.sig"
    file.write_bytes(text.encode("latin-1"))

    with pytest.raises(SettingError, match=r"consilium\.fab\.sig"):
        BundleSignature.read(file)


def test_a_version_that_could_stand_for_two_lines_is_never_signed() -> None:
    with pytest.raises(SettingError, match="version"):
        sign_bundle(BUNDLE, version="0.1.0\nx", signed_at="2026-11-29T12:00:00Z", key=LEAD)
