"""
Which last values of an input chunk tell its level, its trend and its season.

Letters as in :mod:`darts_ddssm.ssm`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from darts import TimeSeries
from torch import Tensor

from darts_ddssm.estimator.automatic import FEW_WINDOWS
from darts_ddssm.estimator.windows import (
    NUM_WINDOWS,
    ChunkLengths,
    windows_of,
    with_flags,
)
from darts_ddssm.series.scaling import (
    LocalPattern,
    Scale,
    is_constant,
    level_and_slope,
    local_moments,
    without_season,
)

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

# What a season must be worth so that a series is no walk, likewise.
MAX_SHARE_OF_WALK = 0.9

# Of all lengths of a season whose errors are within this ratio of the least the shortest is
# taken.
MAX_RATIO_OF_SEASONS = 1.05

# Shares of such a trend that may go on, and the most numbers of steps that are tried.
TREND_SHARES, NUM_TRENDS = (0.5, 1.0), 24

# Each number of steps is tried on all values of some windows. Of long or wide windows there
# are fewer, so that no more values are looked at than this, but not too few to tell.
MAX_COMPARED, LEAST_COMPARED = 100_000_000, 100


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
    gap
        Steps G between the chunks.
    """

    past: Tensor
    observed: Tensor
    ahead: Tensor
    owner: Tensor
    gap: int

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
    lengths: ChunkLengths,
    num_windows: int | None = None,
) -> LocalPattern:
    """Return which last values of an input chunk say most of what follows.

    The level is the last value of a random walk, the mean of a season where there are
    season and trend, and that of all steps where a series returns to its mean. Growth as
    usual, in terms of the spread of a chunk, a network learns from the windows. A trend of
    each window is told apart only where forecasts by it are better by a clear margin, in
    the output chunk and later. So is a season, of whatever length fits, where forecasts of
    the output chunk are better and windows are few: in many a network finds it by itself,
    and more than it.

    Parameters
    ----------
    series
        The training series; those that are too short are left out.
    lengths
        Steps of the parts of a window.
    num_windows
        Windows of the training set, if not all of the series are in it.
    """
    chunks = _chunks(series, lengths)
    if chunks is None:
        return LocalPattern(lengths.input)
    levels = [LocalPattern(number) for number in range(1, lengths.input + 1)]
    of_levels = _errors(chunks, levels)
    # of a constant there is none; each series has a unit of its own
    unit = of_levels.mean(0)
    means = (of_levels / unit).nanmean((1, 2))
    if not means.isfinite().all():
        return LocalPattern(lengths.input)
    is_better = means.min() < MAX_SHARE_OF_ALL_STEPS * means[-1]
    level = levels[int(means.argmin()) if is_better else -1]
    usual = (_errors_of_usual_growth(chunks, level) / unit).nanmean()
    found, error = level, means.min().fmin(usual)
    longest = lengths.input // 2
    numbers = np.geomspace(1, max(longest, 1), NUM_TRENDS).round().astype(int)
    trends = [
        LocalPattern(level_steps, number, share)
        for number in np.unique(numbers[numbers <= longest]).tolist()
        for level_steps in sorted({1, number, level.level_steps})
        for share in TREND_SHARES
    ]
    if trends:
        means = (_errors(chunks, trends) / unit).nanmean((1, 2))
        trend = trends[int(means.argmin())]
        if means.min() < MAX_SHARE_OF_ERROR * error and _goes_on(
            trend, level, series, lengths
        ):
            found, error = trend, means.min()
    num_all = sum(max(len(one) - lengths.window + 1, 0) for one in series)
    # in a training set windows of shorter series may be repeated
    if min(num_all, num_windows or num_all) > FEW_WINDOWS:
        return found
    season = _best_season(chunks)
    if season is None:
        return found
    error_of_season = (_errors(chunks, [season]) / unit).nanmean()
    return season if error_of_season < MAX_SHARE_WITH_SEASON * error else found


def may_have_season(
    series: Sequence[TimeSeries],
    lengths: ChunkLengths,
    pattern: LocalPattern,
) -> bool:
    """Tell whether some season forecasts better than a level, though it is not taken out.

    Parameters
    ----------
    series, lengths
        As for :func:`automatic_local_pattern`.
    pattern
        Which last values tell the level.
    """
    chunks = _chunks(series, lengths)
    season = None if chunks is None else _best_season(chunks)
    if chunks is None or season is None:
        return False
    by_level, by_season = _relative_errors(chunks, [pattern, season])
    return bool(by_season < MAX_SHARE_OF_WALK * by_level)


