"""
Random trends: forecasts follow the trend of their past, whatever that is.

All windows of a short series may have one trend. A network trained on them forecasts it
even where the past has another one, or none. Among windows with trends added at random it
has to look.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import torch
from torch import Tensor

# Share of the windows of a batch that have a trend added: the others keep the network from
# taking every trend for one that goes on.
SHARE_WITH_TREND = 0.5


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
