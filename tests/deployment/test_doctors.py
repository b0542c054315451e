"""Promise: against a real coordinator, both doctors see what is true, and asking them changes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed_federation import Federation, federation, free_port

pytestmark = pytest.mark.deployment

Checks = dict[str, dict[str, str]]
NAME = "hospital-north"
EXAMPLE = Path(__file__).parents[2] / "deploy" / "site.example.toml"
NETWORK = ("name", "route", "certificate", "clock", "admitted")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A coordinator that runs, and a hospital that has joined and approved, and does not run yet."""
    with federation(tmp_path_factory.mktemp("doctors")) as started:
        started.init()
        started.start_coordinator()
        started.enrol(NAME, f"{EXAMPLE.read_text()}\n[node]\nruntime-port = {free_port()}\n")
        yield started


def _hospital(made: Federation, *words: str) -> Checks:
    return _checks(made.run("fl-client", "doctor", str(made.site_file(NAME)), "--json", *words, check=False).stdout)


def _coordinator(made: Federation) -> Checks:
    return _checks(made.run("fl-server", "doctor", "--json", check=False).stdout)


def _checks(printed: str) -> Checks:
    report: dict[str, Any] = json.loads(printed)
    return {check["name"]: check for check in report["checks"]}


def test_nothing_is_wrong_before_the_node_starts_and_asking_does_not_start_it(made: Federation) -> None:
    hospital = _hospital(made)
    coordinator = _coordinator(made)

    assert {name: check for name, check in hospital.items() if check["status"] == "failed"} == {}
    assert {name: check for name, check in coordinator.items() if check["status"] == "failed"} == {}
    assert coordinator["operators' port"]["finding"] == "on 127.0.0.1 only; an unsigned order is answered 401"
    assert "1 admitted, 0 online; not online: hospital-north" in coordinator["sites"]["finding"]


def test_a_node_that_runs_is_seen_by_both_and_goes_on_running(made: Federation) -> None:
    made.start_hospital(NAME)

    hospital = _hospital(made, "--study", "breast-cancer")
    coordinator = _coordinator(made)

    assert hospital["node"]["finding"] == "runs, connected"
    assert [hospital[name]["status"] for name in NETWORK] == ["ok"] * len(NETWORK)
    assert coordinator["sites"]["finding"] == "1 admitted, 1 online"
    assert coordinator["running"]["finding"] == "fl-server start runs, with the SuperLink and the executor"
    assert made.services[NAME].process.poll() is None


def test_an_expelled_hospital_is_told_so(made: Federation) -> None:
    made.run("fl-server", "expel", NAME, "--yes")

    assert "was expelled" in _hospital(made)["admitted"]["finding"]


def test_a_stopped_coordinator_refuses_the_connection(made: Federation) -> None:
    made.services["coordinator"].end()

    hospital = _hospital(made)

    assert "refused the connection" in hospital["route"]["finding"]
    assert hospital["admitted"]["status"] == "skipped"
    assert _coordinator(made)["ports"]["status"] == "skipped"
