"""A run trains one model over hospitals, records every round, and does not depend on which nodes carry them."""

from pathlib import Path

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from federation_harness import PLAIN, PRIVATE, Federation, Handler
from flwr.app import Context, Message
from measurements import of_classes

import fl_server.round_loop as round_loop
from fl_client.journal import RELEASE, Journal
from fl_contract.array_record import Arrays
from fl_contract.errors import SettingError
from fl_contract.messages import EVALUATE, PrivacySpent, noised_evaluation_content, site_of_reply
from fl_contract.metrics import merge_measurements
from fl_contract.metrics.noised import NoisedCounts
from fl_contract.study_file import Scalar
from fl_server.checkpoint import Checkpoint, write_checkpoint
from fl_server.report import write_report
from fl_server.summary import read_evaluations
from privacy.accounting import Spend, compute_epsilon


def test_a_run_without_privacy_learns_and_records_every_round(tmp_path: Path) -> None:
    federation = Federation(tmp_path)

    outcome = federation.run(overrides={**PLAIN, "num-rounds": 5})

    assert outcome.header["status"] == "completed"
    assert [line["round"] for line in outcome.rounds] == [1, 2, 3, 4, 5]
    assert outcome.rounds[-1]["pooled"]["figures"]["auroc"] > 0.98
    assert outcome.rounds[-1]["pooled"]["loss"] < outcome.rounds[0]["pooled"]["loss"]


def test_a_round_s_line_holds_what_every_hospital_did(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides=PRIVATE)

    line = outcome.rounds[1]

    assert sorted(line["sites"]) == ["hospital-1", "hospital-2", "hospital-3", "hospital-4"]
    for site in line["sites"].values():
        assert site["num_examples"] % 10 == 0
        assert 0 < site["loss"] < 1
        assert site["bytes_up"] > 31 * 4  # 31 float32 parameters and their headers
        assert site["bytes_down"] == 2 * site["bytes_up"]  # to train and to measure
        assert site["epsilon"] > 0
        assert site["delta"] == 0.001
    assert line["missing"] == {}


def test_the_epsilon_in_the_record_is_that_of_the_noise_rate_and_steps_that_ran(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides=PRIVATE)

    for number, line in enumerate(outcome.rounds, start=1):
        for name, site in line["sites"].items():
            noise = outcome.header["sites"][name]["noise_multiplier"]
            spend = Spend(noise_multiplier=noise, sampling_rate=0.25, steps=2 * number)
            assert site["epsilon"] == compute_epsilon([spend], 0.001)
    assert 7.9 < outcome.rounds[-1]["sites"]["hospital-1"]["epsilon"] <= 8.0  # the whole target, never over


def test_the_epsilon_of_a_run_is_confirmed_by_a_second_accountant(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides=PRIVATE)

    for line in outcome.rounds:
        noise = outcome.header["sites"]["hospital-1"]["noise_multiplier"]
        step = PoissonSampledDpEvent(0.25, GaussianDpEvent(noise))
        pld = PLDAccountant().compose(step, 2 * line["round"]).get_epsilon(0.001)
        assert pld <= line["sites"]["hospital-1"]["epsilon"] <= pld + 0.02


