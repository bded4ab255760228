"""
The scale of the data: of the training set or, for the target, of each window.

The state-space model works on values near zero with a spread near one, whatever the
units of the data, so that neither its training nor its numerical range depends on them.
With reversible instance normalisation [1]_, each window, input and output chunk, is
normalised by the observed values of its input chunk in place of the training set's.
darts' own normalisation knows neither gaps nor output chunks, and its least spread is a
number that knows no unit.

Letters as in :mod:`darts_ddssm.ssm`.

References
----------
.. [1] T. Kim et al., "Reversible Instance Normalization for Accurate Time-Series
       Forecasting against Distribution Shift", ICLR 2022.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from darts.models.components.layer_norm_variants import RINorm
from torch import Tensor, nn

# How often levels and season of a chunk are fitted in turns.
SEASON_PASSES = 3

# The most that the spread of a path is multiplied or divided by. Without a bound, it would
# walk to zero, or beyond the range of numbers.
MAX_CHANGE_OF_SPREAD = 3.0

# A spread of so many rounding errors of the level, or less, is that of a constant.
ROUNDING_ERRORS = 8


def is_constant(level: Tensor, std: Tensor) -> Tensor:
    """Tell whether values of such a level and standard deviation are a constant.

    Data of double precision often were of single precision once.
    """
    return std <= ROUNDING_ERRORS * torch.finfo(torch.float32).eps * level


class Scale(NamedTuple):
    """The map from data to normalised values, (x - shift) / spread.

    Attributes
    ----------
    shift, spread
        One value per component, (C,), or per series and component, (B, 1, C).
    slope
        Change of the shift per step, (B, 1, C). ``None`` where there is none. The shift is
        then that of the first step after an input chunk.
    season
        What is added to the shift at each step of a season, (B, Q, C), over and over from
        the first step after an input chunk on. ``None`` where there is none.
    """

    shift: Tensor
    spread: Tensor
    slope: Tensor | None = None
    season: Tensor | None = None

    def normalise(self, x: Tensor, first: int = 0) -> Tensor:
        """Map data to normalised values.

        Parameters
        ----------
        x
            Data, (..., B, T, C).
        first
            The first of their steps, counted from the first one after the input chunk.
        """
        return (x - self.shift_along(x.shape[-2], first)) / self.spread

    def to_data(self, x: Tensor, first: int = 0) -> Tensor:
        """Map normalised values to data, as :meth:`normalise` maps them back."""
        return x * self.spread + self.shift_along(x.shape[-2], first)

    def shift_along(self, num_steps: int, first: int = 0) -> Tensor:
        """Return the shift at each of T steps: (B, T, C), or what is the same for all.

        Parameters
        ----------
        num_steps
            Number T of the steps.
        first
            The first of them, as for :meth:`normalise`.
        """
        shift = self.shift
        steps = torch.arange(first, first + num_steps, device=shift.device)
        if self.slope is not None:
            # (B, 1, C) and (T, 1) -> (B, T, C)
            shift = shift + self.slope * steps.to(shift.dtype).unsqueeze(-1)
        if self.season is not None:
            # (B, Q, C) -> (B, T, C)
            shift = shift + self.season[:, steps % self.season.shape[1]]
        return shift

    def later(self, num_steps: int) -> "Scale":
        """Return the same scale, its shift counted from so many steps later on."""
        shift = self.shift
        if self.slope is not None:
            shift = shift + num_steps * self.slope
        season = None if self.season is None else self.season.roll(-num_steps, dims=1)
        return Scale(shift, self.spread, self.slope, season)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Scale":
        """Return the scale of what a function makes of each part."""
        slope, season = (
            None if part is None else function(part) for part in (self.slope, self.season)
        )
        return Scale(function(self.shift), function(self.spread), slope, season)

    def repeat(self, num_samples: int) -> "Scale":
        """Return S copies of the scales of B series, sample by sample: (S * B, ...)."""
        return self.map(lambda part: part.repeat(num_samples, 1, 1))

    def detach(self) -> "Scale":
        """Return the same scale, from which nothing is learned."""
        return self.map(Tensor.detach)

    @classmethod
    def unit(cls) -> "Scale":
        """Return the scale that leaves values as they are."""
        return cls(torch.tensor(0.0), torch.tensor(1.0))


class CovariateScale(NamedTuple):
    """The map from covariates of a kind to inputs near zero with a spread near one.

    Nothing is learned of values that the training set does not have. Those beyond its range
    are taken for the nearest one within, and a covariate that leaves its range as time goes
    on is seen relative to its mean in the input chunk.

    Attributes
    ----------
    shift, spread
        Mean and spread of each covariate, (F,).
    low, high
        Range of its normalised values, (F,).
    is_local
        Whether the mean of the input chunk takes the place of ``shift``, (F,).
    input_length
        Steps I of an input chunk.
    """

    shift: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor
    is_local: Tensor
    input_length: int = 1

    def normalise(self, x: Tensor, chunk: Tensor | None = None) -> Tensor:
        """Map covariates to inputs.

        Parameters
        ----------
        x
            Covariates, NaN where unknown, (B, T, F).
        chunk
            The covariates of the past, (B, I or more, F), which begin with the input chunk.
            ``None`` for static ones. Where it has no value, a local covariate is unknown.
        """
        shift = self.shift
        if chunk is not None:
            level = chunk[:, : self.input_length].nanmean(1, keepdim=True)
            shift = torch.where(self.is_local, level, shift)
        # what is unknown stays so
        return ((x - shift) / self.spread).clamp(self.low, self.high)

    @classmethod
    def unit(cls, size: int = 1, input_length: int = 1) -> "CovariateScale":
        """Return the scale that leaves so many covariates as they are."""
        zeros, ones = torch.zeros(size), torch.ones(size)
        bound = torch.full((size,), torch.inf)
        return cls(zeros, ones, -bound, bound, zeros.bool(), input_length)


class TrainingScales(NamedTuple):
    """Scales of a training set.

    Attributes
    ----------
    target
        Of the C components.
    past, future, static
        Of the covariates of each kind, those of all components joined.
    """

    target: Scale
    past: CovariateScale
    future: CovariateScale
    static: CovariateScale


class InstanceFloor(NamedTuple):
    """What an input chunk is divided by at least, so that a constant one is a scale.

    Attributes
    ----------
    spread
        In units of the data, (C,).
    ratio
        Of a constant chunk, in terms of the constant, (C,).
    zeros
        Of a chunk of zeros alone, in units of the data, (C,).
    """

    spread: Tensor
    ratio: Tensor
    zeros: Tensor

    def apply(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return what chunks of such moments, (..., C) each, are divided by."""
        level = mean.hypot(std)
        of_level = is_constant(level, std) * self.ratio * level
        least = torch.where(level > 0, self.spread, self.zeros)
        return std.maximum(least).maximum(of_level)


