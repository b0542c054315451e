"""One layer fills in and scales tables, series, images and volumes by statistics of all hospitals."""

import math

import numpy as np
import pytest
import torch
from schemas import schema_of

from fl_contract.features import Column
from fl_contract.models.standardise import Standardise
from fl_contract.statistics import FeatureStatistics


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 4, 4), (1, 4, 5, 6)])
def test_each_feature_or_channel_has_mean_zero_and_deviation_one(shape: tuple[int, ...]) -> None:
    inputs = torch.rand(50, *shape, generator=torch.Generator().manual_seed(7)) * 2 - 1
    columns = [Column(name=str(number), scale="standard") for number in range(shape[0])]
    layer = Standardise(columns)
    values = inputs.movedim(1, -1).flatten(0, -2).numpy()
    buffers = layer.buffers_from(FeatureStatistics.of(values, columns))
    layer.load_state_dict({name: torch.from_numpy(array) for name, array in buffers.items()})

    found = layer(inputs)

    assert found.shape == inputs.shape
    flat = found.movedim(1, -1).flatten(0, -2).numpy()
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(flat.std(axis=0), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("column", "fill", "shift", "spread"),
    [
        # Of -0.5, -0.5, -0.5 and 0.9: mean -0.15, squares 0.75 + 0.81, so a variance of 0.39 - 0.0225.
        (Column(name="x"), 0, 0, 1),
        (Column(name="x", fill="mean"), -0.15, 0, 1),
        (Column(name="x", scale="standard"), 0, -0.15, math.sqrt(0.3675)),
        # Medians are the middle of a bin, quartiles lie at the third value and a quarter of the way to the last.
        (Column(name="x", fill="median"), -0.499, 0, 1),
        (Column(name="x", scale="robust"), 0, -0.499, 0.35),
        (Column(name="x", scale="standard", fill="median"), -0.499, -0.15, math.sqrt(0.3675)),
    ],
)
def test_fill_shift_and_spread_are_what_the_study_says(
    column: Column, fill: float, shift: float, spread: float
) -> None:
    statistics = FeatureStatistics.of(np.array([[-0.5], [-0.5], [-0.5], [0.9]]), [column])

    buffers = Standardise([column]).buffers_from(statistics)

    assert [array.dtype for array in buffers.values()] == [np.float32] * 3
    assert [float(array[0]) for array in buffers.values()] == pytest.approx([fill, shift, spread], abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 5), (3, 4, 4), (1, 4, 4, 4)])
def test_channels_of_series_images_and_volumes_are_columns(shape: tuple[int, ...]) -> None:
    schema = schema_of(shape)

    assert len(schema.columns) == shape[0]
    assert not schema.needs_statistics
    assert schema.model_copy(update={"scale": "standard"}).needs_statistics
    assert schema.encoded_shape == schema.input_shape == shape
