"""
Training windows that a short series does not have: with other trends, and upside down.

All windows of a short series may have one trend. A network trained on them forecasts it
even where the past has another one, or none. Among windows with trends added at random it
has to look. And where such a series is a walk from its last value, most windows may rise
by more than their past lets expect. With half of them turned upside down, a network does
not learn a direction that the past does not show, as in [1]_ a forecast of -x is that of x
upside down.

Letters as in :mod:`darts_ddssm.ssm`.

References
----------
.. [1] Das et al., "A Decoder-Only Foundation Model for Time-Series Forecasting", ICML
       2024.
"""

import torch
from torch import Tensor

# Share of the windows of a batch that have a trend added: the others keep the network from
# taking every trend for one that goes on.
SHARE_WITH_TREND = 0.5

# Share of the windows of a batch that are turned upside down.
SHARE_REFLECTED = 0.5


def reflect_randomly(x: Tensor, level: Tensor) -> Tensor:
    """Turn some of the windows upside down, all components of each.

    Parameters
    ----------
    x
        Training windows, (B, T, C).
    level
        What they are turned around, at each step, (B, T, C).
    """
    reflected = torch.rand_like(x[:, :1, :1]) < SHARE_REFLECTED
    return torch.where(reflected, 2 * level - x, x)


def add_random_trends(x: Tensor, spread: Tensor, std: float, input_length: int) -> Tensor:
    """Add a linear trend to some of the windows, to each component its own.

    Parameters
    ----------
    x
        Training windows, (B, T, C).
    spread
        What they are divided by when they are normalised, (C,) or (B, 1, C).
    std
        Standard deviation of the change over an input chunk, in units of ``spread``.
    input_length
        Steps I of the input chunk. At its end nothing is added.
    """
    steps = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)
    # (T,) -> (T, 1)
    time = ((steps - input_length) / input_length).unsqueeze(-1)
    has_trend = torch.rand_like(x[:, :1, :1]) < SHARE_WITH_TREND
    change = std * spread * torch.randn_like(x[:, :1])
    return x + has_trend * change * time
