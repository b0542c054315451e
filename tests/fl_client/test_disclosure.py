"""What leaves a hospital is what stands in the gate's own list; all else stays, and leaves no line in the journal."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fl_client.data.records import SiteRecords
from fl_client.disclosure import TRAIN_WITH_LOSS, WITH_MODEL, release
from fl_client.journal import JOURNAL_FILE, RELEASE, Journal
from fl_contract.array_record import Arrays, to_array_record
from fl_contract.codecs.codec import CodecSeed
from fl_contract.codecs.int8 import Int8
from fl_contract.coded_update import UPDATE, UpdateForm
from fl_contract.errors import DisclosureError
from fl_contract.messages import (
    ARRAYS,
    CONFIG,
    EVALUATE,
    METRICS,
    PLAN,
    ROSTER,
    TRAIN,
    PrivacySpent,
    Request,
    SitePlan,
    TrainReply,
    evaluation_content,
    roster_content,
)
from fl_contract.metrics.classes import Evaluation
from fl_contract.study import Study

REQUEST = Request(run="run-1", fingerprint="f", site="hospital-1", server_round=2)

STUDY = "heart-disease"

KINDS = (ROSTER, PLAN, TRAIN, TRAIN_WITH_LOSS, EVALUATE)


def model() -> Arrays:
    return {"w": np.zeros((2, 3), dtype=np.float32), "steps": np.array(4, dtype=np.int64)}


def reply_of(kind: str) -> RecordDict:
    if kind == ROSTER:
        return roster_content(["hospital-1"])
    if kind == PLAN:
        return SitePlan(site="hospital-1", num_examples=80, noise_multiplier=1.5).to_content()
    if kind == TRAIN:
        spent = PrivacySpent(epsilon=0.5, delta=0.001, steps=4)
        return TrainReply(site="hospital-1", arrays=model(), num_examples=80, spent=spent).to_content()
    if kind == TRAIN_WITH_LOSS:
        return TrainReply(site="hospital-1", arrays=model(), num_examples=80, spent=None, loss=0.25).to_content()
    measured = Evaluation.of(np.full((7, 1), -2.0), np.zeros(7, dtype=np.int64), loss_sum=3.5)
    return evaluation_content("hospital-1", measured)


def with_array(name: str, array: np.ndarray[Any, Any]) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[ARRAYS] = to_array_record(model() | {name: array})

    return change


def with_field(record: str, name: str, value: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[record][name] = value

    return change


def with_record(name: str, record: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[name] = record

    return change


def with_renamed_array(content: RecordDict) -> None:
    arrays = model()
    content[ARRAYS] = to_array_record({"patients": arrays["w"], "steps": arrays["steps"]})


def without(name: str) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        del content[name]

    return change


SECRET_ARRAY = ArrayRecord({"loss": Array(np.array([62.0, 71.0]))})

FORBIDDEN = [
    *((kind, with_field(CONFIG, "note", "patient 17")) for kind in KINDS),
    *((kind, with_record("extra", ConfigRecord({"site": "hospital-1"}))) for kind in KINDS),
    *((kind, with_record("extra", MetricRecord({"loss": 1.0}))) for kind in KINDS),
    *((kind, with_record("extra", SECRET_ARRAY)) for kind in KINDS),
    *((kind, without(CONFIG)) for kind in KINDS),
    *((kind, with_record(ARRAYS, SECRET_ARRAY)) for kind in KINDS),
    *((kind, with_record(CONFIG, SECRET_ARRAY)) for kind in KINDS),
    (ROSTER, with_field(CONFIG, "sites", "hospital-1")),
    (ROSTER, with_field(CONFIG, "sites", [62.0, 71.0])),
    (PLAN, with_field(CONFIG, "num-examples", [62, 71])),
    (PLAN, with_field(CONFIG, "site", b"62,71")),
    (PLAN, with_field(CONFIG, "num-cores", [62, 71])),
    (PLAN, with_field(CONFIG, "has-gpu", "62")),
    (TRAIN, with_field(METRICS, "loss", 0.25)),
    (TRAIN_WITH_LOSS, with_field(METRICS, "loss", [62.0, 71.0])),
    (TRAIN_WITH_LOSS, with_field(METRICS, "epsilon", 0.5)),
    (TRAIN_WITH_LOSS, with_array("patients", np.zeros(1, dtype=np.float32))),
    (TRAIN_WITH_LOSS, without(ARRAYS)),
    (TRAIN, with_field(METRICS, "num-examples", [62, 71])),
    (TRAIN, with_field(METRICS, "epsilon", [62.0, 71.0])),
    (TRAIN, with_record(METRICS, SECRET_ARRAY)),
    (TRAIN, with_record(ARRAYS, MetricRecord({"w": [62.0, 71.0]}))),
    (TRAIN, without(METRICS)),
    (TRAIN, without(ARRAYS)),
    (TRAIN, with_array("patients", np.zeros(1, dtype=np.float32))),
    (TRAIN, with_array("w", np.zeros((3, 2), dtype=np.float32))),
    (TRAIN, with_array("w", np.zeros((2, 3, 1), dtype=np.float32))),
    (TRAIN, with_array("w", np.zeros((2, 3), dtype=np.float64))),
    (TRAIN, with_array("steps", np.zeros(1, dtype=np.int64))),
    (TRAIN, with_renamed_array),
    (EVALUATE, with_field(METRICS, "age-mean", 61.5)),
    (EVALUATE, with_field(METRICS, "score-counts", [0.5, 0.75])),
    (EVALUATE, with_field(METRICS, "loss", [0.5, 0.75])),
    (EVALUATE, with_field(METRICS, "brier-sum", [0.5, 0.75])),
    (EVALUATE, with_field(METRICS, "brier-square-sum", [0.5, 0.75])),
    (EVALUATE, with_field(METRICS, "true-positives", [0, 1])),
    (EVALUATE, with_field(METRICS, "true-negatives", 0.5)),
    (EVALUATE, with_field(METRICS, "threshold", [62.0])),
    (EVALUATE, with_field(METRICS, "pair-sums", 0.5)),
    (EVALUATE, with_record(METRICS, SECRET_ARRAY)),
]


@pytest.mark.parametrize(("kind", "change"), FORBIDDEN)
def test_what_was_not_agreed_stays_and_leaves_no_line(
    tmp_path: Path, kind: str, change: Callable[[RecordDict], None]
) -> None:
    content = reply_of(kind)
    change(content)

    with pytest.raises(DisclosureError) as caught:
        release(content, kind, REQUEST, folder=tmp_path, study=STUDY, model=model() if kind in WITH_MODEL else None)

    assert list(tmp_path.iterdir()) == []
    assert "62" not in str(caught.value)
    assert "patient 17" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_agreed_reply_leaves_as_it_is_and_is_logged(tmp_path: Path, kind: str) -> None:
    content = reply_of(kind)

    released = release(
        content, kind, REQUEST, folder=tmp_path, study=STUDY, model=model() if kind in WITH_MODEL else None
    )

    assert released is content
    (entry,) = Journal(tmp_path).read()
    logged = entry.fields
    assert (entry.kind, logged["reply"], logged["study"]) == (RELEASE, kind, STUDY)
    assert (logged["run"], logged["round"]) == ("run-1", 2)
    assert logged["sha256"] == hashlib.sha256(content.deflate()).hexdigest()


FORM = UpdateForm(codec=Int8(((2, 3),)), zstd=False, trained=("w",))


def coded_reply() -> RecordDict:
    seed = CodecSeed(seed=1, site="hospital-1", server_round=2)
    reply = TrainReply(site="hospital-1", arrays=model(), num_examples=80, spent=None)
    return reply.to_content(FORM.encode(model(), model(), None, seed)[0])


def test_a_coded_reply_leaves_where_the_study_names_its_codec_and_is_logged(tmp_path: Path) -> None:
    """Six numbers and one scale, the name of the array; the number of examples; the site."""
    release(coded_reply(), TRAIN, REQUEST, folder=tmp_path, study=STUDY, model=model(), form=FORM)

    (entry,) = Journal(tmp_path).read()
    logged = entry.fields
    assert logged["fields"][ARRAYS] == [UPDATE]
    assert logged["bytes"] == 6 + 4 + len(UPDATE) + 12 + 8 + 4 + 10


@pytest.mark.parametrize(
    ("content", "form"),
    [
        pytest.param(reply_of(TRAIN), FORM, id="plain weights of a study with a codec"),
        pytest.param(coded_reply(), None, id="a coded update of a study without"),
        pytest.param(
            coded_reply(), UpdateForm(codec=Int8(((2, 4),)), zstd=False, trained=("w",)), id="another number of bytes"
        ),
    ],
)
def test_a_reply_of_another_form_than_the_studys_stays(
    tmp_path: Path, content: RecordDict, form: UpdateForm | None
) -> None:
    with pytest.raises(DisclosureError, match="arrays"):
        release(content, TRAIN, REQUEST, folder=tmp_path, study=STUDY, model=model(), form=form)

    assert list(tmp_path.iterdir()) == []


def test_patients_beside_a_coded_update_stay(tmp_path: Path) -> None:
    content = coded_reply()
    content.array_records[ARRAYS]["patients"] = Array(np.array([62.0, 71.0]))

    with pytest.raises(DisclosureError, match="patients"):
        release(content, TRAIN, REQUEST, folder=tmp_path, study=STUDY, model=model(), form=FORM)


def test_a_train_reply_without_privacy_leaves_without_a_spend(tmp_path: Path) -> None:
    content = TrainReply(site="hospital-1", arrays=model(), num_examples=80, spent=None).to_content()

    release(content, TRAIN, REQUEST, folder=tmp_path, study=STUDY, model=model())

    (entry,) = Journal(tmp_path).read()
    logged = entry.fields
    assert logged["fields"] == {ARRAYS: ["steps", "w"], METRICS: ["num-examples"], CONFIG: ["site"]}


@pytest.mark.parametrize(
    ("kind", "num_bytes"),
    [
        # Names of fields and 8 bytes a number: "sites" and "hospital-1".
        (ROSTER, 5 + 10),
        # "site", "hospital-1"; "num-examples"; "noise-multiplier".
        (PLAN, 4 + 10 + 12 + 8 + 16 + 8),
        # NumPy writes 128 bytes before an array: "w" with 6 float32, "steps" with 1 int64; "num-examples", "epsilon",
        # "delta", "steps"; "site", "hospital-1".
        (TRAIN, 1 + 128 + 24 + 5 + 128 + 8 + 12 + 7 + 5 + 5 + 4 * 8 + 4 + 10),
        # "num-examples", "loss", "loss-sum", "num-correct", "score-counts" with 1152 counts; "brier-sum",
        # "brier-square-sum"; "threshold", "true-positives", "true-negatives"; "site", "hospital-1".
        (EVALUATE, 12 + 4 + 8 + 11 + 12 + 4 * 8 + 1152 * 8 + 9 + 16 + 9 + 14 + 14 + 5 * 8 + 4 + 10),
    ],
)
def test_the_journal_says_how_many_bytes_left(tmp_path: Path, kind: str, num_bytes: int) -> None:
    release(reply_of(kind), kind, REQUEST, folder=tmp_path, study=STUDY, model=model() if kind in WITH_MODEL else None)

    assert Journal(tmp_path).read()[0].fields["bytes"] == num_bytes


def test_the_journal_tells_two_replies_apart_that_differ_in_one_weight(tmp_path: Path) -> None:
    for weight in (1.0, np.nextafter(np.float32(1), np.float32(2))):
        arrays = model()
        arrays["w"][1, 2] = weight
        content = TrainReply(site="hospital-1", arrays=arrays, num_examples=80, spent=None).to_content()
        release(content, TRAIN, REQUEST, folder=tmp_path, study=STUDY, model=model())

    assert len({entry.fields["sha256"] for entry in Journal(tmp_path).read()}) == 2


def test_a_reply_is_in_the_journal_before_it_may_leave(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_FILE).mkdir()  # cannot be written

    with pytest.raises(IsADirectoryError):
        release(reply_of(ROSTER), ROSTER, REQUEST, folder=tmp_path, study=STUDY)


@pytest.mark.parametrize("mechanism", ["dp-sgd", "none"])
def test_nothing_that_a_run_sends_or_logs_as_sent_holds_a_patients_value_or_a_path(
    ask: Callable[..., Message],
    study_of: Callable[..., Study],
    model_of: Callable[[Study], Arrays],
    edit_records: Callable[[Callable[[SiteRecords], SiteRecords]], None],
    to_bytes: Callable[[Any], bytes],
    spellings: Callable[[float], list[bytes]],
    tmp_path: Path,
    mechanism: str,
) -> None:
    secret = 17.123456789

    def plant(site: SiteRecords) -> SiteRecords:
        for records in (site.train, site.test):
            records.features[::3] = secret
        return site

    edit_records(plant)
    overrides = {"privacy.mechanism": mechanism}
    arrays = model_of(study_of())

    replies = [
        ask(ROSTER, site="", overrides=overrides),
        ask(PLAN, overrides=overrides),
        ask(TRAIN, server_round=1, arrays=arrays, overrides=overrides),
        ask(EVALUATE, server_round=1, arrays=arrays, overrides=overrides),
    ]

    sent = [to_bytes(reply.content) for reply in replies]
    log = (tmp_path / "sites" / "hospital-1" / JOURNAL_FILE).read_bytes()
    assert log.count(b"\n") == 4
    assert [entry.kind for entry in Journal(tmp_path / "sites" / "hospital-1").read()] == [RELEASE] * 4
    for text in [*sent, log]:
        for spelling in [*spellings(secret), b"malignant", b"17.12", str(tmp_path).encode(), b"site.toml"]:
            assert spelling not in text


def test_a_patients_value_in_a_reply_would_be_found(
    to_bytes: Callable[[Any], bytes], spellings: Callable[[float], list[bytes]]
) -> None:
    content = reply_of(TRAIN)
    content[ARRAYS] = to_array_record({"w": np.array([17.123456789], dtype=np.float32)})

    assert any(spelling in to_bytes(content) for spelling in spellings(17.123456789))
