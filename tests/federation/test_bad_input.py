"""What goes wrong has a clear message, and one hospital's trouble does not become another's."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation_harness import PLAIN, PRIVATE, Federation, Handler
from flwr.app import Context, Message
from numpy.typing import NDArray

from fl_client.data.builtin import BuiltInSource
from fl_client.data.records import SiteRecords
from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.errors import QuorumError, RunError, SettingError
from fl_contract.messages import ARRAYS, METRICS, NUM_EXAMPLES, Request
from privacy.errors import UnsupportedModelError

Change = Callable[[Arrays], Arrays]


def _spoil(site: str, change: Callable[[Message], None], kind: str = "train") -> Callable[[Handler], Handler]:
    """Stand between one hospital and the coordinator and change what it answers."""

    def wrap(app: Handler) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            reply = app(message, context)
            if message.metadata.message_type == kind and Request.from_message(message).site == site:
                change(reply)
            return reply

        return handle

    return wrap


def _arrays(change: Change) -> Callable[[Message], None]:
    def apply(reply: Message) -> None:
        arrays = from_array_record(reply.content.array_records[ARRAYS])
        reply.content[ARRAYS] = to_array_record(change(arrays))

    return apply


def _first(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[Message], None]:
    return _arrays(lambda arrays: {name: change(a) if name == "1.weight" else a for name, a in arrays.items()})


def _change_records(
    monkeypatch: pytest.MonkeyPatch, *, part: int, change: Callable[[SiteRecords], SiteRecords]
) -> None:
    """Change what one virtual hospital's source loads."""
    load = BuiltInSource.load

    def load_changed(source: BuiltInSource) -> SiteRecords:
        records = load(source)
        return change(records) if source._settings.parts == (part,) else records

    monkeypatch.setattr(BuiltInSource, "load", load_changed)


def _all_benign(records: SiteRecords) -> SiteRecords:
    return replace(records, train=replace(records.train, labels=np.full_like(records.train.labels, "benign")))


def _count(value: int) -> Callable[[Message], None]:
    def apply(reply: Message) -> None:
        reply.content.metric_records[METRICS][NUM_EXAMPLES] = value

    return apply


def test_an_unknown_study_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError,
        match=r"study='heart'; expected one of \['breast-cancer', 'breastmnist', 'digits', 'heart-disease', "
        r"'heart-disease-flamby', 'mnist', 'tcga-brca'\]",
    ):
        Federation(tmp_path).run("heart")


def test_missing_files_of_a_simulation_stop_it_and_are_named_at_the_hospital(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(QuorumError, match=r"0 hospitals take part.*invalid-data"):
        Federation(tmp_path / "run").run("mnist", overrides={**PLAIN, "simulation.data": str(tmp_path)})

    assert "files ['train-images-idx3-ubyte', 'train-labels-idx1-ubyte'" in capsys.readouterr().err


def test_a_study_with_a_wrong_key_stops_the_run(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "studies" / "digits.toml").read_text()
    (tmp_path / "digits.toml").write_text(text.replace("batch-size = 32", "batch-sizes = 32"))

    with pytest.raises(
        SettingError, match=r"training.batch-sizes=32 is not a known key; did you mean 'training.batch-size'"
    ):
        Federation(tmp_path / "run").run("digits", studies=tmp_path)


def test_zero_hospitals_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"simulation.num-sites=0; expected .*1"):
        Federation(tmp_path).run(overrides={**PLAIN, "simulation.num-sites": 0})


