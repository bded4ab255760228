"""
Scales taken from a training set, and whether each window is better scaled by itself.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from darts import TimeSeries
from darts.utils.data import TorchTrainingDataset
from torch import Tensor
from torch.distributions import Normal, StudentT

from darts_ddssm.estimator.automatic import FEW_WINDOWS
from darts_ddssm.estimator.data_checks import training_series
from darts_ddssm.estimator.windows import (
    NUM_WINDOWS,
    moments,
    on_index,
    windows_of,
    with_flags,
)
from darts_ddssm.series.scaling import (
    ROUNDING_ERRORS,
    CovariateScale,
    InstanceFloor,
    LocalPattern,
    Scale,
    TrainingScales,
    is_constant,
    level_and_slope,
    local_moments,
    without_season,
)

# What a scale of each window must gain to be no accident, in nats per value.
MIN_GAIN = 0.1

# More than this is no mere memory of stationary series, whose last values tell by a few
# tenths more than the training set where they are to be found.
CLEAR_GAIN = 1.0

# Windows apart from each other that are enough to learn from where stationary series return
# to. With fewer, those of a scale of their own are more alike.
MANY_WINDOWS = 50

# A series knows the mean that it returns to if it has crossed it so often. A random walk
# does so a few times. Values within so many standard deviations of the mean do not count.
MIN_CROSSINGS, NEAR_MEAN = 20, 0.5

# What the last steps of a chunk must be worth to be its level: the error of forecasts by
# their mean is at most this share of that by the mean of all steps.
MAX_SHARE_OF_ALL_STEPS = 0.95

# What a trend of each window must be worth to be no accident: the error of forecasts by
# level and trend is at most this share of that by the level and growth as usual.
MAX_SHARE_OF_ERROR = 0.9

# It goes on: it must be worth as much in the last of so many output chunks in a row, or as
# far ahead as the input chunk reaches back, whichever is further. What is worth something
# in the first alone is part of a swing, which a network learns better.
CHUNKS_OF_A_TREND = 3

# What a season must be worth to be taken out: the error of forecasts with it is at most
# this share of that without. A network could find it too, and then does not see it.
MAX_SHARE_WITH_SEASON = 0.7

# Of all lengths of a season whose errors are within this ratio of the least the shortest is
# taken.
MAX_RATIO_OF_SEASONS = 1.05

# Shares of such a trend that may go on, and the most numbers of steps that are tried.
TREND_SHARES, NUM_TRENDS = (0.5, 1.0), 24

# Each number of steps is tried on all values of some windows. Of long or wide windows there
# are fewer, so that no more values are looked at than this, but not too few to tell.
MAX_COMPARED, LEAST_COMPARED = 100_000_000, 100

# The spread of a covariate is at least this share of its range: the rare event of a
# covariate of zeros and ones is a value of a few, not of hundreds.
MIN_SHARE_OF_RANGE = 1 / 8

# The range of a covariate is that of the training set and so much of it more on both sides.
MARGIN_OF_RANGE = 0.1

# A covariate leaves its range where more than this share of the later values lie outside.
MAX_SHARE_OUTSIDE = 0.05

# By how many spreads the mean of a later training set may differ from that of the first,
# and by what factor its spread, so that networks can learn it in the scale of the first.
MAX_RATIO_OF_SCALES = 10.0

# Of the input chunks of a series that are not constant, the share that is narrower than
# what its chunks are divided by at least.
FLOOR_QUANTILE = 0.05


def training_scales(dataset: TorchTrainingDataset, input_length: int) -> TrainingScales:
    """Scales of target and covariates, by the observed values of a training set.

    Parameters
    ----------
    dataset
        A darts training dataset; at most 1,000 of its windows are looked at.
    input_length
        Steps of an input chunk.
    """
    targets: list[np.ndarray] = []
    # input chunks and whole windows of the covariates of each kind
    covariates: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {
        "past": [],
        "future": [],
        "static": [],
    }
    for i in np.unique(np.linspace(0, len(dataset) - 1, NUM_WINDOWS).astype(int)):
        sample = dataset[i]
        targets += [sample.past_target, sample.future_target]
        if sample.past_covariates is not None:
            covariates["past"].append((sample.past_covariates,) * 2)
        if sample.future_covariates is not None:
            chunk = sample.historic_future_covariates
            whole = np.concatenate([chunk, sample.future_covariates])
            covariates["future"].append((chunk, whole))
        if sample.static_covariates is not None:
            # (C or 1, F) -> (1, C * F)
            covariates["static"].append((sample.static_covariates.reshape(1, -1),) * 2)
    return TrainingScales(
        _scale(np.concatenate(targets)),
        **{
            kind: _covariate_scale(windows, _ranges(dataset, kind), input_length)
            if windows
            else CovariateScale.unit()
            for kind, windows in covariates.items()
        },
    )


def is_other_scale(new: Scale, old: Scale) -> bool:
    """Tell whether values of one scale are none that a model of another one can learn.

    Parameters
    ----------
    new, old
        Mean and spread of each component, (C,).
    """
    distance = (new.shift - old.shift).abs() / old.spread
    ratio = (new.spread / old.spread).log().abs()
    limit = math.log(MAX_RATIO_OF_SCALES)
    return bool((distance > MAX_RATIO_OF_SCALES).any() or (ratio > limit).any())


def _scale(values: np.ndarray) -> Scale:
    """Mean and standard deviation of each column of values (N, C)."""
    mean, std, magnitude = _magnitudes(values)
    # what a constant has, so that it is forecast as itself
    return Scale(mean, std.maximum(_rounding_error(values) * magnitude))


def _rounding_error(values: np.ndarray) -> float:
    """What varies by less, in terms of its magnitude, is a constant."""
    return ROUNDING_ERRORS * float(np.finfo(values.dtype).eps)


def _magnitudes(values: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and magnitude of each column of values (N, F)."""
    # squares of float32 may overflow
    x = torch.from_numpy(values.astype(np.float64))
    mean, std, count = moments(x)
    # where nothing is observed they are NaN
    mean, std = (torch.where(count > 0, part, 0.0) for part in (mean, std))
    magnitude = x.abs().nan_to_num().amax(0)
    # a component of zeros alone has no magnitude either
    return mean, std, torch.where(magnitude > 0, magnitude, 1.0)


