"""Random trends of training windows, and windows upside down."""

import torch

from darts_ddssm.series.augmentation import (
    SHARE_REFLECTED,
    SHARE_WITH_TREND,
    add_random_trends,
    reflect_randomly,
)
from tests.helpers import assert_mean


def added(num_series: int, spread: torch.Tensor) -> torch.Tensor:
    """What is added to windows of 12 + 6 steps and two components, in data units."""
    torch.manual_seed(0)
    x = torch.randn(num_series, 18, 2, dtype=torch.float64)
    return add_random_trends(x, spread, std=1.5, input_length=12) - x


def test_what_is_added_is_a_line_through_the_origin():
    """Each component its own, in windows that are chosen as a whole."""
    trend = added(500, torch.tensor([1.0, 10.0]))
    slope = trend[:, -1:] / 5
    time = torch.arange(-12, 6, dtype=torch.float64).unsqueeze(-1)
    torch.testing.assert_close(trend, slope * time)
    changed = (trend != 0).any(1)
    assert (changed[:, 0] == changed[:, 1]).all()
    first, second = slope[changed[:, 0], 0].T
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.3


def test_how_many_and_how_steep():
    """In units of the spread, also where each window has its own."""
    spread = torch.linspace(0.1, 10, 8000, dtype=torch.float64).view(-1, 1, 1)
    # (N, C)
    change = (added(8000, spread) / spread)[:, 0]
    changed = change[:, 0] != 0
    assert_mean(changed.double(), torch.tensor(SHARE_WITH_TREND).double())
    assert_mean(change[changed], torch.zeros(2).double())
    assert_mean(change[changed].square(), torch.full((2,), 1.5**2).double())


def test_a_reflected_window_is_upside_down():
    """Around its level, all components of it, and about half of the windows."""
    torch.manual_seed(0)
    x, level = torch.randn(2, 4000, 18, 2, dtype=torch.float64)
    found = reflect_randomly(x, level)
    reflected = (found != x).flatten(1).all(1)
    torch.testing.assert_close((found - level)[reflected], -(x - level)[reflected])
    assert torch.equal(found[~reflected], x[~reflected])
    assert_mean(reflected.double(), torch.tensor(SHARE_REFLECTED).double())
