"""
Whether each window is better scaled by its own input chunk, and by how much at least.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from darts import TimeSeries
from torch import Tensor
from torch.distributions import Normal, StudentT

from darts_ddssm.estimator.windows import (
    ChunkLengths,
    Windows,
    moments,
    windows_of,
    with_flags,
)
from darts_ddssm.series.scaling import (
    InstanceFloor,
    LocalMoments,
    LocalPattern,
    Scale,
    is_constant,
    local_moments,
    without_season,
)

# What a scale of each window must gain to be no accident, in nats per value.
MIN_GAIN = 0.1

# Stationary series with a memory gain a few tenths, since their last values are near the
# next ones. This is more.
CLEAR_GAIN = 1.0

# So many windows that do not overlap are enough to learn to which mean stationary series
# return. With fewer, windows of their own scale are more alike, and easier to learn.
ENOUGH_WINDOWS = 50

# Input chunks of the past that a mixture is made of, at most, and all of its densities.
NUM_CHUNKS, MAX_DENSITIES = 200, 100_000_000

# A series knows the mean that it returns to if it has crossed it so often. A random walk
# does so a few times. Values within so many standard deviations of the mean do not count.
MIN_CROSSINGS, NEAR_MEAN = 20, 0.5

# Of the input chunks of a series that are not constant, the share that is narrower than
# what its chunks are divided by at least.
FLOOR_QUANTILE = 0.05


def instance_floor(
    series: Sequence[TimeSeries],
    input_length: int,
    scale: Scale,
    local_pattern: LocalPattern,
) -> InstanceFloor:
    """What the input chunks of some training series are divided by at least.

    It is what the narrow chunks of the calmest series have, so that no series is flattened
    that varies. A constant chunk of another scale is divided by as much of its level. One
    of zeros tells of no scale, and has what the narrow chunks of the median series have.

    Parameters
    ----------
    series
        The training series.
    input_length
        Steps of an input chunk.
    scale
        The scale of the training set, for where no chunk varies.
    local_pattern
        Which last values of an input chunk tell its level and its trend.
    """
    spreads, ratios = [], []
    for windows in windows_of(series, input_length):
        # (T, N, C) -> (N, C)
        local = local_moments(*with_flags(windows.x), local_pattern)
        mean, std = local.mean.squeeze(1), local.std.squeeze(1)
        size = mean.hypot(std)
        std = torch.where(is_constant(size, std), torch.nan, std)
        spreads.append(std.nanquantile(FLOOR_QUANTILE, dim=0))
        ratios.append((std / size).nanquantile(FLOOR_QUANTILE, dim=0))
    if not spreads:
        return InstanceFloor(scale.spread, torch.zeros_like(scale.spread), scale.spread)
    least, ratio = (
        torch.stack(x).nan_to_num(nan=torch.inf).amin(0) for x in (spreads, ratios)
    )
    median = torch.stack(spreads).nanmedian(0).values
    return InstanceFloor(
        torch.where(least.isfinite(), least, scale.spread),
        torch.where(ratio.isfinite(), ratio, 0.0),
        torch.where(median.isfinite(), median, scale.spread),
    )


class _OwnForecasts(NamedTuple):
    """Output chunks of N windows, and what the input chunk alone says of them.

    Attributes
    ----------
    level
        The level of the input chunk, (N, 1, C).
    ahead
        The output chunk, NaN where a value is missing, or where nothing is to be said of
        the window: it or its input chunk is constant, (N, n, C).
    log_density
        Of the output chunk, given the input chunk, (N, n, C).
    """

    level: Tensor
    ahead: Tensor
    log_density: Tensor


def _own_forecasts(
    parts: Sequence[Windows],
    lengths: ChunkLengths,
    level: LocalPattern,
    floor: InstanceFloor,
) -> _OwnForecasts:
    """Forecast output chunks of windows by level and spread of their input chunks."""
    # (T, N, C) of all series
    windows = torch.cat([each.x for each in parts], dim=1)
    local = local_moments(*with_flags(windows[: lengths.input]), level)
    whole_mean, whole_std, _ = moments(windows)
    constant = is_constant(whole_mean.abs(), whole_std)
    # zeros after zeros are no reason to call the next pulse a thousand, nor is it an error
    constant |= is_constant(local.mean.hypot(local.std), local.std).squeeze(1)
    # (n, N, C) -> (N, n, C)
    ahead = torch.where(constant, torch.nan, windows[-lengths.output :]).transpose(0, 1)
    return _OwnForecasts(local.level, ahead, _student_t(local, floor).log_prob(ahead))


def _student_t(local: LocalMoments, floor: InstanceFloor) -> StudentT:
    """Return a density of what follows each of some chunks, (N, 1, C).

    It has level and spread of the chunk, and allows for the uncertainty of moments of few
    values.
    """
    count = local.num_values
    # one value alone has no spread
    std = torch.where(count > 1, floor.apply(local.mean, local.std), torch.nan)
    count = count.clamp(min=2)
    std = std * ((count + 1) / (count - 1)).sqrt()
    return StudentT(count - 1, local.level, std, validate_args=False)


def _by_any_chunk(
    before: Sequence[TimeSeries],
    input_length: int,
    level: LocalPattern,
    floor: InstanceFloor,
    ahead: Tensor,
) -> Tensor:
    """Return the log-density of output chunks given that their own input chunk is unknown.

    It is the mean of the densities given the chunks of all that is before.

    Parameters
    ----------
    before
        What is before the output chunks, of each series.
    input_length
        Steps I of an input chunk.
    level
        Which last values of a chunk tell its level.
    floor
        The least spread of a chunk.
    ahead
        The output chunks, (N, n, C).
    """
    # (I, K, C), at most one of each of very many series
    found = windows_of(before, input_length, max_windows=NUM_CHUNKS)
    chunks = torch.cat([each.x for each in found], dim=1)
    most = min(MAX_DENSITIES // ahead.numel(), NUM_CHUNKS)
    chunks = chunks[:, :: math.ceil(chunks.shape[1] / max(most, 1))]
    total = torch.full_like(ahead, -torch.inf)
    for chunk in chunks.split(1, dim=1):
        local = local_moments(*with_flags(chunk), level)
        given_chunk = _student_t(local, floor).log_prob(ahead)
        total = total.logaddexp(given_chunk.nan_to_num(nan=-torch.inf))
    num_known = ((~chunks.isnan()).sum(0) > 1).sum(0)
    return total - num_known.log()


def prefers_instance_scale(
    series: Sequence[TimeSeries],
    lengths: ChunkLengths,
    scale: Scale,
    pattern: LocalPattern,
) -> bool:
    """Tell whether a window is better scaled by its own past than by the training set.

    What is before the output chunks of the last third of the windows of each series is
    taken for a training set. Predictions of these chunks are compared by likelihood. Level
    and spread of the window's own input chunk must be better, by a clear margin, than a
    Gaussian with the moments of that training set; and better than level and spread of any
    input chunk of it, since a Gaussian is far from heavy tails and rare events. Windows
    that are constant say nothing, nor do those whose input chunk is. A season is taken out
    before, since it would hide how the level moves.

    Of many windows of series that keep returning to their mean a network learns to where,
    which their own scales would hide. There the window's own past must not be worse than a
    linear forecast of that training set by the level of the input chunk.

    Where each series has one or two windows alone, all of them are looked at. They tell
    whether several series differ in scale, which takes a clearer margin.

    Parameters
    ----------
    series
        The training series; those that are too short are left out.
    lengths
        Steps of the parts of a window.
    scale
        The scale of the training set.
    pattern
        Which last values of an input chunk tell its level and its season. Its trend is left
        in, since a smooth season has one at each step.
    """
    series = [_all_without_season(one, pattern.season_length) for one in series]
    level = LocalPattern(pattern.level_steps)
    floor = instance_floor(series, lengths.input, scale, level)
    length = lengths.window
    longer = [one for one in series if len(one) >= length + 2]
    first_share = 2 / 3 if longer else 0.0
    windows = partial(windows_of, length=length, num_last=lengths.output)
    parts = list(windows(longer or series, first_share=first_share))
    # a short one alone differs from none
    if len(parts) < (1 if longer else 2):
        return False
    how = lengths, level, floor
    own = _own_forecasts(parts, *how)
    mean, std, _ = moments(torch.cat([each.before for each in parts]))
    # constant components say nothing
    std = torch.where(std > 0, std, torch.nan)
    by_training_set = Normal(mean, std, validate_args=False)
    gain = (own.log_density - by_training_set.log_prob(own.ahead)).nanmean().item()
    if not gain > MIN_GAIN:
        return False
    before = [TimeSeries.from_values(each.before.numpy()) for each in parts]
    by_any_chunk = _by_any_chunk(before, lengths.input, level, floor, own.ahead)
    if not (own.log_density - by_any_chunk).nanmean() > 0:
        return False
    if not longer or gain > CLEAR_GAIN:
        return gain > CLEAR_GAIN
    num_windows = sum(len(one) // length for one in longer)
    if num_windows < ENOUGH_WINDOWS or not _keep_returning(longer):
        return True
    earlier = list(windows(before))
    # before the last third there may be no whole window
    if not earlier:
        return True
    by_level = _linear_by_level(_own_forecasts(earlier, *how), own)
    return bool((own.log_density - by_level).nanmean() > -MIN_GAIN)


def _keep_returning(series: Sequence[TimeSeries]) -> bool:
    """Tell whether series cross their mean again and again, as a random walk does not.

    Each component must do so, on average over the series.
    """
    # of each series, C numbers
    numbers: list[list[int]] = []
    for one in series:
        # (T, C, samples) -> (T, C)
        x = torch.from_numpy(one.all_values(copy=False).astype(np.float64).mean(-1))
        mean, std, _ = moments(x)
        off = x - mean
        # what is missing is on no side
        sides = [
            part[part.abs() > NEAR_MEAN * spread].sign()
            for part, spread in zip(off.T, std, strict=True)
        ]
        numbers.append([int(side.diff().count_nonzero()) for side in sides])
    return bool(np.mean(numbers, axis=0).min() >= MIN_CROSSINGS)


def _linear_by_level(learned: _OwnForecasts, own: _OwnForecasts) -> Tensor:
    """Return the log-density of output chunks by linear regressions on the level.

    Each step of the chunk has its own, the same for all series.

    Parameters
    ----------
    learned
        What the regressions are fitted to.
    own
        What they forecast, (N, n, C).
    """
    y = learned.ahead
    x = torch.where(y.isnan(), torch.nan, learned.level.expand_as(y))
    mean_x, mean_y = x.nanmean(0), y.nanmean(0)
    x, y = x - mean_x, y - mean_y
    slope = (x * y).nanmean(0) / x.square().nanmean(0)
    std = (y - slope * x).square().nanmean(0).sqrt()
    # of what is constant nothing is said
    std = torch.where(std > 0, std, torch.nan)
    mean = mean_y + slope * (own.level - mean_x)
    return Normal(mean, std, validate_args=False).log_prob(own.ahead)


def _all_without_season(series: TimeSeries, length: int) -> TimeSeries:
    """Take the season, of so many steps, out of a whole series, if it has any."""
    if length == 0 or len(series) < length:
        return series
    # (T, C, samples) -> (T, C)
    values = torch.from_numpy(series.all_values(copy=False).astype(np.float64).mean(-1))
    # (T, C) -> (T, 1, C), which becomes (1, T, C)
    x, observed = with_flags(values.unsqueeze(1))
    num_cycles = len(series) // length
    pattern = LocalPattern(1, season_length=length, season_cycles=num_cycles)
    rest, _ = without_season(x, observed, pattern)
    whole, left = (local_moments(each, observed, LocalPattern(1)) for each in (x, rest))
    # what rounding leaves of a series that is a season alone
    rest = torch.where(is_constant(whole.std, left.std), left.mean, rest)
    return TimeSeries.from_values(torch.where(observed > 0, rest, torch.nan)[0].numpy())
