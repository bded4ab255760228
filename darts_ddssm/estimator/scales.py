"""
Scales taken from a training set, and whether each window is better scaled by itself.

Letters as in :mod:`darts_ddssm.ssm`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from darts import TimeSeries
from darts.utils.data import TorchTrainingDataset
from torch.distributions import Normal, StudentT

from darts_ddssm.estimator.windows import NUM_WINDOWS, level_of, moments, windows_of
from darts_ddssm.series.scaling import (
    ROUNDING_ERRORS,
    InstanceFloor,
    Scale,
    TrainingScales,
    is_constant,
)

# What a scale of each window must gain to be no accident, in nats per value.
MIN_GAIN = 0.1

# The spread of a covariate is at least this share of its range: the rare event of a
# covariate of zeros and ones is a value of a few, not of hundreds.
MIN_SHARE_OF_RANGE = 1 / 8

# Of the input chunks of a series that are not constant, the share that is narrower than
# what its chunks are divided by at least.
FLOOR_QUANTILE = 0.05


def training_scales(dataset: TorchTrainingDataset) -> TrainingScales:
    """Scales of target and covariates, by the observed values of a training set.

    Parameters
    ----------
    dataset
        A darts training dataset; at most 1,000 of its windows are looked at.
    """
    slots: dict[str, list[np.ndarray]] = {name: [] for name in TrainingScales._fields}
    for i in np.unique(np.linspace(0, len(dataset) - 1, NUM_WINDOWS).astype(int)):
        sample = dataset[i]
        static = sample.static_covariates
        for name, parts in {
            "target": (sample.past_target, sample.future_target),
            "past": (sample.past_covariates,),
            "future": (sample.historic_future_covariates, sample.future_covariates),
            # (C or 1, F) -> (1, C * F)
            "static": (None if static is None else static.reshape(1, -1),),
        }.items():
            slots[name] += [part for part in parts if part is not None]
    return TrainingScales(
        **{
            name: _scale(np.concatenate(rows), name != "target") if rows else Scale.unit()
            for name, rows in slots.items()
        }
    )


def _scale(values: np.ndarray, is_covariate: bool) -> Scale:
    """Mean and standard deviation of each column of values (N, F)."""
    # what a constant has, so that it is forecast as itself
    least_share = ROUNDING_ERRORS * np.finfo(values.dtype).eps
    # squares of float32 may overflow
    x = torch.from_numpy(values.astype(np.float64))
    mean, std, count = moments(x)
    # where nothing is observed they are NaN
    shift, spread = (torch.where(count > 0, part, 0.0) for part in (mean, std))
    magnitude = x.abs().nan_to_num().amax(0)
    # a component of zeros alone has no magnitude either
    magnitude = torch.where(magnitude > 0, magnitude, 1.0)
    if is_covariate:
        highest = x.nan_to_num(nan=-torch.inf).amax(0)
        lowest = x.nan_to_num(nan=torch.inf).amin(0)
        spread = spread.maximum(MIN_SHARE_OF_RANGE * (highest - lowest))
        # one that was constant may be another one later
        constant = spread <= least_share * magnitude
        return Scale(shift, torch.where(constant, magnitude, spread))
    return Scale(shift, spread.maximum(least_share * magnitude))


def instance_floor(
    series: Sequence[TimeSeries], input_length: int, scale: Scale
) -> InstanceFloor:
    """What the input chunks of some training series are divided by at least.

    It is what the narrow chunks of the calmest series have, so that no series is flattened
    that varies. A constant chunk of another scale is divided by as much of its level.

    Parameters
    ----------
    series
        The training series.
    input_length
        Steps of an input chunk.
    scale
        The scale of the training set, for where no chunk varies.
    """
    spreads, ratios = [], []
    for windows in windows_of(series, input_length):
        # (T, N, C) -> (N, C)
        mean, std, _ = moments(windows.x)
        size = mean.hypot(std)
        std = torch.where(is_constant(size, std), torch.nan, std)
        spreads.append(std.nanquantile(FLOOR_QUANTILE, dim=0))
        ratios.append((std / size).nanquantile(FLOOR_QUANTILE, dim=0))
    if not spreads:
        return InstanceFloor(scale.spread, torch.zeros_like(scale.spread))
    least, ratio = (
        torch.stack(x).nan_to_num(nan=torch.inf).amin(0) for x in (spreads, ratios)
    )
    return InstanceFloor(
        torch.where(least.isfinite(), least, scale.spread),
        torch.where(ratio.isfinite(), ratio, 0.0),
    )


def automatic_level_steps(
    series: Sequence[TimeSeries], input_length: int, gap: int, output_length: int
) -> int:
    """Return how many last steps of an input chunk say most of the level of what follows.

    That is one for a random walk, a season where there are season and trend, and all where
    a series returns to its mean.

    Parameters
    ----------
    series
        The training series; those that are too short are left out.
    input_length, gap, output_length
        Steps of the input chunk, between the chunks, and of the output chunk.
    """
    errors = []
    for _, windows, _ in windows_of(series, input_length + gap + output_length):
        past, ahead = windows[:input_length], windows[-output_length:]
        each = [
            # (n, N, C) -> (C,)
            (ahead - level_of(past, num_steps)).abs().nanmean((0, 1))
            for num_steps in range(1, input_length + 1)
        ]
        # (I, C), in a unit of their own
        errors.append(torch.stack(each) / torch.stack(each).mean(0))
    if not errors:
        return input_length
    # of a constant there is none
    mean = torch.cat(errors, dim=1).nanmean(1)
    return int(mean.argmin()) + 1 if mean.isfinite().all() else input_length


def prefers_instance_scale(
    series: Sequence[TimeSeries],
    input_length: int,
    gap: int,
    output_length: int,
    floor: InstanceFloor,
    level_steps: int,
) -> bool:
    """Tell whether a window is better scaled by its own past than by the training set.

    The first two thirds of the windows of each series are taken for a training set. Two
    predictions of the output chunks in the last third are compared by likelihood: a
    Gaussian with the moments of that training set, and a Student t with level and spread of
    the input chunk, which allows for the uncertainty of moments of a short chunk. The
    window's own past must be better by a clear margin. Windows that are constant say
    nothing.

    Parameters
    ----------
    series
        The training series; those that are too short are left out.
    input_length, gap, output_length
        Steps of the input chunk, between the chunks, and of the output chunk.
    floor
        Least spread of an input chunk.
    level_steps
        Last steps of an input chunk whose mean is its level.
    """
    length = input_length + gap + output_length
    longer = [one for one in series if len(one) >= length + 2]
    parts = list(windows_of(longer, length, first_share=2 / 3))
    if not parts:
        return False
    mean, std, _ = moments(torch.cat([part.before for part in parts]))
    # constant components say nothing
    std = torch.where(std > 0, std, torch.nan)
    by_training_set = Normal(mean, std, validate_args=False)
    gains = []
    for _, windows, _ in parts:
        own_mean, own_std, count = moments(windows[:input_length])
        least = floor.apply(own_mean, own_std)
        has_scale, own_std = own_std >= least, least
        # one value alone has no spread
        own_std = torch.where(count > 1, own_std, torch.nan)
        count = count.clamp(min=2)
        own_std = own_std * ((count + 1) / (count - 1)).sqrt()
        own_level = level_of(windows[:input_length], level_steps)
        by_input = StudentT(count - 1, own_level, own_std, validate_args=False)
        whole_mean, whole_std, _ = moments(windows)
        constant = is_constant(whole_mean.abs(), whole_std)
        ahead = torch.where(constant, torch.nan, windows[-output_length:])
        gain = by_input.log_prob(ahead) - by_training_set.log_prob(ahead)
        # zeros after zeros are no reason to call the next pulse a thousand
        gains.append(torch.where(has_scale, gain, gain.clamp(max=0.0)))
    # (n, N, C) of each series
    return torch.cat([gain.flatten() for gain in gains]).nanmean().item() > MIN_GAIN
