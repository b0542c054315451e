"""A ledger that was changed, shortened, swapped or restored is refused, and a crash at any moment leaves a good one."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privacy import ledger_store
from privacy.accounting import ExternalSpend
from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.ledger_receipt import read_receipt, write_receipt
from privacy.plan import PrivacyPlan

Open = Callable[..., Ledger]


def reserve(ledger: Ledger, plan: PrivacyPlan, server_round: int, run: str = "7") -> None:
    ledger.reserve(run=run, server_round=server_round, study="heart", plan=plan, fingerprint="f-1")


def rows_of(path: Path) -> int:
    receipt = read_receipt(path)
    assert receipt is not None
    return receipt.rows


# --- the receipt -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("charged")
def test_the_receipt_says_how_the_ledger_ends(open_at: Open, receipt_path: Path) -> None:
    with open_at() as ledger:
        state = ledger.verify()

    assert json.loads(receipt_path.read_text()) == {
        "site": "st-anna",
        "rows": state.num_rows,
        "hash": state.last_hash,
    }
    assert state.num_rows == 5


def test_a_restored_backup_is_refused_also_by_a_process_that_has_it_open(
    open_at: Open, cheap_plan: PrivacyPlan, ledger_path: Path
) -> None:
    with open_at() as ledger:
        reserve(ledger, cheap_plan, 1)
    backup = ledger_path.read_bytes()
    with open_at() as ledger:
        reserve(ledger, cheap_plan, 2)
    ledger_path.write_bytes(backup)

    with pytest.raises(LedgerError, match=r"has 3 rows, its receipt .* counts 4: an older copy was put in its place"):
        open_at()


def test_a_copy_that_went_its_own_way_is_refused(
    open_at: Open, cheap_plan: PrivacyPlan, ledger_path: Path, receipt_path: Path
) -> None:
    with open_at() as ledger:
        reserve(ledger, cheap_plan, 1)
    backup, old_receipt = ledger_path.read_bytes(), receipt_path.read_bytes()
    with open_at() as ledger:
        reserve(ledger, cheap_plan, 2)
    lasting = receipt_path.read_bytes()
    ledger_path.write_bytes(backup)
    receipt_path.write_bytes(old_receipt)
    with open_at() as ledger:
        reserve(ledger, cheap_plan, 3)
    receipt_path.write_bytes(lasting)

    with pytest.raises(LedgerError, match=r"has another row 4: it is a copy that went its own way"):
        open_at()


def test_a_lost_ledger_is_not_begun_anew(open_at: Open, ledger_path: Path, receipt_path: Path) -> None:
    with open_at() as ledger:
        ledger.charge(study="survey", spend=ExternalSpend(epsilon=0.5), reason="an earlier study")
    ledger_path.unlink()

    with pytest.raises(LedgerError, match=r"is missing, but has a receipt, .*; restore the latest backup"):
        open_at()

    assert not ledger_path.exists()
    assert receipt_path.exists()


@pytest.mark.usefixtures("charged")
def test_a_lost_receipt_is_refused(open_at: Open, receipt_path: Path) -> None:
    receipt_path.unlink()

    with pytest.raises(LedgerError, match=r"counts 0: the receipt is missing or an older copy"):
        open_at()


@pytest.mark.parametrize("behind_by", [1, 2])
def test_a_receipt_may_be_behind_by_one_transaction_and_no_more(
    open_at: Open, cheap_plan: PrivacyPlan, receipt_path: Path, behind_by: int
) -> None:
    receipts = []
    with open_at() as ledger:
        for server_round in (1, 2, 3):
            reserve(ledger, cheap_plan, server_round)
            receipts.append(receipt_path.read_bytes())
    receipt_path.write_bytes(receipts[-1 - behind_by])

    if behind_by == 1:
        with open_at() as ledger:
            reserve(ledger, cheap_plan, 4)
        assert rows_of(receipt_path) == 6
    else:
        with pytest.raises(LedgerError, match="the receipt is missing or an older copy"):
            open_at()


def test_a_receipt_that_is_behind_is_written_before_anything_is_added(
    open_at: Open, cheap_plan: PrivacyPlan, receipt_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LedgerError("the receipt's disk is full; what was charged stays charged")

    with open_at() as ledger:
        reserve(ledger, cheap_plan, 1)
        monkeypatch.setattr(ledger_store, "write_receipt", fail)
        for server_round in (2, 3):
            with pytest.raises(LedgerError, match="stays charged"):
                reserve(ledger, cheap_plan, server_round)
        monkeypatch.undo()
        assert [entry.server_round for entry in ledger.entries()] == [1, 2]
        assert rows_of(receipt_path) == 3

        reserve(ledger, cheap_plan, 3)

    assert rows_of(receipt_path) == 5


def test_reading_writes_no_receipt(open_at: Open, cheap_plan: PrivacyPlan, receipt_path: Path) -> None:
    with open_at() as ledger:
        reserve(ledger, cheap_plan, 1)
        before = receipt_path.read_bytes()
        reserve(ledger, cheap_plan, 2)
    receipt_path.write_bytes(before)

    with open_at() as ledger:
        assert ledger.verify().num_rows == 4

    assert receipt_path.read_bytes() == before


def test_a_ledger_that_was_just_created_may_have_no_receipt_yet(
    open_at: Open, cheap_plan: PrivacyPlan, receipt_path: Path
) -> None:
    open_at().close()
    assert not receipt_path.exists()

    with open_at() as ledger:
        reserve(ledger, cheap_plan, 1)

    assert rows_of(receipt_path) == 3


@pytest.mark.usefixtures("charged")
def test_the_receipt_of_another_hospital_is_refused(open_at: Open, receipt_path: Path) -> None:
    values = json.loads(receipt_path.read_text())
    receipt_path.write_text(json.dumps(values | {"site": "st-berta"}))

    with pytest.raises(LedgerError, match="is that of 'st-berta', the ledger that of 'st-anna'"):
        open_at()


def test_a_receipts_folder_that_is_missing_is_refused_once_there_is_a_ledger(open_at: Open, receipt_path: Path) -> None:
    open_at().close()
    receipt_path.parent.rmdir()

    with pytest.raises(LedgerError, match=r"receipts=.*; cannot be opened: No such file or directory; create"):
        open_at()


# --- whose ledger it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"site": "st-berta"}, r"site='st-berta'; ledger .* is that of 'st-anna'"),
        ({"delta": 1e-4}, r"delta=0\.0001; ledger .* was created with delta=0\.001; expected the same"),
        ({"delta": 2e-3}, r"was created with delta=0\.001"),
        ({"delta": 1.0000001e-3}, r"was created with delta=0\.001"),
    ],
)
def test_the_ledger_of_another_hospital_or_delta_is_refused(open_at: Open, changed: dict[str, Any], told: str) -> None:
    open_at().close()

    with pytest.raises(LedgerError, match=told):
        open_at(**changed)


# --- the chain -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("charged")
@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE chain SET content = replace(content, '20.0', '90.0') WHERE number = 3", "row 3 was changed"),
        ("UPDATE chain SET content = replace(content, ':', ' :') WHERE number = 2", "row 2 was changed"),
        ("UPDATE chain SET hash = upper(hash) WHERE number = 4", "row 4 was changed"),
        ("DELETE FROM chain WHERE number = 3", "row 3 is missing; the next one is row 4"),
        ("DELETE FROM chain WHERE number = 1", "row 1 is missing; the next one is row 2"),
        ("UPDATE chain SET number = 9 WHERE number = 5", "row 5 is missing; the next one is row 9"),
        ("DELETE FROM chain WHERE number = 5", "an older copy was put in its place"),
        ("DELETE FROM chain", "row 1 is missing"),
    ],
)
def test_the_first_row_that_was_changed_moved_or_left_out_is_named(
    open_at: Open, ledger_path: Path, statement: str, told: str
) -> None:
    database = sqlite3.connect(ledger_path)
    for name in ("row_is_kept", "row_is_not_deleted"):
        database.execute(f"DROP TRIGGER {name}")
    database.execute(statement)
    database.commit()
    database.close()

    with pytest.raises(LedgerError, match=told):
        open_at()


def test_rows_that_were_changed_meanwhile_are_found_by_verifying_again(
    open_at: Open, cheap_plan: PrivacyPlan, ledger_path: Path
) -> None:
    with open_at() as ledger:
        reserve(ledger, cheap_plan, 1)
        database = sqlite3.connect(ledger_path)
        database.execute("DROP TRIGGER row_is_kept")
        database.execute("UPDATE chain SET content = replace(content, '20.0', '90.0')")
        database.commit()
        database.close()

        with pytest.raises(LedgerError, match="row 2 was changed"):
            ledger.verify()


def test_a_clock_that_is_set_back_changes_no_order(
    open_at: Open, cheap_plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(f"20{year}-01-01T00:00:00+00:00" for year in range(40, 0, -1))
    monkeypatch.setattr(ledger_store, "_now", lambda: next(times))

    with open_at() as ledger:
        for server_round in (1, 2, 3):
            reserve(ledger, cheap_plan, server_round)
            ledger.settle(run="7", server_round=server_round, steps_run=server_round)

        entries = ledger.entries()
        assert ledger.verify().num_rows == 8
    assert [entry.server_round for entry in entries] == [1, 2, 3]
    assert [entry.steps_run for entry in entries] == [1, 2, 3]
    assert sorted((entry.reserved_at for entry in entries), reverse=True) == [entry.reserved_at for entry in entries]


@pytest.mark.usefixtures("charged")
def test_a_receipt_that_cannot_be_read_is_refused_in_words(open_at: Open, receipt_path: Path) -> None:
    receipt_path.write_text("{")

    with pytest.raises(LedgerError, match=r"cannot be read: .*; put its latest copy back"):
        open_at()


def test_a_receipt_is_replaced_whole(tmp_path: Path, open_at: Open, receipt_path: Path) -> None:
    with open_at() as ledger:
        ledger.charge(study="survey", spend=ExternalSpend(epsilon=0.5), reason="an earlier study")
    receipt = read_receipt(receipt_path)
    assert receipt is not None

    with pytest.raises(LedgerError, match=r"cannot be written: .*; what was charged stays charged, nothing is trained"):
        write_receipt(tmp_path / "nowhere" / "ledger.receipt", receipt)
    write_receipt(receipt_path, receipt)

    assert read_receipt(receipt_path) == receipt
    assert [path.name for path in receipt_path.parent.iterdir()] == ["ledger.receipt"]
