"""What tests of the ledger share: a hospital's ledger in a folder of its own, and ways to tamper with it."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privacy.ledger import Ledger, LedgerTerms
from privacy.ledger_chain import FIRST, hash_row, write_content
from privacy.plan import PrivacyPlan

Contents = list[dict[str, Any]]


@pytest.fixture
def cheap_plan() -> PrivacyPlan:
    """Twenty rounds of four steps without sampling, with more noise than its epsilon needs."""
    return PrivacyPlan(
        epsilon=3.0,
        delta=1e-3,
        clip_norm=1.0,
        sampling_rate=1.0,
        steps_per_round=4,
        num_rounds=20,
        noise_multiplier=20.0,
        nominal_units=400,
    )


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def receipt_path(tmp_path: Path) -> Path:
    return tmp_path / "receipts" / "ledger.receipt"


@pytest.fixture
def open_at(ledger_path: Path, receipt_path: Path) -> Callable[..., Ledger]:
    """Opens the ledger, with any of its terms changed."""

    def open_with(**changed: Any) -> Ledger:
        terms: dict[str, Any] = {
            "site": "st-anna",
            "cohort": "adults",
            "epsilon_budget": 3.0,
            "delta": 1e-3,
            "policy": "policy-1",
        }
        return Ledger(ledger_path, LedgerTerms(**(terms | changed)), receipt=receipt_path)

    return open_with


@pytest.fixture
def charged(open_at: Callable[..., Ledger], cheap_plan: PrivacyPlan) -> None:
    """Five rows: whose it is; in one transaction a plan and a reservation; its settling; a second reservation."""
    with open_at() as ledger:
        for server_round in (1, 2):
            ledger.reserve(run="7", server_round=server_round, study="heart", plan=cheap_plan, fingerprint="f-1")
            if server_round == 1:
                ledger.settle(run="7", server_round=1, steps_run=3)


@pytest.fixture
def forge(ledger_path: Path, receipt_path: Path) -> Callable[[Callable[[Contents], object]], None]:
    """Changes the contents of the rows and gives them, and the receipt, hashes that fit."""

    def rewrite(edit: Callable[[Contents], object]) -> None:
        with sqlite3.connect(ledger_path) as database:
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                database.execute(f"DROP TRIGGER {name}")
            contents = [json.loads(text) for (text,) in database.execute("SELECT content FROM chain ORDER BY number")]
            edit(contents)
            database.execute("DELETE FROM chain")
            found = FIRST
            for number, content in enumerate(contents, start=1):
                text = write_content(content)
                found = hash_row(found, number, text)
                database.execute("INSERT INTO chain VALUES (?, ?, ?)", (number, text, found))
        database.close()
        receipt_path.write_text(json.dumps({"site": "st-anna", "rows": len(contents), "hash": found}))

    return rewrite