def test_more_hospitals_asked_for_than_there_are_is_an_error(tmp_path: Path) -> None:
    overrides = {**PLAIN, "federation.min-sites": 5, "federation.round-timeout-seconds": 0.5}

    with pytest.raises(QuorumError, match=r"4 hospitals take part .*expected at least 5"):
        Federation(tmp_path).run(overrides=overrides)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(_first(lambda a: np.full_like(a, np.nan)), "'1.weight' holds NaN or infinity", id="NaN"),
        pytest.param(_first(lambda a: np.full_like(a, -np.inf)), "'1.weight' holds NaN or infinity", id="infinity"),
        pytest.param(_first(lambda a: a + 1e30), "norm is 5.48e+30; expected at most 100", id="too far"),
        pytest.param(_first(lambda a: a[:, :-1]), "'1.weight' has shape [1, 29]; expected [1, 30]", id="shape"),
        pytest.param(_first(lambda a: a.astype(np.float64)), "type float64; expected float32", id="type"),
        pytest.param(_arrays(lambda arrays: {"1.bias": arrays["1.bias"]}), "['1.weight'] are missing", id="missing"),
        pytest.param(_arrays(lambda arrays: {**arrays, "odd": arrays["1.bias"]}), "['odd'] are", id="extra"),
        pytest.param(_count(10**9), "num-examples=1000000000; expected 130", id="claims more patients"),
        pytest.param(_count(-80), "num-examples=-80; expected 130", id="negative weight"),
    ],
)
def test_an_unusable_reply_is_left_out_and_the_reason_is_recorded(
    tmp_path: Path, change: Callable[[Message], None], reason: str
) -> None:
    outcome = Federation(tmp_path).run(wrap=_spoil("hospital-1", change))

    for line in outcome.rounds:
        assert line["missing"]["hospital-1"]["code"] == "unusable-reply"
        assert reason in line["missing"]["hospital-1"]["reason"]
    assert outcome.header["status"] == "completed"
    assert all(np.isfinite(array).all() for array in outcome.model.values())


def test_the_model_is_that_of_the_other_hospitals_when_one_sends_nan(tmp_path: Path) -> None:
    def refuse(app: Handler) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            request = Request.from_message(message)
            if message.metadata.message_type == "train" and request.site == "hospital-1":
                raise RuntimeError("absent")
            return app(message, context)

        return handle

    spoiled = Federation(tmp_path / "spoiled").run(wrap=_spoil("hospital-1", _first(lambda a: a * np.nan)))
    absent = Federation(tmp_path / "absent").run(wrap=refuse)

    assert all(np.array_equal(spoiled.model[name], absent.model[name]) for name in absent.model)


