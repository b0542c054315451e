"""Killed at any statement, again and again, a hospital charges every reply once, before it leaves, and repeats itself.

A schedule is one life of a hospital's process: it starts where the last one was killed, first repeats the last request,
as a coordinator does that lost the reply, then trains and measures round after round, and SIGKILLs itself at a random
statement of the ledger, its receipt, private training, the outbox, the private round or the measurement. After each
kill everything that ever left the hospital is held against its ledger. SIGKILL loses nothing that was handed to the
operating system, so flushing to disk is switched off here; what it promises is tested in test_ledger_file.py.

A process is killed within one and a half times the statements of the longest request, counted from its start, so that
a run takes many lives. Starting and ending a process is most of the cost of a schedule.
"""

import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

import privacy
from fl_client import agreements, durable_file, journal, journal_chain, measurement, outbox, private_round
from fl_client.app import app
from fl_client.data.builtin import BuiltInSource
from fl_client.data.records import SiteRecords
from fl_client.journal import RELEASE, Journal
from fl_client.outbox import Outbox
from fl_client.settings import read_site_settings
from fl_client.site import held_out_cohort, open_ledger, training_cohort
from fl_client.source_settings import SourceSettings
from fl_contract.array_record import Arrays, to_array_record
from fl_contract.messages import ARRAYS, CONFIG, EVALUATE, METRICS, PLAN, TRAIN, Request
from fl_contract.study import Study
from fl_contract.study_file import Scalar, study_from_run_config
from privacy import ledger_file

NUM_ROUNDS, STEPS = 3, 1
OVERRIDES: dict[str, Scalar] = {
    "num-rounds": NUM_ROUNDS,
    "privacy.steps-per-round": STEPS,
    "privacy.sampling-rate": 1.0,
    "privacy.measurement-epsilon": 1.5,
}
REQUESTS = [(PLAN, 0), *((kind, number) for number in range(1, NUM_ROUNDS + 1) for kind in (TRAIN, EVALUATE))]

TRACED = {str(path) for path in Path(privacy.__path__[0]).glob("*.py")}
TRACED |= {
    str(module.__file__)
    for module in (agreements, durable_file, journal, journal_chain, measurement, outbox, private_round)
}


