"""A bundle is approved from `approve` to `withdraw`, by its whole hash, and never when the file cannot be trusted."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from signed_bundles import LEAD, build

from fl_client.journal import APPROVAL, JOURNAL_FILE, WITHDRAWAL, Journal
from fl_client.node.approvals import Approval, Approvals
from fl_contract.bundle_signature import sign_bundle
from fl_contract.errors import JournalError, SettingError

FIRST, SECOND = build(), build(**{"fl_server/app.py": b"app = 2\n"})


@pytest.fixture
def approvals(tmp_path: Path) -> Approvals:
    """Of a hospital that approved nothing yet."""
    return Approvals(tmp_path)


@pytest.fixture
def approve(approvals: Approvals) -> Callable[[bytes], Approval]:
    """Approves a bundle."""

    def do(content: bytes) -> Approval:
        signature = sign_bundle(content, version="0.1.0", signed_at="2026-11-29T12:00:00Z", key=LEAD)
        return approvals.approve(content, signature, by="officer A")

    return do


def test_nothing_is_approved_at_first_and_asking_makes_no_file(approvals: Approvals, tmp_path: Path) -> None:
    assert not approvals.is_approved("0" * 64)
    assert approvals.last() is None
    assert approvals.last_bundle() is None
    assert list(tmp_path.iterdir()) == []


def test_an_approved_bundle_may_run_and_another_may_not(
    approvals: Approvals, approve: Callable[[bytes], Approval], tmp_path: Path
) -> None:
    approval = approve(FIRST)

    assert approvals.is_approved(approval.sha256)
    assert not approvals.is_approved(approval.sha256[:12])
    assert not approvals.is_approved("")
    assert approvals.last() == approval
    assert (tmp_path / "node" / "bundles" / f"{approval.sha256}.fab").read_bytes() == FIRST
    for path in (tmp_path / "node").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_approvals_are_in_the_journal_with_who_and_what(
    approvals: Approvals, approve: Callable[[bytes], Approval], tmp_path: Path
) -> None:
    approval = approve(FIRST)
    approvals.withdraw(approval.sha256[:8].upper())

    given, taken = Journal(tmp_path).read()
    assert (given.kind, given.fields["by"], given.fields["sha256"]) == (APPROVAL, "officer A", approval.sha256)
    assert (taken.kind, taken.fields["sha256"]) == (WITHDRAWAL, approval.sha256)


def test_a_withdrawn_bundle_may_not_run_and_can_be_approved_again(
    approvals: Approvals, approve: Callable[[bytes], Approval]
) -> None:
    first, second = approve(FIRST), approve(SECOND)

    approvals.withdraw(first.sha256)

    assert not approvals.is_approved(first.sha256)
    assert approvals.is_approved(second.sha256)
    approve(FIRST)
    assert [approval.sha256 for approval in approvals.list()] == [second.sha256, first.sha256]


@pytest.mark.parametrize("prefix", ["", "nothing", "0" * 64])
def test_a_withdrawal_that_fits_no_approval_changes_nothing(
    approvals: Approvals, approve: Callable[[bytes], Approval], prefix: str
) -> None:
    approval = approve(FIRST)

    with pytest.raises(SettingError, match="fits 0 approvals"):
        approvals.withdraw(prefix)

    assert approvals.is_approved(approval.sha256)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"approvals": {}}', '{"approvals": [{"sha256": "00"}]}'])
def test_a_damaged_file_approves_nothing(
    approvals: Approvals, approve: Callable[[bytes], Approval], tmp_path: Path, text: str
) -> None:
    approval = approve(FIRST)
    (tmp_path / "node" / "approvals.json").write_text(text)

    with pytest.raises(SettingError, match=r"approvals\.json"):
        approvals.is_approved(approval.sha256)


@pytest.mark.parametrize("path", ["node", "node/approvals.json"])
@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602])
def test_a_file_that_others_may_read_or_write_approves_nothing(
    approvals: Approvals, approve: Callable[[bytes], Approval], tmp_path: Path, path: str, mode: int
) -> None:
    approval = approve(FIRST)
    (tmp_path / path).chmod(mode | 0o700)

    with pytest.raises(SettingError, match="mode="):
        approvals.is_approved(approval.sha256)


def test_what_the_journal_cannot_hold_is_not_approved(
    approvals: Approvals, approve: Callable[[bytes], Approval], tmp_path: Path
) -> None:
    approve(FIRST)
    (tmp_path / JOURNAL_FILE).write_text("")

    with pytest.raises(JournalError):
        approve(SECOND)

    assert len(approvals.list()) == 1


def test_a_withdrawal_holds_also_where_the_journal_cannot_be_written(
    approvals: Approvals, approve: Callable[[bytes], Approval], tmp_path: Path
) -> None:
    approval = approve(FIRST)
    (tmp_path / JOURNAL_FILE).write_text("")

    with pytest.raises(JournalError):
        approvals.withdraw(approval.sha256)

    assert not approvals.is_approved(approval.sha256)


def test_the_last_bundle_is_kept_for_the_next_diff_and_no_other_is_taken_for_it(
    approvals: Approvals, approve: Callable[[bytes], Approval], tmp_path: Path
) -> None:
    approve(FIRST)
    approval = approve(SECOND)
    kept = approvals.last_bundle()
    assert kept is not None
    assert kept.files["fl_server/app.py"] == b"app = 2\n"

    (tmp_path / "node" / "bundles" / f"{approval.sha256}.fab").write_bytes(FIRST)

    assert approvals.last_bundle() is None


def test_the_file_is_json_that_a_person_can_read(approve: Callable[[bytes], Approval], tmp_path: Path) -> None:
    approval = approve(FIRST)

    held = json.loads((tmp_path / "node" / "approvals.json").read_text())

    assert held["approvals"] == [
        {
            "sha256": approval.sha256,
            "version": "0.1.0",
            "signed-at": "2026-11-29T12:00:00Z",
            "key": approval.key,
            "approved-at": approval.approved_at,
            "approved-by": "officer A",
        }
    ]
