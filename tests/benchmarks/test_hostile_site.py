"""The attacks of the benchmark are what it says: real replies of one hospital, with another update in them."""

from pathlib import Path

import hostile_site
import numpy as np
import pytest
from federation_harness import PLAIN, Federation

from fl_contract.array_record import Arrays
from fl_contract.study_file import load_study

RECEIVED: Arrays = {"w": np.array([1.0, 2.0], np.float32), "b": np.array([0.0], np.float32)}
HONEST: Arrays = {"w": np.array([1.5, 2.0], np.float32), "b": np.array([-1.0], np.float32)}


def test_backwards_is_ten_times_the_update_the_other_way() -> None:
    sent = hostile_site.send_backwards(RECEIVED, HONEST, np.random.default_rng(0))

    # 1 - 10 * 0.5, 2 - 10 * 0 and 0 - 10 * -1
    assert sent["w"].tolist() == [-4.0, 2.0]
    assert sent["b"].tolist() == [10.0]


def test_random_is_ten_times_as_long_as_the_update_and_in_the_models_types() -> None:
    sent = hostile_site.send_random(RECEIVED, HONEST, np.random.default_rng(0))

    update = np.concatenate([sent[name].astype(float) - RECEIVED[name] for name in RECEIVED])
    assert np.linalg.norm(update) == pytest.approx(10 * np.sqrt(0.5**2 + 1.0), rel=1e-6)
    assert all(sent[name].dtype == np.float32 and sent[name].shape == RECEIVED[name].shape for name in RECEIVED)


def test_the_reply_of_one_hospital_alone_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile_site, "HOSTILE", "hospital-2")
    changed: list[Arrays] = []

    def keep(received: Arrays, honest: Arrays, generator: np.random.Generator) -> Arrays:
        changed.append(honest)
        return hostile_site.send_backwards(received, honest, generator)

    honest, hostile = (
        Federation(tmp_path / name).run(overrides={**PLAIN, "num-rounds": 1, "strategy.weighting": "equal"}, wrap=wrap)
        for name, wrap in (
            ("honest", lambda app: app),
            ("hostile", lambda app: hostile_site.make_hostile(app, keep, 0)),
        )
    )

    assert hostile.rounds[0]["missing"] == {}
    (update,) = changed
    start = load_study("breast-cancer").build_model().state_dict()
    for name, array in honest.model.items():  # of four hospitals alike, one sends start - 10 * (own - start)
        moved = 11 * (update[name].astype(float) - start[name].numpy()) / 4
        assert hostile.model[name] == pytest.approx(array - moved, abs=1e-5)