class LocalPattern(NamedTuple):
    """Which last values of an input chunk tell its level, its trend and its season.

    Attributes
    ----------
    level_steps
        Number of the last steps, the mean of whose observed values is the level.
    trend_values
        Number of the last observed values whose mean, less that of as many before them, is
        the trend. 0 where there is none.
    trend_share
        Share of this trend that goes on.
    season_length
        Number Q of the steps of a season. 0 where there is none.
    season_cycles
        Number V of the last seasons whose mean is the season that goes on.
    """

    level_steps: int
    trend_values: int = 0
    trend_share: float = 0.0
    season_length: int = 0
    season_cycles: int = 0


class LocalMoments(NamedTuple):
    """What the observed values of input chunks say, (B, 1, C) each.

    Attributes
    ----------
    level
        The level of the first step after the chunk, by its trend.
    slope
        Change of the level per step.
    season
        What is added to the level at each step of a season, (B, Q, C), from the first step
        after the chunk on. ``None`` where the chunk has none.
    mean
        Mean of the values.
    std
        Standard deviation of the values around their trend, season and all.
    num_values
        Number of values. Where it is 0, so is all else.
    """

    level: Tensor
    slope: Tensor
    season: Tensor | None
    mean: Tensor
    std: Tensor
    num_values: Tensor