class StatementCounter:
    """Counts the statements of the traced files, and kills this process before a chosen one."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.count = 0
        self._kill_at = kill_at

    def __enter__(self) -> "StatementCounter":
        sys.settrace(self._enter_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter_call(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        return self._pass_line if frame.f_code.co_filename in TRACED else None

    def _pass_line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if event == "line":
            self.count += 1
            if self.count == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._pass_line


@dataclass(frozen=True)
class Departure:
    """One reply as it left."""

    kind: str
    server_round: int
    steps: int
    sha256: str


class Hospital:
    """The real app with a folder of its own, asked in turn; what leaves is written down as it leaves."""

    def __init__(self, site_file: Path, study: Study, model: Arrays) -> None:
        self.folder = site_file.parent
        self._asked = self.folder.parent / f"{self.folder.name}.asked"
        self._departures = self.folder.parent / f"{self.folder.name}.departures"
        self._site_file, self._study, self._model = site_file, study, model
        self._settings = read_site_settings(site_file)
        self._stored: dict[tuple[str, int], str] = {}
        self._left: dict[tuple[str, int], str] = {}

    def serve(self) -> None:
        """Answer every request from the last one that was asked on."""
        last = int(self._asked.read_text()) if self._asked.exists() else 0
        for number, (kind, server_round) in enumerate(REQUESTS[last:], start=last):
            self._asked.write_text(str(number))
            reply = self._ask(kind, server_round)
            if kind == PLAN:
                continue
            steps = reply.content.metric_records[METRICS]["steps"]
            line = f"{kind} {server_round} {steps} {reply.content.object_id}\n"
            with self._departures.open("ab", buffering=0) as stream:
                stream.write(line.encode())

    def count_statements(self) -> list[int]:
        """Serve, and give the number of traced statements of each request."""
        counts = []
        for kind, server_round in REQUESTS:
            with StatementCounter() as counter:
                self._ask(kind, server_round)
            counts.append(counter.count)
        return counts

    def departures(self) -> list[Departure]:
        if not self._departures.exists():
            return []
        lines = (line.split() for line in self._departures.read_text().splitlines())
        return [Departure(kind, int(number), int(steps), sha256) for kind, number, steps, sha256 in lines]

    def serve_in_a_child(self, kill_at: int) -> int:
        """How the child ended: 0 or minus the signal."""
        child = os.fork()
        if not child:
            code = 1
            gc.disable()  # a collection would touch, and so copy, all memory of the parent
            try:
                with StatementCounter(kill_at):
                    self.serve()
                code = 0
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    @property
    def has_stored_what_has_not_left(self) -> bool:
        """Whether the last check found a reply that a retry has to send as it is."""
        return bool(self._stored.keys() - self._left.keys())

    def check(self, *, is_done: bool) -> None:
        """Hold what left against the ledger, in a copy of the folder: checking must not repair what a retry finds."""
        copy = self.folder.parent / f"{self.folder.name}-copy"
        shutil.copytree(self.folder, copy, copy_function=shutil.copyfile)
        try:
            charged = self._charges(copy)
            stored = Outbox(copy).last("run-1")
            measured = _kept_measurement(copy)
            released = {entry.fields["sha256"] for entry in Journal(copy).read() if entry.kind == RELEASE}
        finally:
            shutil.rmtree(copy)
        for departure in self.departures():
            answered = (departure.kind, departure.server_round)
            assert charged[answered] == (departure.steps, departure.steps)
            assert departure.sha256 in released
            assert self._left.setdefault(answered, departure.sha256) == departure.sha256
        if stored is not None:
            server_round, reply = stored
            sha256 = reply.to_content().object_id
            self._hold_stored((TRAIN, server_round), sha256)
            assert self._left.get((TRAIN, server_round), sha256) == sha256
        if measured is not None:
            self._hold_stored((EVALUATE, measured[0]), measured[1])
        if is_done:
            assert charged == {answered: (STEPS if answered[0] == TRAIN else 1,) * 2 for answered in REQUESTS[1:]}
            assert self._left.keys() == charged.keys()

    def _hold_stored(self, answered: tuple[str, int], content: str) -> None:
        assert self._stored.setdefault(answered, content) == content

    def _charges(self, folder: Path) -> dict[tuple[str, int], tuple[int, int | None]]:
        """Steps reserved and run by kind of request and round, after the whole ledger was verified."""
        if not (folder / "ledger.sqlite").exists():
            return {}
        settings = self._settings
        kinds = {training_cohort(settings): TRAIN, held_out_cohort(settings): EVALUATE}
        charged: dict[tuple[str, int], tuple[int, int | None]] = {}
        for cohort, kind in kinds.items():
            with open_ledger(settings, folder, cohort=cohort) as ledger:
                if kind == TRAIN:
                    ledger.verify()  # of all cohorts
                entries = ledger.entries()
            assert all(entry.attempt == 1 for entry in entries)
            charged |= {(kind, entry.server_round): (entry.steps_reserved, entry.steps_run) for entry in entries}
        return charged

    def _ask(self, kind: str, server_round: int) -> Message:
        request = Request(
            run="run-1", fingerprint=self._study.fingerprint, site=self.folder.name, server_round=server_round
        )
        content = RecordDict({CONFIG: request.to_config()})
        if kind != PLAN:
            content[ARRAYS] = to_array_record(self._model)
        run_config: dict[str, Scalar] = {"study": self._study.name, **OVERRIDES}
        context = Context(1, 1, {"site-file": str(self._site_file)}, RecordDict(), run_config)
        reply = app(Message(content, 1, kind, group_id="1"), context)
        assert reply.has_content(), reply.error
        return reply


def _kept_measurement(folder: Path) -> tuple[int, str] | None:
    """The round that was measured last, and what is kept of it."""
    for path in (folder / "agreements").glob("*.json"):
        if (measured := json.loads(path.read_text()).get("measured")) is not None:
            return measured["server-round"], json.dumps(measured["evaluation"])
    return None


@pytest.fixture
def folder_in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder for thousands of small files, in memory where the system has a place for it."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def hospitals(
    folder_in_memory: Path,
    write_site_file: Callable[..., Path],
    model_of: Callable[[Study], Arrays],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[str], Hospital]]:
    """Makes hospitals of twenty patients.

    Their files are handed to the operating system and not flushed; patients and study are read from disk once for all.
    """
    study = study_from_run_config({"study": "breast-cancer", **OVERRIDES})
    model = model_of(study)
    template = write_site_file("template", epsilon_budget=20.0)
    twenty = np.r_[0:10, -10:0]
    source = read_site_settings(template).source
    assert isinstance(source, SourceSettings)
    whole = BuiltInSource(source).load()
    few = SiteRecords(train=whole.train.take(twenty), test=whole.test.take(twenty))
    monkeypatch.setattr(BuiltInSource, "load", lambda _: few)
    monkeypatch.setattr("fl_client.site.read_study", lambda *_: study)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(ledger_file, "_FLUSH_ALL", "PRAGMA synchronous = OFF")

    def make(name: str) -> Hospital:
        site_file = folder_in_memory / name / "site.toml"
        site_file.parent.mkdir()
        site_file.write_text(template.read_text().replace('"template"', f'"{name}"'))
        return Hospital(site_file, study, model)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # collecting what all earlier tests left, again and again, is slow
    yield make
    gc.unfreeze()
    torch.set_num_threads(threads)


def _run_schedules(count: int, hospitals: Callable[[str], Hospital]) -> int:
    """Kill so many processes; gives how many left a reply that was stored and not sent."""
    generator = random.Random(20261121)
    hospitals("first").serve()  # its epsilons are known to every later one
    reach = 3 * max(hospitals("second").count_statements()) // 2

    killed = unsent = 0
    hospital = hospitals("hospital-0")
    while killed < count:
        code = hospital.serve_in_a_child(kill_at=generator.randint(1, reach))
        assert code in (0, -signal.SIGKILL)
        hospital.check(is_done=code == 0)
        killed += code == -signal.SIGKILL
        unsent += hospital.has_stored_what_has_not_left
        if code == 0:
            shutil.rmtree(hospital.folder)
            hospital = hospitals(f"hospital-{killed}")

    return unsent


def test_twenty_random_crash_schedules_charge_every_reply_before_it_leaves(
    hospitals: Callable[[str], Hospital],
) -> None:
    _run_schedules(20, hospitals)


@pytest.mark.slow
def test_a_thousand_random_crash_schedules_charge_every_reply_before_it_leaves(
    hospitals: Callable[[str], Hospital],
) -> None:
    assert _run_schedules(1000, hospitals) >= 25
