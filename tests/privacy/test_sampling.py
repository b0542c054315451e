"""A Poisson batch holds each record independently with the plan's probability."""

import numpy as np
import pytest
import torch

from privacy.errors import PrivacySettingError
from privacy.sampling import sample_poisson

NUM_BATCHES = 4000
NUM_RECORDS = 60
RATE = 0.25


def test_batch_sizes_have_the_binomial_mean_and_variance() -> None:
    sizes = np.array([len(sample_poisson(NUM_RECORDS, RATE)) for _ in range(NUM_BATCHES)])

    # Binomial(60, 0.25): mean 15, variance 11.25. The mean's standard error is sqrt(11.25/4000) = 0.053, the
    # variance's about 11.25*sqrt(2/4000) = 0.25; 5 of them are exceeded about once in 10^6.
    assert abs(sizes.mean() - 15) < 5 * 0.053
    assert abs(sizes.var() - 11.25) < 5 * 0.26


def test_every_record_is_drawn_equally_often_and_independently() -> None:
    is_in = np.zeros((NUM_BATCHES, NUM_RECORDS))
    for batch in range(NUM_BATCHES):
        is_in[batch, sample_poisson(NUM_RECORDS, RATE)] = 1

    # Each frequency has standard error sqrt(0.25*0.75/4000) = 0.00685, each correlation 1/sqrt(4000) = 0.0158.
    # 60 frequencies and 1770 correlations, so 6.5 standard errors keep false alarms below 10^-6.
    correlations = np.asarray(np.corrcoef(is_in, rowvar=False))[np.triu_indices(NUM_RECORDS, k=1)]
    assert np.abs(is_in.mean(axis=0) - RATE).max() < 6.5 * 0.00685
    assert np.abs(correlations).max() < 6.5 * 0.0158


def test_indices_are_ascending_without_repeats_and_fit_torch() -> None:
    indices = sample_poisson(500, 0.5)

    assert indices.dtype == np.int64
    assert np.all(np.diff(indices) > 0)
    assert torch.from_numpy(indices).dtype == torch.int64
    assert indices[0] >= 0
    assert indices[-1] < 500


def test_a_rate_of_one_takes_every_record() -> None:
    assert sample_poisson(7, 1.0).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_no_records_give_an_empty_batch() -> None:
    assert sample_poisson(0, 0.5).shape == (0,)


def test_the_same_seed_does_not_repeat_the_batches() -> None:
    batches = []
    for _ in range(2):
        torch.manual_seed(0)
        batches.append(sample_poisson(500, 0.5).tolist())

    assert batches[0] != batches[1]


@pytest.mark.parametrize(("num_records", "rate"), [(-1, 0.5), (10, 0.0), (10, 1.5), (10, float("nan"))])
def test_impossible_settings_are_refused(num_records: int, rate: float) -> None:
    with pytest.raises(PrivacySettingError):
        sample_poisson(num_records, rate)