def test_pooled_figures_are_those_of_all_held_out_patients_together(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run()

    evaluations = read_evaluations(outcome.folder / "evaluation.json")

    correct = sum(of_classes(evaluation).num_correct for evaluation in evaluations.values())
    patients = sum(evaluation.num_examples for evaluation in evaluations.values())
    assert outcome.rounds[-1]["pooled"]["figures"]["accuracy"] == correct / patients


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 7])
def test_the_model_does_not_depend_on_how_many_nodes_carry_the_hospitals(tmp_path: Path, num_nodes: int) -> None:
    expected = Federation(tmp_path / "four").run().model

    model = Federation(tmp_path / "other").run(num_nodes=num_nodes).model

    assert {name: array.tobytes() for name, array in model.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    first = Federation(tmp_path / "a").run().model
    again = Federation(tmp_path / "b").run().model
    other = Federation(tmp_path / "c").run(overrides={**PLAIN, "seed": 6}).model

    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_private_runs_draw_new_noise_whatever_the_seed(tmp_path: Path) -> None:
    first = Federation(tmp_path / "a").run(overrides=PRIVATE).model
    again = Federation(tmp_path / "b").run(overrides=PRIVATE).model

    assert not any(np.array_equal(first[name], again[name]) for name in first)


def test_a_run_stops_once_the_loss_no_longer_falls(tmp_path: Path) -> None:
    overrides = {**PLAIN, "num-rounds": 30, "stopping.patience": 2, "stopping.min-improvement": 0.05}

    outcome = Federation(tmp_path).run(overrides=overrides)

    losses = [line["pooled"]["loss"] for line in outcome.rounds]
    assert outcome.header["status"] == "converged"
    assert len(losses) < 30
    assert min(losses[:-2]) <= min(losses[-2:]) + 0.05


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run()

    with pytest.raises(SettingError, match="holds a run already; choose another folder, or resume it"):
        federation.run()


def test_images_and_batch_norm_train_without_privacy(tmp_path: Path) -> None:
    overrides = {**PLAIN, "model.norm": "batch", "model.width": 4, "num-rounds": 2, "strategy.server-momentum": 0.9}

    outcome = Federation(tmp_path).run("digits", overrides=overrides)

    variances = [array for name, array in outcome.model.items() if name.endswith("running_var")]
    counters = [array for name, array in outcome.model.items() if name.endswith("num_batches_tracked")]
    assert len(variances) == len(counters) == 2
    assert all((variance > 0).all() for variance in variances)
    assert all(counter.dtype == np.int64 and counter > 0 for counter in counters)


def test_only_some_hospitals_are_asked_where_the_study_says_so(tmp_path: Path) -> None:
    overrides = {**PLAIN, "federation.fraction-sites": 0.5, "federation.min-sites": 2, "num-rounds": 6}

    outcome = Federation(tmp_path).run(overrides=overrides)

    trained = [{name for name, site in line["sites"].items() if site["num_examples"]} for line in outcome.rounds]
    assert all(len(sites) == 2 for sites in trained)
    assert len(set().union(*trained)) > 2


def test_what_left_each_hospital_is_in_its_journal(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.run(overrides={**PLAIN, "num-rounds": 2})

    for number in range(1, 5):
        entries = Journal(tmp_path / "sites" / f"hospital-{number}").read()
        assert {(entry.kind, entry.fields["study"]) for entry in entries} == {(RELEASE, "breast-cancer")}
        replies = [entry.fields["reply"] for entry in entries]
        assert replies == ["query.roster", "query.plan", "train", "evaluate", "train", "evaluate"]


def test_a_run_whose_hospitals_measure_with_noise_ends_with_estimates_and_their_cost(tmp_path: Path) -> None:
    overrides: dict[str, Scalar] = {
        **PRIVATE,
        "simulation.measurements": "noised",
        "federation.measure-every": 3,
        "privacy.measurement-epsilon": 4.0,
    }

    outcome = Federation(tmp_path).run(overrides=overrides)

    assert [line["pooled"] is None for line in outcome.rounds] == [True, True, False]
    for site in outcome.rounds[-1]["sites"].values():
        assert 3.9 < site["measured_epsilon"] <= 4.0
        assert site["noise_scale"] > 0.5
    merged = merge_measurements(read_evaluations(outcome.folder / "evaluation.json").values())
    assert merged.noised is not None
    assert abs(merged.num_examples - 172) < 60  # held out of 569; the noise in 4 x 16 counts is 8 x 1.3 or so


def test_a_private_run_measures_and_gives_the_mean_of_the_last_half_of_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: dict[int, Arrays] = {}

    def keep(folder: Path, checkpoint: Checkpoint) -> None:
        models[checkpoint.server_round] = checkpoint.model
        write_checkpoint(folder, checkpoint)

    monkeypatch.setattr(round_loop, "write_checkpoint", keep)

    outcome = Federation(tmp_path).run(overrides=PRIVATE)

    assert outcome.header["averaged_from_round"] == 2  # of 3
    for name, array in outcome.model.items():
        mean = (models[2][name].astype(np.float64) + models[3][name]) / 2
        assert np.array_equal(array, mean.astype(np.float32))
        assert not np.array_equal(array, models[3][name])
    final = read_evaluations(outcome.folder / "evaluation.json")["hospital-1"]
    assert outcome.rounds[-1]["sites"]["hospital-1"]["loss"] == final.loss


def test_a_run_without_privacy_gives_its_last_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last: list[Arrays] = []
    monkeypatch.setattr(round_loop, "write_checkpoint", lambda folder, checkpoint: last.append(checkpoint.model))

    outcome = Federation(tmp_path).run()

    assert outcome.header["averaged_from_round"] is None
    assert all(np.array_equal(array, last[-1][name]) for name, array in outcome.model.items())


def test_a_round_of_gradients_is_a_round_of_models_after_one_step_on_all_records(tmp_path: Path) -> None:
    overrides: dict[str, Scalar] = {**PLAIN, "num-rounds": 2, "training.learning-rate": 0.5}

    by_models = Federation(tmp_path / "models").run(overrides=overrides | {"training.batch-size": 1000})
    by_gradients = Federation(tmp_path / "gradients").run(
        overrides=overrides | {"strategy.name": "fedsgd", "training.batch-size": 16}
    )

    for name, array in by_models.model.items():
        assert by_gradients.model[name] == pytest.approx(array, abs=1e-6)


def test_a_run_that_no_hospital_measures_goes_on_without_figures(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides={**PRIVATE, "simulation.measurements": "none"})

    assert outcome.header["status"] == "completed"
    assert [line["pooled"] for line in outcome.rounds] == [None, None, None]
    assert {absence["code"] for line in outcome.rounds for absence in line["missing"].values()} == {"policy"}
    assert read_evaluations(outcome.folder / "evaluation.json") == {}
    assert write_report(tmp_path).exists()


def test_a_hospital_that_changes_how_it_measures_is_left_out(tmp_path: Path) -> None:
    measured: list[Message] = []

    def swap(app: Handler) -> Handler:
        def answer(message: Message, context: Context) -> Message:
            reply = app(message, context)
            if message.metadata.message_type == EVALUATE and site_of_reply(reply) == "hospital-1":
                measured.append(reply)
                if len(measured) == 2:
                    noised = NoisedCounts(cells=np.ones(16, np.int64), noise_scale=1.0)
                    spent = PrivacySpent(epsilon=1.0, delta=0.001, steps=1)
                    return Message(noised_evaluation_content("hospital-1", noised, spent), reply_to=message)
            return reply

        return answer

    outcome = Federation(tmp_path).run(overrides=PLAIN, wrap=swap)

    assert outcome.rounds[1]["missing"]["hospital-1"]["code"] == "unusable-reply"
    assert [line["missing"] for line in outcome.rounds[::2]] == [{}, {}]
