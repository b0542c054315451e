"""Privacy randomness comes from the operating system, has the right distribution and cannot be seeded."""

import math
import os
import random
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from privacy import noise
from privacy.errors import PrivacySettingError
from privacy.noise import NormalSource, secure_below, secure_normal, secure_uniform

COUNT = 200_000  # each statistical test below fails for correct code about once in 10^6 runs


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_uniforms_stay_strictly_between_zero_and_one_for_extreme_bytes(
    monkeypatch: pytest.MonkeyPatch, byte: bytes
) -> None:
    monkeypatch.setattr(noise, "_secure_bytes", lambda size: byte * size)

    uniform = secure_uniform(3)

    assert np.all((uniform > 0.0) & (uniform < 1.0))


def test_uniforms_use_the_upper_52_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    # 0x8000000000001FFF >> 12 = 2^51 + 1: the middle of that part is (2^51 + 1.5) / 2^52 = 0.5 + 3 * 2^-53.
    monkeypatch.setattr(noise, "_secure_bytes", lambda size: (0x8000000000001FFF).to_bytes(8, "little") * (size // 8))

    uniform = secure_uniform(1)

    assert uniform[0] == 0.5 + 3 * 2.0**-53


def distance_to_uniform(values: NDArray[np.float64]) -> float:
    """Return Kolmogorov's distance to the uniform distribution times sqrt(n); above 2.7 once in 10^6."""
    expected = (np.arange(len(values)) + 0.5) / len(values)
    return float(np.abs(np.sort(values) - expected).max() * np.sqrt(len(values)))


def test_uniforms_are_uniform() -> None:
    assert distance_to_uniform(secure_uniform(COUNT)) < 2.7


@pytest.mark.parametrize("num_draws", [1, 4])
@pytest.mark.parametrize("count", [COUNT, COUNT + 1])
def test_normals_are_standard_normal(count: int, num_draws: Literal[1, 4]) -> None:
    normal = secure_normal(count, num_draws=num_draws)

    assert normal.shape == (count,)
    assert normal.dtype == np.float64
    assert distance_to_uniform(torch.special.ndtr(torch.from_numpy(normal)).numpy()) < 2.7
    # The standard deviation of n normals has standard error 1/sqrt(2n); 4.9 of them are exceeded once in 10^6.
    assert abs(normal.std() - 1) < 4.9 / np.sqrt(2 * count)
    assert abs(normal.mean()) < 4.9 / np.sqrt(count)


def test_neighbouring_normals_are_uncorrelated() -> None:
    normal = secure_normal(COUNT)

    half = COUNT // 2
    correlations = [np.corrcoef(normal[:-1], normal[1:])[0, 1], np.corrcoef(normal[:half], normal[half:])[0, 1]]

    assert max(map(abs, correlations)) < 4.9 / np.sqrt(half)


def test_each_normal_is_made_of_four_uniforms(monkeypatch: pytest.MonkeyPatch) -> None:
    # Radii sqrt(-ln u) 1, 2, 3 and 4; angles of a quarter, a half, three quarters and a quarter of a turn.
    uniform = [*np.exp([-1.0, -4.0, -9.0, -16.0]), 0.25, 0.5, 0.75, 0.25]
    monkeypatch.setattr(noise, "secure_uniform", lambda count: np.array(uniform[:count]))

    assert secure_normal(2) == pytest.approx([1 - 3, 0 + 4])


def test_two_normals_share_two_uniforms_where_speed_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "secure_uniform", lambda _: np.array([np.exp(-2.0), 0.125]))

    assert secure_normal(2, num_draws=1) == pytest.approx([2**0.5, 2**0.5])  # radius 2 at 45 degrees


@pytest.mark.parametrize("count", [1, 1000, 30_000])
def test_a_source_never_gives_a_number_twice(count: int) -> None:
    source = NormalSource(count, num_draws=4)

    given = np.concatenate([source.draw() for _ in range(40)])

    # Two of 1.2 million float64 normals are equal by chance with probability below 10^-3.
    assert given.shape == (40 * count,)
    assert len(np.unique(given)) >= 40 * count - 1
    assert abs(given.std() - 1) < 5 / np.sqrt(2 * 40 * count)


def test_every_call_stretches_a_fresh_key_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    # ChaCha20 with key and nonce zero begins 76 b8 e0 ad a0 f1 3d 90 (RFC 8439, appendix A.1, test vector 1).
    asked = []

    def zeros(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    monkeypatch.setattr(os, "urandom", zeros)

    assert [noise._secure_bytes(8).hex() for _ in range(2)] == ["76b8e0ada0f13d90"] * 2
    assert asked == [32, 32]


def test_more_bytes_than_a_block_are_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    length = 8 * noise._BLOCK

    assert noise._secure_bytes(length + 64)[:length] == noise._secure_bytes(length)


def test_seeding_every_known_generator_does_not_repeat_the_noise() -> None:
    draws = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  the global generator is the point
        torch.manual_seed(0)
        draws.append(secure_normal(8))

    assert not np.any(draws[0] == draws[1])


def test_no_draws_are_an_empty_array_and_a_negative_count_is_refused() -> None:
    assert secure_uniform(0).shape == (0,)
    assert secure_normal(0).shape == (0,)
    for draw in (secure_uniform, secure_normal):
        with pytest.raises(PrivacySettingError, match="count=-1"):
            draw(-1)


@pytest.mark.parametrize("bound", [1, 2, 3, 10, 64, 100, 1000])
def test_whole_numbers_below_a_bound_are_equally_likely(bound: int) -> None:
    count = 200_000

    counts = np.bincount(secure_below(bound, count), minlength=bound)

    # Six standard errors for each number; over all bounds a chance of 3e-6 that one of 1,180 is further off.
    chance = 1 / bound
    assert len(counts) == bound
    assert np.abs(counts / count - chance).max() <= 6 * math.sqrt(chance * (1 - chance) / count)


@pytest.mark.parametrize("bound", [2**62, 2**62 - 1, 3 * 2**40, 2**30 + 1])
def test_whole_numbers_reach_up_to_large_bounds(bound: int) -> None:
    drawn = secure_below(bound, 10_000)

    # The chance that none of 10,000 is in the last hundredth is 0.99^10000 = 2e-44.
    assert 0 <= drawn.min() < bound / 100
    assert bound * 0.99 < drawn.max() < bound


def test_words_that_would_favour_small_numbers_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Below 10 a byte up to 249 counts: 255 and 250 are drawn again.
    script = [bytes([255, 7, 250]), bytes([249, 13])]
    monkeypatch.setattr("os.urandom", lambda count: script.pop(0))

    assert secure_below(10, 3).tolist() == [7, 9, 3]


@pytest.mark.parametrize(("bound", "count"), [(0, 1), (2**62 + 1, 1), (2.0, 1), (2, -1)])
def test_an_impossible_bound_or_count_is_refused(bound: int, count: int) -> None:
    with pytest.raises(PrivacySettingError, match="expected"):
        secure_below(bound, count)
