"""Each codec is as large, as exact and as unbiased as its source says."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.linalg import hadamard

from fl_contract.codecs.bfloat16 import Bfloat16
from fl_contract.codecs.codec import Codec, CodecSeed, Vector
from fl_contract.codecs.float16 import Float16
from fl_contract.codecs.int8 import Int8
from fl_contract.codecs.power_sgd import PowerSgd
from fl_contract.codecs.rotation import Rotation, draw_rotation
from fl_contract.codecs.top_k import TopK
from fl_contract.codecs.zstd import compress, decompress, largest_compressed
from fl_contract.errors import ReplyError

SIZE = 128 * 40
MANY = 2000
"""Seeds; the bound on a mean is 5 standard errors, which one of 24 exceeds by chance once in 70,000 tests."""


def seed_of(number: int) -> CodecSeed:
    return CodecSeed(seed=number, site="hospital-1", server_round=1)


def gaussian(size: int = SIZE) -> Vector:
    return np.random.default_rng(3).standard_normal(size, dtype=np.float32)


def error_of(codec: Codec, update: Vector) -> float:
    """Normalised mean squared error, |x̂ - x|² / |x|²."""
    decoded = codec.decode(codec.encode(update, seed_of(1)), seed_of(1))
    return float(np.square(decoded - update).sum() / np.square(update).sum())


def worst_z(decode: Callable[[int], Vector], update: Vector) -> float:
    """Largest deviation of a coordinate's mean over many seeds from the coordinate, in standard errors."""
    decoded = np.stack([decode(number) for number in range(MANY)]).astype(np.float64)
    errors = decoded.std(axis=0) / np.sqrt(MANY) + 1e-6
    return float((np.abs(decoded.mean(axis=0) - update) / errors).max())


@pytest.mark.parametrize(
    ("codec", "share", "smallest", "largest"),
    [
        # Bytes over those of float32, and the error: 11 and 8 significant bits; a level of int8 is 3.5 σ / 127 wide for
        # 256 Gaussian numbers, at most a quarter of its square. For the rotation: the loss m of Lloyd-Max's levels on a
        # Gaussian number, .3634, .1175 and .0095, becomes m / (1 - m) by the unbiased scale (EDEN, theorem 2).
        pytest.param(Float16(((SIZE,),)), 1 / 2, 1e-9, 1e-7, id="float16"),
        pytest.param(Bfloat16(((SIZE,),)), 1 / 2, 1e-7, 1e-5, id="bfloat16"),
        pytest.param(Int8(((SIZE,),)), (1 + 4 / 256) / 4, 3e-5, 2e-4, id="int8"),
        pytest.param(Rotation(((SIZE,),), 4), (4 / 8 + 4 / 128) / 4, 0.0085, 0.0105, id="4 bit"),
        pytest.param(Rotation(((SIZE,),), 2), (2 / 8 + 4 / 128) / 4, 0.125, 0.141, id="2 bit"),
        pytest.param(Rotation(((SIZE,),), 1), (1 / 8 + 4 / 128) / 4, 0.54, 0.60, id="1 bit"),
        # The largest tenth of Gaussian numbers holds 44 % of their squares. Places: 3 low bits, 1 + 10 / 8 high ones.
        pytest.param(TopK(((SIZE,),), 0.1), (2 + (3 + 1 + 10 / 8) / 8) / 40, 0.53, 0.59, id="top 10 %"),
    ],
)
def test_size_and_error_are_those_of_the_source(codec: Codec, share: float, smallest: float, largest: float) -> None:
    assert codec.num_bytes / (4 * SIZE) == pytest.approx(share, rel=2e-3)
    assert smallest < error_of(codec, gaussian()) < largest


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_rotated_code_loses_as_much_of_any_update(bits: int) -> None:
    codec = Rotation(((SIZE,),), bits)
    heavy = np.random.default_rng(4).standard_t(2, SIZE).astype(np.float32)

    assert error_of(codec, heavy) == pytest.approx(error_of(codec, gaussian()), rel=0.2)


