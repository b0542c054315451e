"""Nothing but approved bytes gets in, whatever the coordinator says of them and whatever goes wrong on the way."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from approved import approve
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from signed_bundles import PYPROJECT, build

from fl_client.journal import JOURNAL_FILE, Journal
from fl_client.node.approvals import Approvals
from fl_client.node.bundle_gate import BundleGate

CONTENT = build(**{"pyproject.toml": f"{PYPROJECT}[tool.flwr.app.config]\nstudy = ''\n".encode()})
DIGEST = hashlib.sha256(CONTENT).hexdigest()
RUN = replace(
    Run.create_empty(7),
    fab_id="consilium/consilium",
    fab_version="0.6.0",
    fab_hash=DIGEST,
    override_config={"study": "breast-cancer"},
)


@pytest.fixture
def gate(tmp_path: Path) -> BundleGate:
    approve(tmp_path, CONTENT)
    return BundleGate(Approvals(tmp_path), Journal(tmp_path))


@pytest.fixture
def fetched(gate: BundleGate) -> Callable[..., bool]:
    """Whether a bundle may run that the coordinator names and sends so."""

    def fetch(content: bytes = CONTENT, *, asked: str = DIGEST, told: str = DIGEST, **run: Any) -> bool:
        gate.fetch_run(lambda run_id: replace(RUN, fab_hash=asked, **run))(7)
        fab = gate.fetch_bundle(lambda asked_hash, run_id: Fab(told, content, {}))(asked, 7)
        assert fab.verifications["valid_license"]  # without it Flower would not ask the gate
        return gate.verify(fab, {})

    return fetch


def last(folder: Path) -> dict[str, Any]:
    entry = Journal(folder).read()[-1]
    return {"kind": entry.kind, **entry.fields}


def test_approved_bytes_run_and_the_journal_says_so(fetched: Callable[..., bool], tmp_path: Path) -> None:
    assert fetched()
    assert last(tmp_path).items() >= {"kind": "run", "run": "7", "bundle": DIGEST, "study": "breast-cancer"}.items()


@pytest.mark.parametrize(
    "wrong",
    [
        {"content": b"other bytes"},
        {"content": b"other bytes", "asked": hashlib.sha256(b"other bytes").hexdigest()},
        {"asked": "0" * 64},
        {"asked": DIGEST.upper()},
        {"content": b""},
        {"fab_version": "0.6.0.12345678/../../x"},
        {"fab_version": ""},
        {"fab_id": "../consilium"},
        {"override_config": {"STUDY": "breast-cancer"}},
        {"override_config": {"study.name": "breast-cancer"}},
        {"fab_id": "consilium/consilium/x"},
    ],
    ids=lambda value: ",".join(f"{key}={item!r:.20}" for key, item in value.items()),
)
def test_anything_else_is_refused_and_the_journal_holds_its_hash(
    fetched: Callable[..., bool], tmp_path: Path, wrong: dict[str, Any]
) -> None:
    assert not fetched(**wrong)
    content = wrong.get("content", CONTENT)
    assert last(tmp_path).items() >= {"kind": "refusal", "bundle": hashlib.sha256(content).hexdigest()}.items()


def test_what_the_coordinator_calls_the_bundle_does_not_matter(fetched: Callable[..., bool]) -> None:
    assert fetched(told="something else")


def test_a_bundle_is_refused_when_the_approvals_cannot_be_read(fetched: Callable[..., bool], tmp_path: Path) -> None:
    (tmp_path / "node" / "approvals.json").write_text("{", encoding="utf-8")

    assert not fetched()
    assert last(tmp_path).items() >= {"kind": "refusal", "reason": "it could not be checked"}.items()


def test_a_bundle_is_refused_when_the_journal_cannot_say_so(fetched: Callable[..., bool], tmp_path: Path) -> None:
    (tmp_path / JOURNAL_FILE).write_text("not a journal\n", encoding="utf-8")

    assert not fetched()


def test_no_run_is_of_an_agent(gate: BundleGate) -> None:
    run = gate.fetch_run(lambda run_id: replace(RUN, primary_task_type=TaskType.AGENT_APP))(7)

    assert run.primary_task_type != TaskType.AGENT_APP


def test_a_run_whose_bundle_is_withdrawn_is_asked_about_again(gate: BundleGate, tmp_path: Path) -> None:
    state = InMemoryNodeState(ObjectStoreFactory().store())
    state.store_run(RUN)

    gate.forget_withdrawn(state)
    kept = state.get_run(7)
    Approvals(tmp_path).withdraw(DIGEST)
    gate.forget_withdrawn(state)

    assert kept == RUN
    assert state.get_run(7) is None
