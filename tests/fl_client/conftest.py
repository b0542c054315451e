"""What tests of the hospital share: requests to the real app, as Flower would hand them over."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fl_client import guard
from fl_client.app import app
from fl_client.data.builtin import BuiltInSource
from fl_client.data.records import SiteRecords
from fl_client.settings import read_site_settings
from fl_client.site import open_ledger, training_cohort
from fl_contract.array_record import Arrays, to_array_record
from fl_contract.messages import ARRAYS, CONFIG, TRAIN, Request
from fl_contract.study import Study
from fl_contract.study_file import OVERRIDABLE_KEYS, STUDIES, Scalar, study_from_run_config
from privacy.ledger_book import LedgerEntry

FIXED: Mapping[str, Scalar] = {
    "num-rounds": 3,
    "seed": 2026,
    "privacy.epsilon": 8.0,
    "privacy.sampling-rate": 0.25,
    "privacy.steps-per-round": 4,
    "simulation.num-sites": 4,
    "simulation.alpha": 2.0,
    "simulation.test-fraction": 0.3,
    "simulation.epsilon-budget": 10.0,
}
"""Settings of every study here, so that no test depends on how a study that ships is tuned."""


@pytest.fixture(autouse=True)
def _flower_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Flower message can only be made by a task that knows its own number."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(autouse=True)
def _closed_site_log() -> Iterator[None]:
    """No test writes into the log of an earlier one."""
    yield
    guard.log_to_site(None)


@pytest.fixture
def study_of() -> Callable[..., Study]:
    """The study that `ask` names, with its overrides."""

    def read(
        name: str = "breast-cancer", overrides: Mapping[str, Scalar] | None = None, *, directory: Path = STUDIES
    ) -> Study:
        return study_from_run_config({"study": name, **FIXED, **(overrides or {})}, directory=directory)

    return read


@pytest.fixture
def model_of() -> Callable[[Study], Arrays]:
    """The first model of a study, as the coordinator would send it."""

    def build(study: Study) -> Arrays:
        return {name: tensor.numpy() for name, tensor in study.build_model().state_dict().items()}

    return build


@pytest.fixture
def make_request() -> Callable[..., Message]:
    """Makes a request of any type, with any content."""

    def make(kind: str, content: RecordDict | None = None) -> Message:
        return Message(content or RecordDict({CONFIG: ConfigRecord()}), 1, kind, group_id="1")

    return make


@pytest.fixture
def ask(tmp_path: Path, make_request: Callable[..., Message], study_of: Callable[..., Study]) -> Callable[..., Message]:
    """Sends one request to the real app on one of several simulated nodes, and gives its reply.

    Virtual hospitals keep their folders in ``tmp_path / "sites"``.
    """

    def send(
        kind: str,
        *,
        site: str = "hospital-1",
        server_round: int = 0,
        arrays: Arrays | None = None,
        run: str = "run-1",
        fingerprint: str | None = None,
        study: str = "breast-cancer",
        overrides: Mapping[str, Scalar] | None = None,
        node: tuple[int, int] = (0, 1),
        node_config: Mapping[str, Scalar] | None = None,
        edit: Callable[[RecordDict], None] | None = None,
    ) -> Message:
        ours = study_of(study, overrides).fingerprint if fingerprint is None else fingerprint
        request = Request(run=run, fingerprint=ours, site=site, server_round=server_round)
        content = RecordDict({CONFIG: request.to_config()})
        if arrays is not None:
            content[ARRAYS] = to_array_record(arrays)
        if edit is not None:
            edit(content)
        config = dict(node_config or {"partition-id": node[0], "num-partitions": node[1]})
        run_config: dict[str, Scalar] = {"study": study, "out": str(tmp_path), **FIXED, **(overrides or {})}
        return app(make_request(kind, content), Context(1, 1, config, RecordDict(), run_config))

    return send


@pytest.fixture
def edit_records(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[SiteRecords], SiteRecords]], None]:
    """Changes what every virtual hospital's source holds, from now on."""
    load = BuiltInSource.load

    def install(edit: Callable[[SiteRecords], SiteRecords]) -> None:
        monkeypatch.setattr(BuiltInSource, "load", lambda source: edit(load(source)))

    return install


@pytest.fixture
def to_bytes() -> Callable[[Any], bytes]:
    """Everything that Flower sends of a reply's content."""

    def gather(part: Any) -> bytes:
        children = (part.children or {}).values()
        return bytes(part.deflate()) + b"".join(gather(child) for child in children)

    return gather


@pytest.fixture
def spellings() -> Callable[[float], list[bytes]]:
    """The ways in which a number could be written into a message or a log."""

    def spell(number: float) -> list[bytes]:
        return [str(number).encode(), *(struct.pack(f"{order}{size}", number) for order in "<>" for size in "fd")]

    return spell


@pytest.fixture
def write_site_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the ``site.toml`` of a real hospital into a folder of its own; a run may set what it likes there."""

    def write(name: str = "st-anna", **policy: float | str) -> Path:
        settings = {"epsilon-budget": 10.0, "delta": 0.001, "run-settings": json.dumps(OVERRIDABLE_KEYS)} | {
            key.replace("_", "-"): policy[key] for key in policy
        }
        path = tmp_path / "real" / name / "site.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f'name = "{name}"',
            "declared-examples = 70",
            "[source]",
            'kind = "built-in"',
            'dataset = "breast-cancer"',
            "parts = [0]",
            "num-parts = 4",
            "alpha = 2.0",
            "test-fraction = 0.3",
            "seed = 2026",
            "[policy]",
            *(f"{key} = {value}" for key, value in settings.items()),
        ]
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def model(study_of: Callable[..., Study], model_of: Callable[[Study], Arrays]) -> Arrays:
    """The first model of the breast-cancer study."""
    return model_of(study_of())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the virtual hospital that `ask` asks unless told otherwise."""
    return tmp_path / "sites" / "hospital-1"


@pytest.fixture
def train(ask: Callable[..., Message], model: Arrays) -> Callable[..., Message]:
    """Asks for a round of training, of the study's first model."""

    def train(server_round: int, **options: Any) -> Message:
        return ask(TRAIN, server_round=server_round, **{"arrays": model, **options})

    return train


@pytest.fixture
def charges(folder: Path) -> Callable[[], list[LedgerEntry]]:
    """What the hospital's ledger holds."""

    def read() -> list[LedgerEntry]:
        settings = read_site_settings(folder / "site.toml")
        with open_ledger(settings, folder, cohort=training_cohort(settings)) as ledger:
            return ledger.entries()

    return read


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes this process another one in the eyes of the ledger."""
    names = iter(range(100))
    return lambda: monkeypatch.setattr("privacy.ledger._HOLDER", f"process-{next(names)}")
