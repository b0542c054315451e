"""A unit's gradient is scaled down to the clip norm and never up; what is not finite counts nothing."""

import pytest
import torch

from privacy.clipping import clip_factors


@pytest.mark.parametrize(
    ("norm", "factor"),
    [(0.0, 1.0), (1e-300, 1.0), (1.99, 1.0), (4.0, 0.5), (1e30, 2e-30), (torch.inf, 0.0), (torch.nan, 0.0)],
)
def test_the_factor_takes_a_norm_to_the_clip_norm_at_most(norm: float, factor: float) -> None:
    factors = clip_factors(torch.tensor([norm], dtype=torch.float64), 2.0)

    assert factors.dtype == torch.float32
    assert factors.tolist() == pytest.approx([factor])