UNBIASED: dict[str, Codec] = {"int8": Int8(((24,),)), **{f"{bits} bit": Rotation(((24,),), bits) for bits in (1, 2, 4)}}
SPARSE = np.array([1.0, 0.5, -0.25, 0.01] + 20 * [0.0], dtype=np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_over_seeds_is_the_update_itself(name: str) -> None:
    codec = UNBIASED[name]

    def decode(number: int) -> Vector:
        return codec.decode(codec.encode(SPARSE, seed_of(number)), seed_of(number))

    assert worst_z(decode, SPARSE) < 5
    assert worst_z(lambda number: 0.97 * decode(number), SPARSE) > 5


@pytest.mark.slow
def test_a_hadamard_matrix_with_random_signs_would_be_biased() -> None:
    """Why the rotation is drawn from all of them: see the module."""
    update = np.array([1.0, 0.5, 0.0, 0.0], dtype=np.float32)

    def decode(number: int) -> Vector:
        signs = np.random.default_rng(number).choice([-1.0, 1.0], 4)
        rotation = hadamard(4) / 2 * signs
        turned = rotation @ update
        decoded: Vector = (turned @ turned) / np.abs(turned).sum() * rotation.T @ np.sign(turned)
        return decoded

    np.testing.assert_allclose(decode(1), [1.25, 0, 0, 0], atol=1e-7)
    assert worst_z(decode, update) > 1000


def test_a_rotation_is_orthogonal_and_the_same_at_both_ends() -> None:
    rotation = draw_rotation(128, seed_of(1))

    np.testing.assert_allclose(rotation @ rotation.T, np.eye(128), atol=1e-5)
    np.testing.assert_array_equal(rotation, draw_rotation(128, seed_of(1)))


def test_numbers_from_the_public_seed_are_those_of_shake_256() -> None:
    """A hospital's NumPy may be another version than the coordinator's; these digits may never change."""
    np.testing.assert_allclose(seed_of(1).uniforms(2), [0.5105542552958624, 0.7375908322747526], rtol=1e-15)


@pytest.mark.parametrize(
    ("number", "expected"), [(1.0, 1.0), (-2.5, -2.5), (1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6)]
)
def test_bfloat16_rounds_to_the_nearest_and_then_to_the_even(number: float, expected: float) -> None:
    """bfloat16 numbers from 1 to 2 are 2**-7 apart: 1 + 2**-8 lies half-way, and so does 1 + 3 * 2**-8."""
    codec = Bfloat16(((1,),))

    assert codec.decode(codec.encode(np.array([number], dtype=np.float32), seed_of(1)), seed_of(1)) == expected


def test_what_float16_cannot_hold_is_an_error() -> None:
    with pytest.raises(ValueError, match="beyond 65504, the largest of float16; choose bfloat16"):
        Float16(((1,),)).encode(np.array([65505.0], dtype=np.float32), seed_of(1))


def test_top_k_sends_the_largest() -> None:
    codec = TopK(((5,),), 0.4)

    decoded = codec.decode(codec.encode(np.array([1, -4, 0, 3, 2], dtype=np.float32), seed_of(1)), seed_of(1))

    np.testing.assert_array_equal(decoded, [0, -4, 0, 3, 0])


@pytest.mark.parametrize("fraction", [1e-6, 0.003, 0.1, 0.33, 0.5, 0.77, 1.0])
def test_top_k_finds_every_place_again(fraction: float) -> None:
    codec, update = TopK(((1999,),), fraction), gaussian(1999)
    count = int(np.ceil(fraction * 1999))

    decoded = codec.decode(codec.encode(update, seed_of(1)), seed_of(1))

    assert set(np.flatnonzero(decoded)) == set(np.argsort(np.abs(update))[1999 - count :])


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        # Two of four numbers: one low bit a place, then four bits that hold two ones.
        pytest.param([0b00_000000, 0b1100_0000], "a place twice", id="0 and 0"),
        pytest.param([0b10_000000, 0b1100_0000], "out of order", id="1 and 0"),
        pytest.param([0b00_000000, 0b1001_0000], "beyond the model", id="0 and 4"),
        pytest.param([0b00_000000, 0b1000_0000], "names 1 places; expected 2", id="one place"),
        pytest.param([0b00_000000, 0b1110_0000], "names 3 places; expected 2", id="three places"),
    ],
)
def test_places_that_no_encoder_writes_are_refused(places: list[int], reason: str) -> None:
    codec = TopK(((4,),), 0.5)

    with pytest.raises(ReplyError, match=reason):
        codec.decode(bytes(4) + bytes(places), seed_of(1))


def test_power_sgd_keeps_a_matrix_of_its_rank_whole() -> None:
    generator = np.random.default_rng(5)
    matrix = generator.standard_normal((30, 2)) @ generator.standard_normal((2, 40))
    update = np.concatenate([matrix.ravel(), [1.0, 2.0, 3.0]]).astype(np.float32)
    codec = PowerSgd(((30, 4, 10), (3,)), 2)

    decoded = codec.decode(codec.encode(update, seed_of(1)), seed_of(1))

    np.testing.assert_allclose(decoded, update, atol=1e-4)
    assert codec.num_bytes == 4 * (2 * (30 + 40) + 3)


class TestZstd:
    def test_a_payload_comes_back_and_repetition_is_small(self) -> None:
        payload = bytes(100_000)

        frame = compress(payload)

        assert len(frame) < 200
        assert decompress(frame, num_bytes=100_000) == payload

    @pytest.mark.parametrize("size", [0, 1, 1000, 300_000])
    def test_noise_stays_within_the_bound(self, size: int) -> None:
        noise = np.random.default_rng(6).bytes(size)

        assert len(compress(noise)) <= largest_compressed(size)

    @pytest.mark.parametrize("expected", [0, 10, 999, 1001])
    def test_a_frame_of_another_length_is_refused(self, expected: int) -> None:
        with pytest.raises(ReplyError, match=f"to the {expected} bytes"):
            decompress(compress(bytes(1000)), num_bytes=expected)

    def test_a_frame_that_would_fill_the_memory_is_never_unpacked(self) -> None:
        """100 MB of zeros in 9 kB."""
        frame = compress(bytes(100_000_000))

        with pytest.raises(ReplyError, match="to the 1000 bytes"):
            decompress(frame, num_bytes=1000)

    @pytest.mark.parametrize(
        "frame", [b"", b"x", bytes(100), compress(bytes(1000))[:-1], compress(bytes(1000)) + b"tail"]
    )
    def test_what_is_no_frame_is_refused(self, frame: bytes) -> None:
        with pytest.raises(ReplyError):
            decompress(frame, num_bytes=1000)
