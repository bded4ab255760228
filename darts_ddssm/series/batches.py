"""
From darts' batches to the model's :class:`~darts_ddssm.ssm.window.Window`.

The only file that knows how darts lays out a batch. A window is the input chunk, the
gap of ``output_chunk_shift`` steps if there is one, and the output chunk, joined. One
rule holds for targets and covariates alike: what is NaN or was not given is unknown,
its value is set to zero and a flag says so. Covariates are brought to the scale of the
training set here; targets are later, since their scale may be that of the window.

Past covariates are inputs of the transition to the next state. They are therefore delayed
by the number of steps that a state stands for, ``lag``: one, or a patch. In a forecast the
first state has those of the last steps of the past, and the later states have none.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import math
from typing import TypeAlias

import torch
from darts.utils.data.torch_datasets.utils import (
    PLModuleInput,
    TorchInferenceBatch,
    TorchTrainingBatch,
)
from torch import Tensor

from darts_ddssm.series.scaling import TrainingScales
from darts_ddssm.ssm.window import Window, with_noise

# Anything with darts' slots of covariates.
Batch: TypeAlias = PLModuleInput | TorchInferenceBatch | TorchTrainingBatch


def flagged(values: Tensor) -> Tensor:
    """Join values, zero where unknown, and flags: (..., F) -> (..., 2 * F)."""
    known = ~values.isnan()
    return torch.cat([values.nan_to_num(), known.to(values.dtype)], dim=-1)


def values_of_covariates(
    input_size: int, past_size: int, static_size: int | None, patch_length: int
) -> list[slice] | None:
    """Return which inputs of the transition are values of covariates that vary in time.

    Parameters
    ----------
    input_size, past_size, static_size
        Numbers of inputs of a step: of all networks, of the transition alone, and of the
        first ones those that are static. ``None`` where that is not known.
    patch_length
        Number L of steps of a patch, whose inputs are joined step by step.
    """
    if static_size is None:
        return None
    future = [input_size * i for i in range(patch_length)]
    past = [input_size * patch_length + past_size * i for i in range(patch_length)]
    sizes = (input_size - static_size) // 2, past_size // 2
    return [
        slice(start, start + size)
        for starts, size in zip((future, past), sizes, strict=True)
        for start in starts
        if size > 0
    ]


def _unknown(like: Tensor, num_steps: int) -> Tensor:
    """Return so many unknown steps of a tensor (B, T, F)."""
    return like.new_full((like.shape[0], num_steps, like.shape[2]), torch.nan)


def _inputs(
    batch: Batch,
    future: Tensor | None,
    num_steps: int,
    scales: TrainingScales,
    noise: float = 0.0,
) -> Tensor:
    """Join inputs known at each step: covariates (B, T, F) or None -> (B, T, U)."""
    target = batch.past_target
    parts = [target.new_empty(target.shape[0], num_steps, 0)]
    if future is not None:
        future = scales.future.normalise(future, batch.historic_future_covariates)
        parts.append(flagged(with_noise(future, noise)))
    if batch.static_covariates is not None:
        # (B, C or 1, F) -> (B, 1, C * F) -> (B, T, C * F)
        static = batch.static_covariates.flatten(1).unsqueeze(1)
        static = scales.static.normalise(static)
        parts.append(flagged(static.expand(-1, num_steps, -1)))
    return torch.cat(parts, dim=-1)


def _lagged_past(
    batch: Batch, num_steps: int, lag: int, scales: TrainingScales, noise: float = 0.0
) -> Tensor:
    """Past covariates, delayed by ``lag`` steps, of the first T steps: (B, T, P)."""
    past, target = batch.past_covariates, batch.past_target
    if past is None:
        return target.new_empty(target.shape[0], num_steps, 0)
    past = with_noise(scales.past.normalise(past, past), noise)
    ahead = _unknown(past, max(num_steps - past.shape[1], 0))
    lagged = torch.cat([_unknown(past, lag), past, ahead], dim=1)
    return flagged(lagged[:, :num_steps])


def _window(
    batch: Batch,
    x: Tensor,
    future: Tensor | None,
    weight: Tensor,
    lag: int,
    scales: TrainingScales,
    noise: float = 0.0,
) -> Window:
    """Return the window of targets (B, T, C), covariates and weights."""
    num_steps = x.shape[1]
    return Window(
        x=x.nan_to_num(),
        observed=(~x.isnan()).to(x.dtype),
        u=_inputs(batch, future, num_steps, scales, noise),
        past=_lagged_past(batch, num_steps, lag, scales, noise),
        weight=weight,
    )


def observed_values(batch: TorchInferenceBatch | TorchTrainingBatch, gap: int) -> Tensor:
    """Return the flags of a batch's targets, 1 where observed.

    Those of the input chunk, (B, I, C), or of a training window, (B, I + G + n, C).

    Parameters
    ----------
    batch
        A batch of darts' inference or training dataset.
    gap
        Number G of steps between the chunks, ``output_chunk_shift``.
    """
    x = batch.past_target
    if isinstance(batch, TorchTrainingBatch):
        x = torch.cat([x, _unknown(x, gap), batch.future_target], dim=1)
    return (~x.isnan()).to(x.dtype)


def training_window(
    batch: TorchTrainingBatch,
    gap: int,
    lag: int,
    scales: TrainingScales,
    covariate_noise: float = 0.0,
) -> Window:
    """Join the input chunk, the gap and the output chunk of a training batch.

    darts gives sample weights for the output chunk alone. The steps before it have the
    greatest of them, component by component, as the KL of the window does.

    Parameters
    ----------
    batch
        A batch of darts' sequential training dataset.
    gap
        Number of steps between the chunks, ``output_chunk_shift``.
    lag
        Number of steps after which past covariates act.
    scales
        The scales of the training set, of which those of the covariates are used.
    covariate_noise
        Standard deviation of the noise that is added to past and future covariates, in
        units of normalised values.
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
        before = ahead.amax(1, keepdim=True).expand(-1, x.shape[1] - ahead.shape[1], -1)
        weight = weight * torch.cat([before, ahead], dim=1)
    return _window(batch, x, future, weight, lag, scales, covariate_noise)