def test_fewer_usable_replies_than_the_quorum_stop_the_run_and_name_each_reason(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    overrides = {**PLAIN, "federation.min-sites": 4}

    with pytest.raises(
        QuorumError, match=r"round 1: 3 usable replies; expected at least 4.*hospital-2: unusable-reply"
    ):
        federation.run(overrides=overrides, wrap=_spoil("hospital-2", _first(lambda a: a * np.nan)))

    assert federation.outcome().header["status"] == "failed"
    assert "hospital-2: unusable-reply" in federation.outcome().header["reason"]


def test_a_hospital_that_answers_after_the_deadline_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    release: list[float] = []

    def slow(app: Handler) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            is_last = Request.from_message(message).site == "hospital-4"
            if message.metadata.message_type == "train" and is_last and not release:
                release.append(1.0)
                time.sleep(1.5)
            return app(message, context)

        return handle

    overrides = {**PLAIN, "federation.round-timeout-seconds": 1.0, "num-rounds": 1}

    outcome = Federation(tmp_path).run(overrides=overrides, wrap=slow)

    assert outcome.rounds[0]["missing"]["hospital-4"] == {"code": "deadline", "reason": "No reply within 1 s."}
    assert sorted(n for n, site in outcome.rounds[0]["sites"].items() if site["num_examples"]) == [
        "hospital-1",
        "hospital-2",
        "hospital-3",
    ]


def test_a_hospital_with_one_class_refuses_before_round_1_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _change_records(monkeypatch, part=1, change=_all_benign)

    outcome = Federation(tmp_path).run()

    assert outcome.header["refused"] == {
        "hospital-2": {"code": "one-class", "reason": "The hospital's patients all carry the same label."}
    }
    assert "hospital-2" not in outcome.header["sites"]
    assert outcome.header["status"] == "completed"


def test_a_hospital_without_patients_refuses_before_round_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _change_records(
        monkeypatch, part=0, change=lambda records: replace(records, train=records.train.take(np.arange(0)))
    )

    outcome = Federation(tmp_path).run()

    assert outcome.header["refused"]["hospital-1"]["code"] == "too-few-patients"
    assert outcome.header["status"] == "completed"


def test_nan_in_a_hospital_s_data_refuses_it_without_a_value_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_nan(records: SiteRecords) -> SiteRecords:
        features = records.train.features.copy()
        features[3, 5] = np.nan
        return replace(records, train=replace(records.train, features=features))

    _change_records(monkeypatch, part=2, change=with_nan)

    outcome = Federation(tmp_path).run()

    assert outcome.header["refused"]["hospital-3"] == {
        "code": "invalid-data",
        "reason": "The hospital's data break the study's schema; its own log names the rule.",
    }
    log = (tmp_path / "sites" / "hospital-3" / "site.log").read_text()
    assert "feature 'mean compactness': 1 values are NaN or infinite; expected finite numbers" in log


def test_a_budget_of_0_refuses_every_hospital_before_round_1(tmp_path: Path) -> None:
    federation = Federation(tmp_path)

    with pytest.raises(QuorumError, match=r"before round 1: 0 hospitals take part .*hospital-1: budget-exhausted"):
        federation.run(overrides={**PRIVATE, "simulation.epsilon-budget": 0.0})


def test_a_hospital_whose_own_budget_runs_out_leaves_and_the_others_go_on(tmp_path: Path) -> None:
    Federation(tmp_path / "first").run(overrides={**PLAIN, "num-rounds": 1})
    written = (tmp_path / "first" / "sites" / "hospital-2" / "site.toml").read_text()
    site_file = tmp_path / "hospital-2" / "site.toml"
    site_file.parent.mkdir()
    site_file.write_text(written.replace("epsilon-budget = 10.0", "epsilon-budget = 6.5"))  # a full run takes 8

    outcome = Federation(tmp_path / "run").run(overrides=PRIVATE, site_files={1: site_file})

    assert outcome.header["refused"] == {}
    assert outcome.rounds[0]["missing"] == {}
    assert outcome.rounds[2]["missing"]["hospital-2"]["code"] == "budget-exhausted"
    assert outcome.rounds[2]["sites"]["hospital-2"]["num_examples"] is None
    assert outcome.rounds[2]["sites"]["hospital-3"]["num_examples"] is not None
    assert outcome.header["status"] == "completed"


@pytest.mark.slow
def test_a_hospital_whose_budget_holds_a_part_of_a_round_trains_that_part_and_the_record_says_so(
    tmp_path: Path,
) -> None:
    # Twelve steps of a quarter each take epsilon 8 of delta 0.001; ten of them take 7.31, eleven 7.66.
    twelve_steps = {**PRIVATE, "privacy.epsilon": 8.0, "privacy.delta": 0.001, "privacy.steps-per-round": 4}
    Federation(tmp_path / "first").run(overrides={**PLAIN, "num-rounds": 1})
    written = (tmp_path / "first" / "sites" / "hospital-2" / "site.toml").read_text()
    site_file = tmp_path / "hospital-2" / "site.toml"
    site_file.parent.mkdir()
    site_file.write_text(written.replace("epsilon-budget = 10.0", "epsilon-budget = 7.5"))

    outcome = Federation(tmp_path / "run").run(overrides=twelve_steps, site_files={1: site_file})

    steps = [{name: site["steps"] for name, site in line["sites"].items()} for line in outcome.rounds]
    whole = dict.fromkeys((f"hospital-{number}" for number in range(1, 5)), 4)
    assert steps == [whole, whole, {**whole, "hospital-2": 2}]
    assert [line["missing"] for line in outcome.rounds] == [{}, {}, {}]
    assert outcome.rounds[2]["sites"]["hospital-2"]["epsilon"] == pytest.approx(7.31, abs=0.01)
    assert outcome.rounds[2]["sites"]["hospital-3"]["epsilon"] == pytest.approx(8.0, abs=0.01)


@pytest.mark.parametrize("model", ["small-cnn", "resnet18"])
def test_a_private_study_refuses_batch_norm_before_round_1(tmp_path: Path, model: str) -> None:
    federation = Federation(tmp_path)

    with pytest.raises(UnsupportedModelError, match="BatchNorm"):
        federation.run("digits", overrides={"model.kind": model, "model.norm": "batch", "num-rounds": 1})

    assert not (tmp_path / "sites").exists()  # no hospital was asked anything
    assert "BatchNorm" in federation.outcome().header["reason"]


def test_a_measurement_of_other_classes_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    def two_classes(reply: Message) -> None:
        metrics = reply.content.metric_records[METRICS]
        one_class = np.asarray(metrics["score-counts"]).reshape(1, 2, -1)
        mirrored = one_class[:, ::-1, ::-1]  # whoever has not the one class has the other, as sure as before
        consistent = np.concatenate([mirrored, one_class])
        metrics["score-counts"] = [int(count) for count in consistent.ravel()]
        metrics["brier-sum"], metrics["brier-square-sum"] = 2 * metrics["brier-sum"], 4 * metrics["brier-square-sum"]
        for decided in ("threshold", "true-positives", "true-negatives"):
            del metrics[decided]

    outcome = Federation(tmp_path).run(wrap=_spoil("hospital-2", two_classes, kind="evaluate"))

    assert outcome.rounds[0]["missing"]["hospital-2"] == {
        "code": "unusable-reply",
        "reason": "score-counts are of 2 classes; expected 1",
    }
    assert outcome.header["status"] == "completed"


def test_a_node_that_answers_the_roll_call_with_nonsense_is_passed_over(tmp_path: Path) -> None:
    def nonsense(app: Handler) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            reply = app(message, context)
            if message.metadata.message_type == "query.roster" and context.node_config["partition-id"] == 3:
                del reply.content["config"]
            return reply

        return handle

    outcome = Federation(tmp_path).run(wrap=nonsense)

    assert sorted(outcome.header["sites"]) == ["hospital-1", "hospital-2", "hospital-3"]
    assert outcome.header["refused"]["node 1003"]["code"] == "unusable-reply"  # named, not silently passed over


def test_two_nodes_that_claim_one_hospital_stop_the_run(tmp_path: Path) -> None:
    Federation(tmp_path / "first").run(overrides={**PLAIN, "num-rounds": 1})
    copied = tmp_path / "first" / "sites" / "hospital-2" / "site.toml"

    with pytest.raises(RunError, match=r"\['hospital-2'\] are claimed by two nodes"):
        Federation(tmp_path / "run").run(site_files={3: copied})


def _metric(key: str, value: float) -> Callable[[Message], None]:
    def apply(reply: Message) -> None:
        reply.content.metric_records[METRICS][key] = value

    return apply


def test_an_absurd_loss_does_not_stop_the_run_early(tmp_path: Path) -> None:
    overrides = {**PLAIN, "stopping.patience": 2, "num-rounds": 5}

    outcome = Federation(tmp_path).run(
        overrides=overrides, wrap=_spoil("hospital-2", _metric("loss-sum", 1e308), kind="evaluate")
    )

    assert all("loss-sum" in line["missing"]["hospital-2"]["reason"] for line in outcome.rounds)
    assert outcome.header["status"] == "completed"


def test_a_hospital_that_refuses_neither_trains_nor_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _change_records(monkeypatch, part=1, change=_all_benign)

    outcome = Federation(tmp_path).run()

    assert all(sorted(line["sites"]) == ["hospital-1", "hospital-3", "hospital-4"] for line in outcome.rounds)
    assert all(line["missing"] == {} for line in outcome.rounds)
