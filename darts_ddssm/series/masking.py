"""
Random masking: the encoder learns what a gap is even where training series have none.

Letters as in :mod:`darts_ddssm.ssm`.
"""

from typing import Any

import torch

from darts_ddssm.ssm.window import Window


def num_masked_rows(share: float, num_rows: int) -> int:
    """Number of rows of a batch of which masked copies are added.

    ``share`` of them, rounded down. Where that is none, it is one in some of the batches,
    so that the share holds on average.

    Parameters
    ----------
    share
        Share of the rows, from 0 to below 1.
    num_rows
        Number B of rows of the batch.
    """
    number = int(share * num_rows)
    if number == 0 and share > 0:
        number = int(torch.rand(()) < share * num_rows)
    return number


def mask_randomly(window: Window, num_rows: int) -> Window:
    """Hide some values of the first rows, in gaps of many lengths.

    Each row is divided into cells of equal length, from one step to half a window. Each
    cell is hidden with a probability that the row has drawn, up to a half. In half of the
    rows a cell hides all components, in the others each component is hidden by itself.

    Parameters
    ----------
    window
        The data.
    num_rows
        Number of first rows whose values are hidden.
    """
    x = window.x[:num_rows]
    num_steps, num_components = x.shape[1:]
    # 16 bits do not tell the steps of a long window apart
    kind: dict[str, Any] = {
        "dtype": torch.promote_types(x.dtype, torch.float32),
        "device": x.device,
    }
    share, together, offset, log_length = torch.rand(4, num_rows, 1, 1, **kind)
    length = (num_steps / 2) ** log_length
    steps = torch.arange(num_steps, **kind).unsqueeze(-1)
    # (B, T, 1) -> (B, T, C)
    cells = (steps / length + offset).long().expand(-1, -1, num_components)
    draws = torch.rand(num_rows, num_steps + 1, num_components, **kind)
    draws = torch.where(together < 0.5, draws[..., :1], draws)
    seen = draws.gather(1, cells) >= share / 2
    observed = torch.cat([window.observed[:num_rows] * seen, window.observed[num_rows:]])
    return window._replace(observed=observed)
