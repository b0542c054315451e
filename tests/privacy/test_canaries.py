"""Canaries go through the product's own training, and leave exactly the trace that the accountant assumes."""

import numpy as np
import pytest

from privacy import units
from privacy.canaries import train_on_canaries
from privacy.errors import PrivacySettingError
from privacy.noise import NormalSource
from privacy.plan import PrivacyPlan


def make_plan(*, clip_norm: float = 1.0, sampling_rate: float = 0.5) -> PrivacyPlan:
    return PrivacyPlan(
        epsilon=1000.0,
        delta=1e-4,
        clip_norm=clip_norm,
        sampling_rate=sampling_rate,
        steps_per_round=3,
        num_rounds=2,
        noise_multiplier=5.0,
        nominal_units=70,
    )


@pytest.mark.parametrize("clip_norm", [1e-6, 0.25, 1e6])
def test_a_canary_moves_its_own_weight_by_one_clip_norm_in_each_of_its_batches_and_no_other(
    clip_norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NormalSource, "draw", lambda source: np.zeros(source._count))

    transcript = train_on_canaries(make_plan(clip_norm=clip_norm), 100)

    expected = np.zeros((6, 100))
    expected[:, transcript.is_in] = transcript.batches
    np.testing.assert_allclose(transcript.sums, expected, atol=1e-5)
    np.testing.assert_allclose(transcript.moved, expected.sum(axis=0), atol=1e-5)


def test_about_half_of_the_canaries_are_in_and_others_each_time() -> None:
    first, second = (train_on_canaries(make_plan(sampling_rate=1.0), 400).is_in for _ in range(2))

    # 400 fair coins: 200 heads, deviation 10; 60 off is one chance in 500 million. So are two equal rows of coins.
    assert 140 < first.sum() < 260
    assert not np.array_equal(first, second)


def test_a_step_whose_batch_is_empty_has_nobody_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = iter([[0, 2], [], [1], [], [], [0]])
    monkeypatch.setattr(units, "sample_poisson", lambda *_: np.array(next(batches), dtype=np.int64))

    transcript = train_on_canaries(make_plan(), 100)

    assert transcript.batches[:, :3].tolist() == [
        [True, False, True],
        [False, False, False],
        [False, True, False],
        [False, False, False],
        [False, False, False],
        [True, False, False],
    ]


def test_every_round_is_run_and_reported() -> None:
    rounds: list[None] = []

    train_on_canaries(make_plan(), 100, lambda: rounds.append(None))

    assert len(rounds) == 2


def test_too_few_canaries_are_refused() -> None:
    with pytest.raises(PrivacySettingError, match="num_canaries=99; expected at least 100"):
        train_on_canaries(make_plan(), 99)