def context_window(
    batch: PLModuleInput | TorchInferenceBatch, lag: int, scales: TrainingScales
) -> Window:
    """Return the input chunk of a batch: what a forecast is conditioned on.

    Parameters
    ----------
    batch
        A batch of darts' inference dataset, or the input of ``forward``.
    lag
        Number of steps after which past covariates act.
    scales
        The scales of the training set, of which those of the covariates are used.
    """
    x = batch.past_target
    future = batch.historic_future_covariates
    return _window(batch, x, future, torch.ones_like(x), lag, scales)


def horizon_window(
    batch: PLModuleInput | TorchInferenceBatch,
    gap: int,
    n: int,
    lag: int,
    scales: TrainingScales,
) -> Window:
    """Return the gap and the horizon of a forecast: inputs, and nothing observed.

    Inputs are given to the end of the last patch, as far as the batch has them, so that
    the forecast of a patch does not depend on where the horizon ends.

    Parameters
    ----------
    batch
        A batch of darts' inference dataset, or the input of ``forward``.
    gap
        Number G of steps between the input chunk and the forecast.
    n
        Number of steps that are forecast.
    lag
        Number L of steps of a state, after which past covariates act.
    scales
        The scales of the training set, of which those of the covariates are used.

    Returns
    -------
    Window
        The least multiple of L that is not below G + n.
    """
    length, num_steps = batch.past_target.shape[1], math.ceil((gap + n) / lag) * lag
    future = batch.future_covariates
    if future is not None:
        future = future[:, : num_steps - gap]
        after = _unknown(future, num_steps - gap - future.shape[1])
        future = torch.cat([_unknown(future, gap), future, after], dim=1)
    blank = torch.zeros_like(_unknown(batch.past_target, num_steps))
    return Window(
        x=blank,
        observed=blank,
        u=_inputs(batch, future, num_steps, scales),
        past=_lagged_past(batch, length + num_steps, lag, scales)[:, length:],
        weight=torch.ones_like(blank),
    )


def rolled_on(batch: TorchInferenceBatch, drawn: Tensor) -> TorchInferenceBatch:
    """Return the batch with an origin that is later by some steps, which were drawn.

    Parameters
    ----------
    batch
        A batch of darts' inference dataset, of B series.
    drawn
        S paths of each series, sample by sample, (S * B, k, C).

    Returns
    -------
    TorchInferenceBatch
        The paths as S * B series. Where past covariates are not known, they are NaN.
    """
    num_steps, length = drawn.shape[1], batch.past_target.shape[1]
    tiled = batch.tile_tensors(len(drawn) // len(batch.past_target))

    def shifted(before: Tensor | None, after: Tensor | None) -> tuple[Tensor | None, ...]:
        """Input chunk, and what follows it, from the later origin on."""
        if before is None:
            return None, None
        if after is None:
            after = _unknown(before, 0)
        joint = torch.cat([before, after], dim=1)[:, num_steps:]
        missing = _unknown(before, max(length - joint.shape[1], 0))
        joint = torch.cat([joint, missing], dim=1)
        return joint[:, :length], joint[:, length:]

    past_target, _ = shifted(tiled.past_target, drawn)
    past, future_past = shifted(tiled.past_covariates, tiled.future_past_covariates)
    historic, future = shifted(tiled.historic_future_covariates, tiled.future_covariates)
    return tiled.replace(
        past_target=past_target,
        past_covariates=past,
        future_past_covariates=future_past,
        historic_future_covariates=historic,
        future_covariates=future,
    )