def season_of(x: Tensor, observed: Tensor, length: int, num_cycles: int) -> Tensor:
    """Take the season of input chunks: the mean of their last cycles around their growth.

    Each cycle has a level of its own, and levels grow along a line. Levels and season are
    fitted in turns, which tells them apart where values are missing.

    Parameters
    ----------
    x, observed
        Values, any finite number where missing, and flags of the chunks, (B, T, C).
    length
        Number Q of the steps of a season.
    num_cycles
        Number V of the last cycles.

    Returns
    -------
    Tensor
        Deviations from the level, from the first step after the chunk on, (B, Q, C). Their
        mean is zero, and so is what is nowhere observed.
    """
    # a past that is shorter begins with missing values
    before = max(num_cycles * length - x.shape[1], 0)
    values, known = (
        nn.functional.pad(part[:, -num_cycles * length :], (0, 0, before, 0))
        # (B, V * Q, C) -> (B, V, Q, C)
        .unflatten(1, (num_cycles, length))
        for part in (x, observed)
    )

    def mean_along(axis: int, part: Tensor, known: Tensor) -> Tensor:
        count = known.sum(axis, keepdim=True).clamp(min=1)
        return (part * known).sum(axis, keepdim=True) / count

    # times in cycles: of each cycle, (V,) -> (V, 1, 1), and within one, (Q,) -> (Q, 1)
    cycles = torch.arange(num_cycles, dtype=x.dtype, device=x.device).view(-1, 1, 1)
    steps = torch.arange(length, dtype=x.dtype, device=x.device).unsqueeze(-1)
    steps = (steps - (length - 1) / 2) / length
    has_level = known.amax(2, keepdim=True)
    cycles = (cycles - mean_along(1, cycles, has_level)) * has_level
    squares = cycles.square().sum(1, keepdim=True)
    squares = torch.where(squares > 0, squares, 1.0)
    season = torch.zeros_like(values[:, :1])
    for _ in range(SEASON_PASSES):
        level = mean_along(2, values - season, known)
        growth = (cycles * level).sum(1, keepdim=True) / squares
        season = mean_along(1, values - level - growth * steps, known)
        season = season - season.mean(2, keepdim=True)
    # (B, 1, Q, C) -> (B, Q, C)
    return season.squeeze(1)


def without_season(
    x: Tensor, observed: Tensor, pattern: LocalPattern
) -> tuple[Tensor, Tensor | None]:
    """Take the season out of input chunks.

    Parameters
    ----------
    x, observed
        As for :func:`season_of`.
    pattern
        Which of the values tell the season.

    Returns
    -------
    rest
        Values without it, (B, T, C).
    season
        The season, (B, Q, C), ``None`` where there is none.
    """
    length = pattern.season_length
    if length == 0:
        return x, None
    season = season_of(x, observed, length, pattern.season_cycles)
    steps = torch.arange(-x.shape[1], 0, device=x.device)
    return x - season[:, steps % length], season


