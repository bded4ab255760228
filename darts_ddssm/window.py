"""
From darts' batches to the model's :class:`~darts_ddssm.ssm.state_space.Window`.

The only file that knows how darts lays out a batch. A window is the input chunk, the
gap of ``output_chunk_shift`` steps if there is one, and the output chunk, joined. One
rule holds for targets and covariates alike: what is NaN or was not given is unknown,
its value is set to zero and a flag says so.

Past covariates act on the state after theirs: the first state of a forecast is told those
of the last one's steps, the later ones nothing. Of how many steps a state is, says `lag`.

Letters: B batch, I input chunk, G gap, n steps ahead, T = I + G + n, C components,
F features of a covariate, S static features.
"""

import torch
from darts.utils.data.torch_datasets.utils import (
    PLModuleInput,
    TorchInferenceBatch,
    TorchTrainingBatch,
)
from torch import Tensor

from darts_ddssm.ssm.state_space import Window

# Anything with darts' slots of covariates.
Batch = PLModuleInput | TorchInferenceBatch | TorchTrainingBatch


def flagged(values: Tensor) -> Tensor:
    """Join values, zero where unknown, and flags: (..., F) -> (..., 2 * F)."""
    known = ~values.isnan()
    return torch.cat([values.nan_to_num(), known.to(values.dtype)], dim=-1)


def _unknown(like: Tensor, num_steps: int) -> Tensor:
    return like.new_full((like.shape[0], num_steps, like.shape[2]), torch.nan)


def _inputs(batch: Batch, future: Tensor | None, num_steps: int) -> Tensor:
    """Join inputs known at each step: covariates (B, T, F) or None -> (B, T, U)."""
    target = batch.past_target
    parts = [target.new_empty(target.shape[0], num_steps, 0)]
    if future is not None:
        parts.append(flagged(future))
    if batch.static_covariates is not None:
        # (B, C or 1, S) -> (B, 1, C * S) -> (B, T, C * S)
        static = batch.static_covariates.flatten(1).unsqueeze(1)
        parts.append(flagged(static.expand(-1, num_steps, -1)))
    return torch.cat(parts, dim=-1)


def _lagged_past(batch: Batch, num_steps: int, lag: int) -> Tensor:
    """Past covariates of ``lag`` steps before, from the first step: -> (B, T, P)."""
    past, target = batch.past_covariates, batch.past_target
    if past is None:
        return target.new_empty(target.shape[0], num_steps, 0)
    ahead = _unknown(past, max(num_steps - past.shape[1], 0))
    lagged = torch.cat([_unknown(past, lag), past, ahead], dim=1)
    return flagged(lagged[:, :num_steps])


def _window(
    batch: Batch, x: Tensor, future: Tensor | None, weight: Tensor, lag: int
) -> Window:
    num_steps = x.shape[1]
    return Window(
        x=x.nan_to_num(),
        observed=(~x.isnan()).to(x.dtype),
        u=_inputs(batch, future, num_steps),
        past=_lagged_past(batch, num_steps, lag),
        weight=weight,
    )


def training_window(batch: TorchTrainingBatch, gap: int, lag: int = 1) -> Window:
    """Join the input chunk, the gap and the output chunk of a training batch.

    darts gives sample weights of the output chunk alone; the steps before it get their
    mean, so that a window of little weight has little weight as a whole.

    Parameters
    ----------
    batch
        A batch of darts' sequential training dataset.
    gap
        Number of steps between the chunks, ``output_chunk_shift``.
    lag
        Number of steps after which past covariates act.
    """
    target = batch.past_target
    x = torch.cat([target, _unknown(target, gap), batch.future_target], dim=1)
    future = None
    if batch.future_covariates is not None:
        past, ahead = batch.historic_future_covariates, batch.future_covariates
        future = torch.cat([past, _unknown(past, gap), ahead], dim=1)
    weight = torch.ones_like(x)
    if batch.sample_weight is not None:
        ahead = batch.sample_weight
        # (B, n, C or 1) -> (B, T, C)
        before = ahead.mean(1, keepdim=True).expand(-1, x.shape[1] - ahead.shape[1], -1)
        weight = weight * torch.cat([before, ahead], dim=1)
    return _window(batch, x, future, weight, lag)


def context_window(batch: PLModuleInput | TorchInferenceBatch, lag: int = 1) -> Window:
    """Return the input chunk of a batch: what a forecast is conditioned on.

    Parameters
    ----------
    batch
        A batch of darts' inference dataset, or the input of ``forward``.
    lag
        Number of steps after which past covariates act.
    """
    x = batch.past_target
    return _window(batch, x, batch.historic_future_covariates, torch.ones_like(x), lag)


def inputs_ahead(
    batch: PLModuleInput | TorchInferenceBatch, gap: int, num_steps: int, lag: int = 1
) -> tuple[Tensor, Tensor]:
    """Inputs of the gap and of the steps ahead: (B, G + n, U) and (B, G + n, P).

    Parameters
    ----------
    batch
        A batch of darts' inference dataset, or the input of ``forward``.
    gap
        Number of steps between the input chunk and the forecast.
    num_steps
        Number n of steps that are forecast.
    lag
        Number of steps after which past covariates act.
    """
    future = batch.future_covariates
    if future is not None:
        future = torch.cat([_unknown(future, gap), future[:, :num_steps]], dim=1)
    length = batch.past_target.shape[1]
    past = _lagged_past(batch, length + gap + num_steps, lag)[:, length:]
    return _inputs(batch, future, gap + num_steps), past


def with_gaps(window: Window, num_rows: int) -> Window:
    """Hide some values of the first rows, as gaps of many lengths would.

    Each row is divided into cells of equal length, from one step to half a window, and
    every cell is hidden with one probability, up to a half: all components of it or, in
    half of the rows, each by itself.

    Parameters
    ----------
    window
        The data.
    num_rows
        Number of rows to hide values of.
    """
    x = window.x[:num_rows]
    num_steps, num_components = x.shape[1:]
    share, together, offset, log_length = torch.rand(4, num_rows, 1, 1).to(x)
    length = (num_steps / 2) ** log_length
    steps = torch.arange(num_steps).to(x).unsqueeze(-1)
    # (B, T, 1) -> (B, T, C)
    cells = (steps / length + offset).long().expand(-1, -1, num_components)
    draws = torch.rand(num_rows, num_steps + 1, num_components).to(x)
    draws = torch.where(together < 0.5, draws[..., :1], draws)
    seen = draws.gather(1, cells) >= share / 2
    observed = torch.cat([window.observed[:num_rows] * seen, window.observed[num_rows:]])
    return window._replace(observed=observed)
