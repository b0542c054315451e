"""Arrays are read and written in NumPy's format without copies, and nothing else is taken for one."""

import io

import numpy as np
import pytest

from fl_contract.npy import NpyBuffer, view_npy


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u1", "?", ">f4"])
def test_what_is_filled_is_what_numpy_saves(shape: tuple[int, ...], dtype: str) -> None:
    array = np.asarray(np.random.default_rng(0).normal(size=shape) * 5).astype(dtype)
    buffer = NpyBuffer(shape, np.dtype(dtype))
    assert not buffer.array.any()
    buffer.array[...] = array

    data = buffer.close()

    assert data == saved(array)
    assert view_npy(data).tobytes() == array.tobytes()
    assert (view_npy(data).shape, view_npy(data).dtype) == (array.shape, array.dtype)


def test_the_view_is_of_the_bytes_and_cannot_be_written_to() -> None:
    data = saved(np.arange(6.0).reshape(2, 3))
    view = view_npy(data)

    assert np.shares_memory(view, np.frombuffer(data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1


def test_a_buffer_that_is_still_looked_at_is_copied() -> None:
    buffer = NpyBuffer((2,), np.dtype(np.float32))
    view = buffer.array
    data = buffer.close()
    view[:] = 7

    assert view_npy(data).tolist() == [0.0, 0.0]


def test_an_array_in_fortran_order_is_read() -> None:
    array = np.asfortranarray(np.arange(6).reshape(2, 3))

    assert np.array_equal(view_npy(saved(array)), array)


@pytest.mark.parametrize("cut", [0, 5, 9, 40, -1])
def test_bytes_that_are_cut_are_refused(cut: int) -> None:
    with pytest.raises(ValueError, match=r"NumPy's format|header"):
        view_npy(saved(np.arange(3.0))[:cut])


def test_bytes_behind_the_array_are_refused() -> None:
    with pytest.raises(ValueError, match="the header does not fit the bytes"):
        view_npy(saved(np.arange(3.0)) + b"\0")