def level_and_slope(
    x: Tensor, observed: Tensor, local_pattern: LocalPattern
) -> tuple[Tensor, Tensor]:
    """Take level and trend of input chunks.

    Parameters
    ----------
    x, observed
        Values, any finite number where missing, and flags of the chunks, (B, T, C).
    local_pattern
        Which values tell level and trend. Where nothing is observed at the last steps, the
        last values before them tell the level. Of too few values there is no trend.

    Returns
    -------
    level
        The level of the first step after the chunk, by its trend, (B, 1, C).
    slope
        Change of the level per step, (B, 1, C).
    """
    num_steps = x.shape[1]
    # the first step after the chunk is at 0
    time = torch.arange(-num_steps, 0, dtype=x.dtype, device=x.device).unsqueeze(-1)
    # number of the observed values from a step on, 1 at the last one
    number = observed.flip(1).cumsum(1, dtype=torch.int32).flip(1)

    def means(chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Means of the observed ones of some values, and of their times."""
        chosen = observed * chosen
        count = chosen.sum(1, keepdim=True).clamp(min=1)
        mean, centre = ((part * chosen).sum(1, keepdim=True) / count for part in (x, time))
        return mean, centre

    recent = time >= -local_pattern.level_steps
    is_observed = (observed * recent).sum(1, keepdim=True) > 0
    last_values = number <= local_pattern.level_steps
    level, centre = means(torch.where(is_observed, recent, last_values))
    size = local_pattern.trend_values
    if size == 0:
        return level, torch.zeros_like(level)
    late, late_centre = means(number <= size)
    early, early_centre = means((number > size) & (number <= 2 * size))
    is_known = number.amax(1, keepdim=True) > size
    duration = torch.where(is_known, late_centre - early_centre, 1.0)
    change = torch.where(is_known, late - early, 0.0)
    slope = local_pattern.trend_share * change / duration
    return level - slope * centre, slope


def local_moments(x: Tensor, observed: Tensor, local_pattern: LocalPattern) -> LocalMoments:
    """Take level, trend, season and spread of input chunks.

    Parameters
    ----------
    x, observed, local_pattern
        As for :func:`level_and_slope`.
    """
    rest, season = without_season(x, observed, local_pattern)
    level, slope = level_and_slope(rest, observed, local_pattern)
    num_values = observed.sum(1, keepdim=True)

    def mean_of(values: Tensor) -> Tensor:
        return (values * observed).sum(1, keepdim=True) / num_values.clamp(min=1)

    without_trend = x
    if local_pattern.trend_values > 0:
        steps = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)
        without_trend = x - slope * steps.unsqueeze(-1)
    # what is missing may have a square that overflows
    deviation = (without_trend - mean_of(without_trend)) * observed
    std = mean_of(deviation.square()).sqrt()
    return LocalMoments(level, slope, season, mean_of(x), std, num_values)


def affine_weight(rin: RINorm) -> Tensor:
    """What an affine instance normalisation multiplies values by, (C,)."""
    return rin.affine_weight.abs() + rin.eps


def local_scale(
    x: Tensor,
    observed: Tensor,
    scale: Scale,
    floor: InstanceFloor,
    local_pattern: LocalPattern,
) -> Scale:
    """Scale of each series by the observed values of its input chunk.

    The level is the mean of its last steps, as many as tell most of what follows: the last
    value of a random walk, the last season of a seasonal series. A trend that goes on is
    taken out, and so is a season. The spread is that of all values around the trend, season
    and all: with a season that grows, the errors grow too.

    Parameters
    ----------
    x, observed
        Values and flags of the input chunk, (B, T, C).
    scale
        The scale of a component that is nowhere observed there.
    floor
        Least spread of a chunk.
    local_pattern
        Which of the values tell level, trend and season.
    """
    # in a unit in which squares do not overflow
    local = local_moments(x / scale.spread, observed, local_pattern)
    has_values = local.num_values > 0
    std = floor.apply(local.mean * scale.spread, local.std * scale.spread)
    std = torch.where(has_values, std, scale.spread)
    level = torch.where(has_values, local.level * scale.spread, scale.shift)
    slope = local.slope * scale.spread if local_pattern.trend_values > 0 else None
    season = None if local.season is None else local.season * scale.spread
    if season is not None and scale.season is not None:
        season = torch.where(has_values, season, scale.season)
    return Scale(level, std, slope, season)


def instance_scale(
    rin: RINorm,
    x: Tensor,
    observed: Tensor,
    scale: Scale,
    floor: InstanceFloor,
    local_pattern: LocalPattern,
) -> Scale:
    """Scale of each series by its input chunk, and by the affine map if there is one.

    Parameters
    ----------
    rin
        darts' module, whose affine parameters are used.
    x, observed, scale, floor, local_pattern
        As for :func:`local_scale`.
    """
    own = local_scale(x, observed, scale, floor, local_pattern)
    if not rin.affine:
        return own
    # x' = (x - mean) / std * |weight| + bias
    spread = own.spread / affine_weight(rin)
    return own._replace(shift=own.shift - rin.affine_bias * spread, spread=spread)


def moved_scale(
    rin: RINorm,
    x: Tensor,
    observed: Tensor,
    scale: Scale,
    floor: InstanceFloor,
    local_pattern: LocalPattern,
) -> Scale:
    """Move a scale to the level and the spread of paths that began with it.

    Trend and season stay those of what was observed: taken from paths, again and again,
    they would grow beyond all bounds. So would the spread, which is bounded. It stays where
    there is a trend: around a trend that is not the path's own it says little.

    Parameters
    ----------
    rin, x, observed, floor, local_pattern
        As for :func:`instance_scale`, of the last steps of the paths.
    scale
        The scale of what the paths began with, its shift counted from the end of ``x`` on.
    """
    rest = x - scale.shift_along(x.shape[1], -x.shape[1])
    level_alone, spread = LocalPattern(local_pattern.level_steps), scale.spread
    level, _ = level_and_slope(rest, observed, level_alone)
    if scale.slope is None:
        own = instance_scale(rin, x, observed, scale, floor, level_alone)
        spread = own.spread.clamp(
            spread / MAX_CHANGE_OF_SPREAD, spread * MAX_CHANGE_OF_SPREAD
        )
    if rin.affine:
        level = level - rin.affine_bias * spread
    return scale._replace(shift=scale.shift + level, spread=spread)
