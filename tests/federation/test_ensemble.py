"""A one-shot study's result is every hospital's model, measured as one at every hospital."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from federation_harness import PLAIN, PRIVATE, Federation, Handler
from flwr.app import Context, Error, Message, RecordDict

from fl_client.inputs import held_out_examples
from fl_client.site import open_sites
from fl_contract.array_record import Arrays, from_array_record
from fl_contract.errors import RefusalCode
from fl_contract.messages import ARRAYS, TRAIN, site_of_reply
from fl_contract.models.ensemble import join_members
from fl_contract.study_file import Scalar, load_study

ONE_SHOT: dict[str, Scalar] = {
    "strategy.name": "one-shot-ensemble",
    "strategy.weighting": "equal",
    "num-rounds": 1,
}
LONG: dict[str, Scalar] = {**PLAIN, **ONE_SHOT, "training.learning-rate": 0.5, "training.local-epochs": 20}


def keep_models(sent: dict[str, Arrays], *, refusing: str = "") -> Callable[[Handler], Handler]:
    """Hospitals whose train replies are noted; one of them may refuse to train."""

    def wrap(app: Handler) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            if message.metadata.message_type != TRAIN:
                return app(message, context)
            if message.content.config_records["config"]["site"] == refusing:
                return Message(Error(code=RefusalCode.POLICY, reason="not today"), reply_to=message)
            reply = app(message, context)
            sent[str(site_of_reply(reply))] = from_array_record(reply.content.array_records[ARRAYS])
            return reply

        return handle

    return wrap


def pooled_loss_by_hand(out: Path, members: list[Arrays]) -> float:
    """Over all hospitals' held-out patients: -log of the mean probability of what each patient has."""
    run_config: dict[str, Scalar] = {"study": "breast-cancer", "out": str(out), **LONG}
    sites = open_sites(Context(1, 1, {"partition-id": 0, "num-partitions": 1}, RecordDict(), run_config))
    losses = []
    for site in sites.values():
        examples = held_out_examples(site, site.load_records())
        inputs, labels = examples.inputs.double().numpy(), examples.labels.numpy()
        log_odds = [inputs @ member["1.weight"].T.astype(float) + member["1.bias"] for member in members]
        probability = np.mean([1 / (1 + np.exp(-each[:, 0])) for each in log_odds], axis=0)
        losses.append(-np.log(np.where(labels == 1, probability, 1 - probability)))
    return float(np.concatenate(losses).mean())


@pytest.mark.parametrize("refusing", ["", "hospital-2"])
def test_the_result_is_the_models_of_those_that_answered_in_the_order_of_their_names(
    tmp_path: Path, refusing: str
) -> None:
    sent: dict[str, Arrays] = {}

    outcome = Federation(tmp_path).run(overrides=LONG, wrap=keep_models(sent, refusing=refusing))

    answered = [name for name in (f"hospital-{number}" for number in range(1, 5)) if name != refusing]
    members = [sent[site] for site in answered]
    expected = join_members(members)
    assert set(outcome.model) == set(expected)
    assert all(np.array_equal(outcome.model[name], array) for name, array in expected.items())
    best, last = ((outcome.folder / f"{name}.safetensors").read_bytes() for name in ("best-model", "model"))
    assert best == last
    (line,) = outcome.rounds
    assert line["pooled"]["loss"] == pytest.approx(pooled_loss_by_hand(tmp_path, members), rel=1e-5)
    assert line["pooled"]["figures"]["auroc"] > 0.98
    site = line["sites"]["hospital-1"]
    assert site["bytes_down"] > (1 + len(members)) * 31 * 4
    assert site["bytes_up"] < 2 * site["bytes_down"] / (1 + len(members))

    ensemble = load_study("breast-cancer", overrides=LONG).build_ensemble(len(members))
    ensemble.load_state_dict({name: torch.from_numpy(array) for name, array in outcome.model.items()})


def test_a_private_study_has_a_private_ensemble(tmp_path: Path) -> None:
    outcome = Federation(tmp_path).run(overrides=PRIVATE | ONE_SHOT)

    assert len(outcome.model) == 4 * 2
    assert outcome.rounds[0]["sites"]["hospital-1"]["epsilon"] > 0
    assert outcome.header["status"] == "completed"