class _Ranges(NamedTuple):
    """Least and greatest values of covariates in the training series, (F,) each.

    The first two thirds of the steps of each series say what its range was.
    """

    lowest: Tensor
    highest: Tensor
    leaves: Tensor


def _ranges(dataset: TorchTrainingDataset, kind: str) -> _Ranges | None:
    """Find the ranges of covariates, and which ones leave theirs as time goes on.

    All series are looked at, not some windows: a rare event must not be missed.

    Parameters
    ----------
    dataset
        A darts training dataset.
    kind
        The kind of the covariates.

    Returns
    -------
    _Ranges
        ``None`` where the dataset has no series.
    """
    series = training_series(dataset)
    if not series:
        return None
    if kind == "static":
        # (C or 1, F) -> (1, C * F)
        parts = [one.static_covariates_values(copy=False).reshape(1, -1) for one in series]
    else:
        covariates = getattr(dataset, f"{kind}_covariates")
        parts = [
            on_index(one, other.time_index)
            for one, other in zip(covariates, series, strict=True)
        ]
    before, after = [], []
    for values in parts:
        first, last = np.split(values.astype(np.float64), [math.ceil(2 * len(values) / 3)])
        before.append(first)
        after.append(last)
    # (T, F) of all series
    early, late = (torch.from_numpy(np.concatenate(each)) for each in (before, after))
    lowest, highest = _extremes(early)
    # what was unknown or constant had no range yet
    outside = (lowest < highest) & ((late < lowest) | (late > highest))
    leaves = outside.sum(0) > MAX_SHARE_OUTSIDE * (~late.isnan()).sum(0)
    return _Ranges(*_extremes(torch.cat([early, late])), leaves)


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest observed values of each column (N, F), infinite without any."""
    return x.nan_to_num(nan=torch.inf).amin(0), x.nan_to_num(nan=-torch.inf).amax(0)


def _covariate_scale(
    windows: list[tuple[np.ndarray, np.ndarray]],
    ranges: _Ranges | None,
    input_length: int,
) -> CovariateScale:
    """Scale of covariates, by the observed values of some windows.

    Parameters
    ----------
    windows
        Input chunk and whole window, (I, F) and (T, F) each.
    ranges
        Their ranges in all training series. ``None`` where only the windows are known.
    input_length
        Steps I of an input chunk.
    """
    values = np.concatenate([whole for _, whole in windows])
    least_share = _rounding_error(values)
    shift, spread, magnitude = _magnitudes(values)
    x = torch.from_numpy(values.astype(np.float64))
    lowest, highest = _extremes(x)
    is_local = torch.zeros_like(shift, dtype=torch.bool)
    if ranges is not None:
        lowest, highest = ranges.lowest, ranges.highest
        is_local = ranges.leaves
    lowest, highest = lowest - shift, highest - shift
    if is_local.any():
        chunks, wholes = (
            [torch.from_numpy(part.astype(np.float64)) for part in parts]
            for parts in zip(*windows, strict=True)
        )
        x = torch.cat([w - c.nanmean(0) for c, w in zip(chunks, wholes, strict=True)])
        spread = torch.where(is_local, x.square().nanmean(0).sqrt().nan_to_num(), spread)
        least, greatest = _extremes(x)
        lowest = torch.where(is_local, least, lowest)
        highest = torch.where(is_local, greatest, highest)
    # of nothing there is no range
    lowest, highest = (torch.where(x.isfinite(), x, 0.0) for x in (lowest, highest))
    spread = spread.maximum(MIN_SHARE_OF_RANGE * (highest - lowest))
    # of one that was constant nothing is known but that
    constant = spread <= least_share * magnitude
    spread = torch.where(constant, magnitude, spread)
    margin = MARGIN_OF_RANGE * (highest - lowest)
    low, high = (lowest - margin) / spread, (highest + margin) / spread
    return CovariateScale(shift, spread, low, high, is_local, input_length)


def instance_floor(
    series: Sequence[TimeSeries],
    input_length: int,
    scale: Scale,
    local_pattern: LocalPattern,
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
        return InstanceFloor(scale.spread, torch.zeros_like(scale.spread))
    least, ratio = (
        torch.stack(x).nan_to_num(nan=torch.inf).amin(0) for x in (spreads, ratios)
    )
    return InstanceFloor(
        torch.where(least.isfinite(), least, scale.spread),
        torch.where(ratio.isfinite(), ratio, 0.0),
    )


class Chunks(NamedTuple):
    """Chunks of N windows of S series.

    Attributes
    ----------
    past, observed
        Values and flags of the input chunks, (N, I, C).
    ahead
        Output chunks, with NaN where a value is missing, (N, n, C).
    owner
        Number of the series of each window, (N,).
    """

    past: Tensor
    observed: Tensor
    ahead: Tensor
    owner: Tensor

    def mean_of_each(self, values: Tensor) -> Tensor:
        """Mean of values (N, n, C) that are known, of each series, (S, C)."""
        known = ~values.isnan()
        zeros = values.new_zeros(int(self.owner[-1]) + 1, values.shape[-1])
        total, count = (
            zeros.index_add(0, self.owner, part.sum(1))
            for part in (values.nan_to_num(), known.to(values.dtype))
        )
        return total / count


def automatic_local_pattern(
    series: Sequence[TimeSeries],
    input_length: int,
    gap: int,
    output_length: int,
    num_windows: int | None = None,
) -> LocalPattern:
    """Return which last values of an input chunk say most of what follows.

    The level is the last value of a random walk, the mean of a season where there are
    season and trend, and that of all steps where a series returns to its mean. Growth as
    usual, in terms of the spread of a chunk, a network learns from the windows. A trend of
    each window is told apart only where forecasts by it are better by a clear margin, in
    the output chunk and two of them later. So is a season, of whatever length fits, where
    forecasts of the output chunk are better and windows are few: in many a network
    finds it by itself, and more than it.

    Parameters
    ----------
    series
        The training series; those that are too short are left out.
    input_length, gap, output_length
        Steps of the input chunk, between the chunks, and of the output chunk.
    num_windows
        Windows of the training set, if not all of the series are in it.
    """
    chunks = _chunks(series, input_length, gap, output_length)
    if chunks is None:
        return LocalPattern(input_length)
    levels = [LocalPattern(number) for number in range(1, input_length + 1)]
    of_levels = _errors(chunks, gap, levels)
    # of a constant there is none; each series has a unit of its own
    unit = of_levels.mean(0)
    means = (of_levels / unit).nanmean((1, 2))
    if not means.isfinite().all():
        return LocalPattern(input_length)
    is_better = means.min() < MAX_SHARE_OF_ALL_STEPS * means[-1]
    level = levels[int(means.argmin()) if is_better else -1]
    usual = (_errors_of_usual_growth(chunks, level) / unit).nanmean()
    found, error = level, means.min().fmin(usual)
    longest = input_length // 2
    numbers = np.geomspace(1, max(longest, 1), NUM_TRENDS).round().astype(int)
    trends = [
        LocalPattern(level_steps, number, share)
        for number in np.unique(numbers[numbers <= longest]).tolist()
        for level_steps in sorted({1, number, level.level_steps})
        for share in TREND_SHARES
    ]
    if trends:
        means = (_errors(chunks, gap, trends) / unit).nanmean((1, 2))
        trend = trends[int(means.argmin())]
        if means.min() < MAX_SHARE_OF_ERROR * error and _goes_on(
            trend, level, series, input_length, gap, output_length
        ):
            found, error = trend, means.min()
    length = input_length + gap + output_length
    num_all = sum(max(len(one) - length + 1, 0) for one in series)
    # in a training set windows of shorter series may be repeated
    if min(num_all, num_windows or num_all) > FEW_WINDOWS:
        return found
    season = _best_season(chunks, gap)
    if season is None:
        return found
    error_of_season = (_errors(chunks, gap, [season]) / unit).nanmean()
    return season if error_of_season < MAX_SHARE_WITH_SEASON * error else found


def _chunks(
    series: Sequence[TimeSeries], input_length: int, gap: int, output_length: int
) -> Chunks | None:
    """Return chunks of some windows of training series, ``None`` where all are too short.

    Parameters
    ----------
    series, input_length, gap, output_length
        As for :func:`automatic_local_pattern`.
    """
    length = input_length + gap + output_length
    num_components = max((one.n_components for one in series), default=1)
    affordable = MAX_COMPARED // (input_length * length * num_components)
    max_windows = min(max(affordable, LEAST_COMPARED), NUM_WINDOWS)
    parts = list(windows_of(series, length, max_windows=max_windows))
    if not parts:
        return None
    # (T, N, C)
    windows = torch.cat([part.x for part in parts], dim=1)
    counts = torch.tensor([part.x.shape[1] for part in parts])
    return Chunks(
        *with_flags(windows[:input_length]),
        # (n, N, C) -> (N, n, C)
        windows[-output_length:].transpose(0, 1),
        torch.arange(len(parts)).repeat_interleave(counts),
    )


def _goes_on(
    trend: LocalPattern,
    level: LocalPattern,
    series: Sequence[TimeSeries],
    input_length: int,
    gap: int,
    output_length: int,
) -> bool:
    """Tell whether a trend is worth as much beyond the output chunk as a trend must be.

    Nothing speaks against it where the series are too short to tell, or where nothing is
    observed.

    Parameters
    ----------
    trend, level
        Which values tell the trend, and the level where there is none.
    series, input_length, gap, output_length
        As for :func:`automatic_local_pattern`.
    """
    least = CHUNKS_OF_A_TREND * output_length
    for reach in (max(least, input_length), least):
        later = gap + reach - output_length
        chunks = _chunks(series, input_length, later, output_length)
        if chunks is not None:
            break
    else:
        return True
    errors = _errors(chunks, later, [trend, level])
    # a series that is at rest, which the level alone forecasts, has a unit too
    by_trend, by_level = (errors / errors.mean(0)).nanmean((1, 2))
    return not bool(by_trend > MAX_SHARE_OF_ERROR * by_level)


def _best_season(chunks: Chunks, gap: int) -> LocalPattern | None:
    """Return the level and the season that say most of what follows.

    Parameters
    ----------
    chunks
        Chunks of the training series.
    gap
        Steps between input and output chunks.

    Returns
    -------
    LocalPattern
        ``None`` where input chunks are too short: a season is seen twice at least, or
        nothing would be left of the chunk without it.
    """
    input_length = chunks.past.shape[1]
    lengths = range(2, input_length // 2 + 1)
    if not lengths:
        return None

    def errors_of(candidates: list[LocalPattern]) -> Tensor:
        errors = _errors(chunks, gap, candidates)
        return (errors / errors.mean(0)).nanmean((1, 2)).nan_to_num(nan=torch.inf)

    candidates = [
        LocalPattern(
            level_steps, season_length=length, season_cycles=input_length // length
        )
        for length in lengths
        for level_steps in sorted({1, math.ceil(length / 4), length})
    ]
    errors = errors_of(candidates)
    # twice a season is a season too
    is_good = errors <= MAX_RATIO_OF_SEASONS * errors.min()
    season = candidates[int(is_good.nonzero().min())]
    most = season.season_cycles
    numbers = np.geomspace(1, input_length, NUM_TRENDS).round().astype(int)
    candidates = [
        season._replace(level_steps=level_steps, season_cycles=cycles)
        for cycles in sorted({2, max(most // 2, 2), most})
        for level_steps in np.unique([*numbers, season.season_length]).tolist()
    ]
    return candidates[int(errors_of(candidates).argmin())]


def _errors(chunks: Chunks, gap: int, candidates: list[LocalPattern]) -> Tensor:
    """Mean absolute errors of forecasts by patterns of input chunks, (candidates, S, C).

    Parameters
    ----------
    chunks
        Chunks of the training series.
    gap
        Steps between input and output chunks.
    candidates
        Which values tell level, trend and season.
    """
    errors = []
    for pattern in candidates:
        rest, season = without_season(chunks.past, chunks.observed, pattern)
        level, slope = level_and_slope(rest, chunks.observed, pattern)
        # of nothing there is no level
        level = torch.where(chunks.observed.any(1, keepdim=True), level, torch.nan)
        line = Scale(level, torch.ones_like(level), slope, season)
        ahead = line.normalise(chunks.ahead, first=gap)
        errors.append(chunks.mean_of_each(ahead.abs()))
    return torch.stack(errors)


def _errors_of_usual_growth(chunks: Chunks, level: LocalPattern) -> Tensor:
    """Errors of forecasts by a level and the median growth from it, (S, C).

    Growth is counted in spreads of the input chunk.
    """
    local = local_moments(chunks.past, chunks.observed, level)
    # a constant does not grow
    spread = torch.where(local.std > 0, local.std, torch.nan)
    growth = (chunks.ahead - local.level) / spread
    # of all windows, (n, C)
    usual = growth.nanmedian(0).values
    return chunks.mean_of_each(((growth - usual) * spread).abs())


class _OwnForecasts(NamedTuple):
    """Output chunks of N windows, and what the input chunk alone says of them.

    Attributes
    ----------
    level
        The level of the input chunk, (N, 1, C).
    ahead
        The output chunk, NaN where a value is missing or the window is constant, (N, n, C).
    log_density
        Of the output chunk, by a Student t with level and spread of the input chunk, which
        allows for the uncertainty of moments of a short chunk, (N, n, C).
    has_scale
        Whether the spread is that of the chunk, and not the least one, (N, 1, C).
    """

    level: Tensor
    ahead: Tensor
    log_density: Tensor
    has_scale: Tensor


def _own_forecasts(
    windows: Tensor,
    input_length: int,
    output_length: int,
    level: LocalPattern,
    floor: InstanceFloor,
) -> _OwnForecasts:
    """Forecast output chunks of windows (T, N, C) by level and spread of their input."""
    local = local_moments(*with_flags(windows[:input_length]), level)
    least = floor.apply(local.mean, local.std)
    has_scale, own_std, count = local.std >= least, least, local.num_values
    # one value alone has no spread
    own_std = torch.where(count > 1, own_std, torch.nan)
    count = count.clamp(min=2)
    own_std = own_std * ((count + 1) / (count - 1)).sqrt()
    by_input = StudentT(count - 1, local.level, own_std, validate_args=False)
    whole_mean, whole_std, _ = moments(windows)
    constant = is_constant(whole_mean.abs(), whole_std)
    # (n, N, C) -> (N, n, C)
    ahead = torch.where(constant, torch.nan, windows[-output_length:]).transpose(0, 1)
    return _OwnForecasts(local.level, ahead, by_input.log_prob(ahead), has_scale)


def prefers_instance_scale(
    series: Sequence[TimeSeries],
    input_length: int,
    gap: int,
    output_length: int,
    scale: Scale,
    pattern: LocalPattern,
) -> bool:
    """Tell whether a window is better scaled by its own past than by the training set.

    What is before the output chunks of the last third of the windows of each series is
    taken for a training set. Two predictions of these chunks are compared by likelihood: a
    Gaussian with the moments of that training set, and level and spread of the input chunk.
    The window's own past must be better by a clear margin. Windows that are constant say
    nothing. A season is taken out before, since it would hide how the level moves.

    Of many windows of series that keep returning to their mean a network learns to where,
    which their own scales would hide. There the window's own past must not be worse than a
    linear forecast of that training set by the level of the input chunk.

    Where each series has one or two windows alone, all of them are looked at. They tell
    whether several series differ in scale, which takes a clearer margin.

    Parameters
    ----------
    series
        The training series; those that are too short are left out.
    input_length, gap, output_length
        Steps of the input chunk, between the chunks, and of the output chunk.
    scale
        The scale of the training set.
    pattern
        Which last values of an input chunk tell its level and its season. Its trend is left
        in: a trend alone is no drift, a smooth season has one at each step.
    """
    series = [_all_without_season(one, pattern.season_length) for one in series]
    level = LocalPattern(pattern.level_steps)
    floor = instance_floor(series, input_length, scale, level)
    length = input_length + gap + output_length
    longer = [one for one in series if len(one) >= length + 2]
    first_share = 2 / 3 if longer else 0.0
    windows = partial(windows_of, length=length, num_last=output_length)
    parts = list(windows(longer or series, first_share=first_share))
    # a short one alone differs from none
    if len(parts) < (1 if longer else 2):
        return False
    how = input_length, output_length, level, floor
    own = [_own_forecasts(each.x, *how) for each in parts]
    mean, std, _ = moments(torch.cat([each.before for each in parts]))
    # constant components say nothing
    std = torch.where(std > 0, std, torch.nan)
    by_training_set = Normal(mean, std, validate_args=False)
    gains = [one.log_density - by_training_set.log_prob(one.ahead) for one in own]
    # zeros after zeros are no reason to call the next pulse a thousand
    gain = _mean_of(
        torch.where(one.has_scale, each, each.clamp(max=0.0))
        for one, each in zip(own, gains, strict=True)
    )
    if not longer or gain > CLEAR_GAIN:
        return gain > CLEAR_GAIN
    num_windows = sum(len(one) // length for one in longer)
    if gain <= MIN_GAIN or num_windows < MANY_WINDOWS or not _keep_returning(longer):
        return gain > MIN_GAIN
    before = [TimeSeries.from_values(each.before.numpy()) for each in parts]
    learned = [_own_forecasts(each.x, *how) for each in windows(before)]
    # before the last third there may be no whole window
    if not learned:
        return True
    by_level = _linear_by_level(learned)
    return _mean_of(one.log_density - by_level(one) for one in own) > -MIN_GAIN


def _mean_of(parts: Iterable[Tensor]) -> float:
    """Mean of all values of some tensors that are known."""
    return torch.cat([part.flatten() for part in parts]).nanmean().item()


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


def _linear_by_level(
    learned: Sequence[_OwnForecasts],
) -> Callable[[_OwnForecasts], Tensor]:
    """Return the log-density of output chunks by linear regressions on the level.

    Each step of the chunk has its own, the same for all series.

    Parameters
    ----------
    learned
        What the regressions are fitted to.
    """
    # (N, n, C) of all series
    y = torch.cat([one.ahead for one in learned])
    x = torch.cat([one.level.expand_as(one.ahead) for one in learned])
    x = torch.where(y.isnan(), torch.nan, x)
    mean_x, mean_y = x.nanmean(0), y.nanmean(0)
    x, y = x - mean_x, y - mean_y
    slope = (x * y).nanmean(0) / x.square().nanmean(0)
    std = (y - slope * x).square().nanmean(0).sqrt()
    # of what is constant nothing is said
    std = torch.where(std > 0, std, torch.nan)

    def log_density(one: _OwnForecasts) -> Tensor:
        mean = mean_y + slope * (one.level - mean_x)
        return Normal(mean, std, validate_args=False).log_prob(one.ahead)

    return log_density


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