def _chunks(series: Sequence[TimeSeries], lengths: ChunkLengths) -> Chunks | None:
    """Return chunks of some windows of training series, ``None`` where all are too short.

    Parameters
    ----------
    series, lengths
        As for :func:`automatic_local_pattern`.
    """
    num_components = max((one.n_components for one in series), default=1)
    affordable = MAX_COMPARED // (lengths.input * lengths.window * num_components)
    max_windows = min(max(affordable, LEAST_COMPARED), NUM_WINDOWS)
    parts = list(windows_of(series, lengths.window, max_windows=max_windows))
    if not parts:
        return None
    # (T, N, C)
    windows = torch.cat([part.x for part in parts], dim=1)
    counts = torch.tensor([part.x.shape[1] for part in parts])
    return Chunks(
        *with_flags(windows[: lengths.input]),
        # (n, N, C) -> (N, n, C)
        windows[-lengths.output :].transpose(0, 1),
        torch.arange(len(parts)).repeat_interleave(counts),
        lengths.gap,
    )


def _goes_on(
    trend: LocalPattern,
    level: LocalPattern,
    series: Sequence[TimeSeries],
    lengths: ChunkLengths,
) -> bool:
    """Tell whether a trend is worth as much beyond the output chunk as a trend must be.

    Nothing speaks against it where the series are too short to tell, or where nothing is
    observed.

    Parameters
    ----------
    trend, level
        Which values tell the trend, and the level where there is none.
    series, lengths
        As for :func:`automatic_local_pattern`.
    """
    least = CHUNKS_OF_A_TREND * lengths.output
    for reach in (max(least, lengths.input), least):
        later = lengths.gap + reach - lengths.output
        chunks = _chunks(series, lengths._replace(gap=later))
        if chunks is not None:
            break
    else:
        return True
    by_trend, by_level = _relative_errors(chunks, [trend, level])
    return not bool(by_trend > MAX_SHARE_OF_ERROR * by_level)


def _best_season(chunks: Chunks) -> LocalPattern | None:
    """Return the level and the season that say most of what follows.

    Parameters
    ----------
    chunks
        Chunks of the training series.

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
        return _relative_errors(chunks, candidates).nan_to_num(nan=torch.inf)

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


def _errors(chunks: Chunks, candidates: list[LocalPattern]) -> Tensor:
    """Mean absolute errors of forecasts by patterns of input chunks, (candidates, S, C).

    Parameters
    ----------
    chunks
        Chunks of the training series.
    candidates
        Which values tell level, trend and season.
    """
    errors, size = [], chunks.mean_of_each(chunks.ahead.abs())
    for pattern in candidates:
        rest, season = without_season(chunks.past, chunks.observed, pattern)
        level, slope = level_and_slope(rest, chunks.observed, pattern)
        # of nothing there is no level
        level = torch.where(chunks.observed.any(1, keepdim=True), level, torch.nan)
        line = Scale(level, torch.ones_like(level), slope, season)
        ahead = line.normalise(chunks.ahead, first=chunks.gap)
        error = chunks.mean_of_each(ahead.abs())
        # what rounding leaves of a constant
        errors.append(torch.where(is_constant(size, error), 0.0, error))
    return torch.stack(errors)


def _relative_errors(chunks: Chunks, candidates: list[LocalPattern]) -> Tensor:
    """Mean of these errors over series and components, (candidates,).

    Each series has the mean of all candidates for a unit, also one that is at rest, which a
    level alone forecasts. Arguments as for :func:`_errors`.
    """
    errors = _errors(chunks, candidates)
    return (errors / errors.mean(0)).nanmean((1, 2))


def _errors_of_usual_growth(chunks: Chunks, level: LocalPattern) -> Tensor:
    """Errors of forecasts by a level and the median growth from it, (S, C).

    Growth is counted in spreads of the input chunk.
    """
    local = local_moments(chunks.past, chunks.observed, level)
    # a constant does not grow, but for rounding
    constant = is_constant(local.mean.abs(), local.std)
    spread = torch.where(constant, torch.nan, local.std)
    growth = (chunks.ahead - local.level) / spread
    # of all windows, (n, C)
    usual = growth.nanmedian(0).values
    return chunks.mean_of_each(((growth - usual) * spread).abs())
