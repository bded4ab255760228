r"""
Cross-validation of simple forecasts: which noise and which length suit a training.

A training set of a few series has few windows that differ, and a network soon knows them
by heart: its forecasts become too sure of themselves. Noise on the input keeps it from
telling them apart. For a linear forecast, noise of standard deviation :math:`\tau` on N
windows is a ridge penalty of :math:`N \tau^2` [1]_. Which penalty suits a series can then
be computed in closed form: next to none for a series that repeats itself exactly, a high
one where the past hardly tells what follows.

The errors tell more. Nearest neighbours forecast dynamics that are not linear. Where
neither they nor the best penalty are far ahead of the highest one, there is little in the
past that a long training could find, and much to be learned by heart.

Of several components a network sees all at once. It tells windows apart more easily, the
more there are, and what one component says of another is often less than it seems. Their
noise is that of a linear forecast of all components from all of them.

Covariates have a penalty of their own, and so a noise of their own. But where their effect
is far from linear, which steps of like covariates show, noise would hide it.

Letters as in :mod:`darts_ddssm.ssm`.

References
----------
.. [1] C. Bishop, "Training with Noise is Equivalent to Tikhonov Regularization",
       Neural Computation 7, 1995.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from darts import TimeSeries
from torch import Tensor

from darts_ddssm.estimator.covariates import (
    MAX_ROWS,
    TrainingCovariates,
    share_apart,
)
from darts_ddssm.estimator.windows import ChunkLengths, windows_of, with_flags
from darts_ddssm.series.scaling import (
    InstanceFloor,
    LocalPattern,
    Scale,
    local_moments,
)

# Standard deviations to choose from, in units of normalised values.
NOISE_LEVELS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 1.0, 1.5, 2.0)

# What is chosen where there are too few windows to choose by.
DEFAULT_LEVEL = 0.45

# The share of the chosen level that a network is trained under. Under all of it a network,
# which learns the linear part of a forecast first, would learn little else. Of C components
# it is sqrt(C) times as much: so much farther apart are windows.
SHARE_OF_LEVEL = 0.2

# Of all levels whose error is within this share of the least one the lowest is taken: the
# draws of the posterior are some noise already.
TOLERANCE = 0.01

# Each of so many parts of the series is forecast from the others.
NUM_FOLDS = 5

# The most windows that are compared, and the most values of an input chunk that a linear
# forecast sees, the last ones.
MAX_WINDOWS, MAX_INPUTS = 4000, 512

# The most values that all windows have, with those of the covariates beside each component:
# a quarter of a gigabyte, of which there are a few copies at a time. Of large windows there
# are fewer, but no fewer than the second number.
MAX_VALUES, MIN_WINDOWS = 30_000_000, 300

# Up to so many training windows, sqrt(C) times as many of C components, the level is the
# chosen one. Of more windows a network learns less by heart: from there on the level is
# inverse to their number.
WINDOWS_OF_FULL_NOISE = 100

# The past tells of the future where the forecast under the highest level is off by so many
# times what the best one is, at least.
LEAST_GAIN = 1.25

# A series whose level is its last value is a walk where a linear forecast under the best
# penalty is better than under the highest one, that is by the level, by less than this.
MAX_GAIN_OF_WALK = 1.1

# Series are no walks, either, where forecasts by nearest neighbours are off by so many
# times as much once mirror images are among these. Of fewer series than the second number
# it would be a matter of chance.
MAX_ASYMMETRY, ENOUGH_SERIES = 1.1, 10

# A linear forecast needs no penalty where the lowest one costs no more than this, in the
# logarithm of the error.
MAX_LOSS_WITHOUT_PENALTY = 0.05

# How many neighbours make a forecast, and by how many of the last values they are near.
NUM_NEIGHBOURS, NUM_LAST = 10, 3

# Covariates have the highest level whose error is within this share of the least one: by
# them a network tells windows apart more easily than a linear forecast does. It is at most
# the second number, since effects need not be linear, or the third one where
# covariates make no linear forecast better.
COVARIATE_TOLERANCE, MAX_COVARIATE_LEVEL, MAX_IDLE_LEVEL = 0.05, 0.3, 1.0

# Where the error with covariates is at most this share of that without, they tell nearly
# all of what follows, and noise would hide it.
SHARE_EXPLAINED = 0.4

# Covariates tell windows apart where the nearest other window is this share of the typical
# distance away, at least. A calendar comes round.
LEAST_APART = 0.25


# What covariates of whole windows must be worth to be looked at for delayed effects, in the
# logarithm of the error.
LEAST_GAIN_OF_LAGS = 0.05


class ForecastErrors(NamedTuple):
    """Errors of forecasts of held-out windows.

    Each is the logarithm of the mean absolute error, averaged over the steps of the output
    chunk: each step counts the same, however uncertain it is.

    Attributes
    ----------
    linear
        Of a ridge regression under the penalty of each of ``NOISE_LEVELS``.
    neighbours
        Of the mean of what followed the nearest neighbours, a scalar.
    joint
        Of a ridge regression of all components from all of them, as ``linear``, which it is
        where there is one component.
    with_covariates
        Of a ridge regression on the covariates of the window too, under the best penalty
        of the past and that of each of ``NOISE_LEVELS`` of the covariates. ``None`` where
        there are none.
    covariate_neighbours
        Of the mean of the steps whose future covariates are nearest, a scalar. ``None``
        where there are none.
    apart
        How far away the nearest other window is by its covariates, as a share of the
        typical distance. ``None`` where there are none.
    """

    linear: Tensor
    neighbours: Tensor
    joint: Tensor
    with_covariates: Tensor | None = None
    covariate_neighbours: Tensor | None = None
    apart: float | None = None


class _Rows(NamedTuple):
    """Windows of all series, N in all.

    Attributes
    ----------
    x, y
        Input and output chunks, (N, C, I) and (N, C, n).
    covariates
        Past and future covariates of the windows, (N, K).
    ahead
        Future covariates of each step of the output chunk, (N, n, F).
    """

    x: Tensor
    y: Tensor
    covariates: Tensor
    ahead: Tensor

    def at(self, chosen: Tensor) -> "_Rows":
        """Return some of the windows."""
        return _Rows(*(part[chosen] for part in self))

    def by_component(self) -> "_Rows":
        """Return a row for each component of each window: N * C rows without an axis C."""
        # (N, C, ...) -> (N * C, ...)
        chunks = (part.flatten(0, 1) for part in (self.x, self.y))
        # the same for each component: (N, ...) -> (N * C, ...)
        num_components = self.x.shape[1]
        repeated = (
            part.repeat_interleave(num_components, dim=0)
            for part in (self.covariates, self.ahead)
        )
        return _Rows(*chunks, *repeated)


def forecast_errors(
    series: Sequence[TimeSeries],
    lengths: ChunkLengths,
    scale: Scale,
    floor: InstanceFloor,
    local_pattern: LocalPattern | None,
    covariates: TrainingCovariates | None = None,
) -> ForecastErrors | None:
    """Return the errors of forecasts of the training series by cross-validation.

    Each component is forecast from its own input chunk, in the same way for all components
    and series, and once all from all of them. A part of all series is held out at a time.
    Windows whose output chunk overlaps those of that part are left out.

    Parameters
    ----------
    series
        The training series. Gaps are filled by interpolation.
    lengths
        Steps of the parts of a window.
    scale
        The scale of the training set.
    floor
        The least spread of an input chunk.
    local_pattern
        Which last values of an input chunk tell its level and its trend, if each window is
        normalised by its own.
    covariates
        Covariates of the series, if there are any.

    Returns
    -------
    ForecastErrors
        The errors. ``None`` where there are too few windows.
    """
    found = _rows_of(series, lengths, scale, floor, local_pattern, covariates)
    if found is None:
        return None
    linear, neighbours, joint = _mean_of_folds(*found, _errors_by_past)
    if not linear.isfinite().all():
        return None
    errors = ForecastErrors(linear, neighbours, joint)
    if covariates is None:
        return errors
    best = NOISE_LEVELS[int(linear.argmin())]
    of_covariates = partial(_errors_by_covariates, level=best)
    by_past_too, *by_ahead = _mean_of_folds(*found, of_covariates)
    return errors._replace(
        with_covariates=by_past_too,
        covariate_neighbours=by_ahead[0] if by_ahead else None,
        apart=share_apart(covariates),
    )


def mirror_images_mislead(
    series: Sequence[TimeSeries],
    lengths: ChunkLengths,
    scale: Scale,
    floor: InstanceFloor,
    local_pattern: LocalPattern,
) -> bool:
    """Tell whether series rise in another way than they fall.

    So do the sales of products that come and go. Forecasts by the nearest neighbours are
    then worse once the mirror images of all windows are among these. Of a few series it
    would be a matter of chance.

    Parameters
    ----------
    series, lengths, scale, floor, local_pattern
        As for :func:`forecast_errors`.
    """
    if len(series) < ENOUGH_SERIES:
        return False
    found = _rows_of(series, lengths, scale, floor, local_pattern)
    if found is None:
        return False
    own, with_images = _mean_of_folds(*found, _errors_by_mirror_images)
    return bool(with_images - own > math.log(MAX_ASYMMETRY))


def automatic_input_noise(
    errors: ForecastErrors | None, num_windows: int, num_components: int
) -> float:
    """Return a share of the noise whose ridge penalty forecasts the training series best.

    Parameters
    ----------
    errors
        Result of :func:`forecast_errors`.
    num_windows, num_components
        Numbers of windows and of components of the training set.

    Returns
    -------
    float
        Standard deviation of the noise, in units of normalised values.
    """
    apart = math.sqrt(num_components)
    share = SHARE_OF_LEVEL * apart * min(WINDOWS_OF_FULL_NOISE * apart / num_windows, 1.0)
    if errors is None:
        return share * DEFAULT_LEVEL
    best = int((errors.joint <= errors.joint.min() + TOLERANCE).nonzero().min())
    return share * NOISE_LEVELS[best]


def automatic_covariate_noise(errors: ForecastErrors | None) -> float:
    """Return the noise on covariates whose ridge penalty suits the training series.

    There is none where covariates come round, so that no window is known by them. It is the
    lowest where covariates tell nearly all of what follows, and where steps are alike whose
    covariates are, which a linear forecast does not see.

    Parameters
    ----------
    errors
        Result of :func:`forecast_errors`.

    Returns
    -------
    float
        Standard deviation of the noise, in units of normalised values. 0 where there are
        no covariates.
    """
    if errors is None or errors.with_covariates is None or errors.apart is None:
        return 0.0
    if errors.apart < LEAST_APART:
        return 0.0
    least, neighbours = errors.with_covariates.min(), errors.covariate_neighbours
    gain = errors.linear.min() - least
    tells_all = gain >= -math.log(SHARE_EXPLAINED)
    if tells_all or (neighbours is not None and neighbours < least):
        return NOISE_LEVELS[0]
    is_good = errors.with_covariates <= least + COVARIATE_TOLERANCE
    highest = MAX_COVARIATE_LEVEL if gain > 0 else MAX_IDLE_LEVEL
    return min(NOISE_LEVELS[int(is_good.nonzero().max())], highest)


def may_be_delayed(errors: ForecastErrors | None) -> bool:
    """Tell whether covariates of some steps ago may say what follows.

    They may where a linear forecast by the covariates of whole windows is clearly better
    than one by the past alone. Not where covariates come round, so that what they were some
    steps ago is nothing new, nor where steps are alike whose covariates are: that is an
    effect at once, and all others would be learned by heart.

    Parameters
    ----------
    errors
        Result of :func:`forecast_errors`.
    """
    if errors is None or errors.with_covariates is None or errors.apart is None:
        return False
    least, neighbours = errors.with_covariates.min(), errors.covariate_neighbours
    gains = bool(errors.linear.min() - least > LEAST_GAIN_OF_LAGS)
    at_once = neighbours is not None and bool(neighbours < least)
    return gains and not at_once and errors.apart >= LEAST_APART


def is_predictable(errors: ForecastErrors | None) -> bool:
    """Tell whether the past says much of what follows.

    Parameters
    ----------
    errors
        Result of :func:`forecast_errors`.
    """
    if errors is None:
        return True
    least = errors.linear.min().minimum(errors.neighbours).minimum(errors.joint.min())
    return bool(errors.linear[-1] - least >= math.log(LEAST_GAIN))


def may_be_walk(errors: ForecastErrors | None) -> bool:
    """Tell whether the past says next to nothing of what follows but its level.

    Not where that is unknown. A season that an input chunk holds once is no walk, though
    the last value is its level: what is before it tells where in the season it is.

    Parameters
    ----------
    errors
        Result of :func:`forecast_errors`.
    """
    if errors is None:
        return False
    gain = errors.linear[-1] - errors.linear.min()
    return bool(gain < math.log(MAX_GAIN_OF_WALK))


def each_step_tells(errors: ForecastErrors | None) -> bool:
    """Tell whether each step of the windows says something new.

    So it does where the past says much of what follows, and where a linear forecast is as
    good without a penalty. Else a few windows of noise are soon known by heart.

    Parameters
    ----------
    errors
        Result of :func:`forecast_errors`.
    """
    if errors is None or is_predictable(errors):
        return True
    loss = errors.linear[0] - errors.linear.min()
    return bool(loss <= MAX_LOSS_WITHOUT_PENALTY)


def _rows_of(
    series: Sequence[TimeSeries],
    lengths: ChunkLengths,
    scale: Scale,
    floor: InstanceFloor,
    local_pattern: LocalPattern | None,
    covariates: TrainingCovariates | None = None,
) -> tuple[_Rows, list[tuple[Tensor, Tensor]]] | None:
    """Return the windows of all series, and which are trained on and held out in a fold.

    Parameters
    ----------
    series, lengths, scale, floor, local_pattern, covariates
        As for :func:`forecast_errors`.

    Returns
    -------
    rows
        The normalised windows.
    folds
        Whether a window is trained on, and held out, twice (N,), in each fold. ``None``
        in place of both where there are no windows, or too few for a fold.
    """
    length = lengths.window
    limit = _most_windows(series, length, covariates)
    # one of each series at least, so that very many series are too many
    some = range(0, len(series), math.ceil(max(len(series), 1) / limit))
    kept = [i for i in some if len(series[i]) >= length]
    filled = [_filled(series[i]) for i in some]
    parts = windows_of(filled, length, max_windows=min(limit, MAX_WINDOWS))
    found: list[tuple[Tensor, ...]] = []
    trains, helds = [], []
    for i, windows in zip(kept, parts, strict=True):
        past, ahead = windows.x[: lengths.input], windows.x[-lengths.output :]
        own = scale
        if local_pattern is not None:
            local = local_moments(*with_flags(past), local_pattern)
            spread = floor.apply(local.mean, local.std)
            own = Scale(local.level, spread, local.slope, local.season)
        # (T, N, C) -> (N, T, C) -> (N, C, T)
        x, y = (
            own.normalise(part.transpose(0, 1), first).mT
            for part, first in ((past, -lengths.input), (ahead, lengths.gap))
        )
        none = windows.x.new_zeros(len(windows.starts), 0)
        of_windows = none, none
        if covariates is not None:
            of_windows = covariates.windows(i, windows.starts)
        train, held = _folds(windows.starts, lengths.output, len(found))
        found.append((x[..., -MAX_INPUTS:], y, *of_windows))
        trains.append(train)
        helds.append(held)
    if not found:
        return None
    folds = [
        (train, held)
        for train, held in zip(torch.cat(trains, 1), torch.cat(helds, 1), strict=True)
        if train.any() and held.any()
    ]
    if not folds:
        return None
    return _Rows(*(torch.cat(each) for each in zip(*found, strict=True))), folds


def _most_windows(
    series: Sequence[TimeSeries], length: int, covariates: TrainingCovariates | None
) -> int:
    """Return the number of windows of a length, with covariates, that fit in the memory."""
    first = next((i for i, one in enumerate(series) if len(one) >= length), None)
    if first is None:
        return MIN_WINDOWS
    beside, before = 0, 0
    if covariates is not None:
        of_window = covariates.windows(first, torch.tensor([0]))
        beside = sum(part.numel() for part in of_window)
        # before the last ones are taken
        given = (each for each in (covariates.past, covariates.future) if each is not None)
        before = length * sum(each[first].n_components for each in given)
    num_values = series[first].n_components * (length + beside) + before
    return max(MAX_VALUES // num_values, MIN_WINDOWS)


def _filled(series: TimeSeries) -> TimeSeries:
    """Fill the gaps of a series by interpolation, 0 where it has no value at all."""
    values = series.all_values(copy=False).mean(-1)
    if not np.isnan(values).any():
        return series
    filled = pd.DataFrame(values).interpolate(limit_direction="both").fillna(0.0)
    return TimeSeries.from_values(filled.to_numpy())


def _mean_of_folds(
    rows: _Rows,
    folds: list[tuple[Tensor, Tensor]],
    errors: Callable[[_Rows, _Rows], tuple[Tensor, ...]],
) -> list[Tensor]:
    """Mean over the folds of each error of windows that are held out.

    Parameters
    ----------
    rows, folds
        Result of :func:`_rows_of`.
    errors
        Function of the windows that are trained on, and of those that are held out.
    """
    # there are copies of one fold at a time
    of_folds = [errors(rows.at(train), rows.at(held)) for train, held in folds]
    return [torch.stack(each).mean(0) for each in zip(*of_folds, strict=True)]


def _folds(starts: Tensor, output_length: int, number: int = 0) -> tuple[Tensor, Tensor]:
    """Split the windows of a series into parts of its time.

    A series of too few windows, or whose windows overlap so much that nothing would be left
    to train on, is in one fold as a whole.

    Parameters
    ----------
    starts
        Where the windows start in the series, (N,).
    output_length
        Steps of an output chunk.
    number
        Number of the series.

    Returns
    -------
    train, held
        Whether a window is trained on, or held out, in each fold, (folds, N).
    """
    # the same share of each series is held out at a time
    fold = (NUM_FOLDS * torch.arange(len(starts))) // len(starts)
    # the first fold, and a gap of an output chunk after it
    least = output_length * NUM_FOLDS / (NUM_FOLDS - 1)
    if len(starts) < NUM_FOLDS or starts[-1] - starts[0] < least:
        fold = torch.full_like(starts, number % NUM_FOLDS)
    held = fold == torch.arange(NUM_FOLDS).unsqueeze(-1)
    train = torch.empty_like(held)
    for i in range(NUM_FOLDS):
        own = starts[held[i]]
        if len(own) == 0:
            train[i] = True
            continue
        first, last = own.min() - output_length, own.max() + output_length
        train[i] = (starts <= first) | (starts >= last)
    return train, held


def _ridge_errors(x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor) -> Tensor:
    """Error of a ridge regression under the penalty of each level.

    Parameters
    ----------
    x, y
        Inputs and outputs that are trained on, (N, I) and (N, n), or (N, C, n) for the
        outputs of several components.
    x_held, y_held
        Inputs and outputs that are held out.
    """
    centre_x, centre_y = x.mean(0), y.mean(0)
    # (N, C, n) -> (N, C * n)
    x, y = x - centre_x, (y - centre_y).flatten(1)
    # one decomposition for the penalties of all levels
    values, vectors = torch.linalg.eigh(x.T @ x)
    products = vectors.T @ (x.T @ y)
    projected = (x_held - centre_x) @ vectors
    errors = []
    for level in NOISE_LEVELS:
        shrunk = products / (values.clamp(min=0.0) + len(x) * level**2).unsqueeze(-1)
        forecast = (projected @ shrunk).view_as(y_held) + centre_y
        # (N, C, n) -> (N * C, n)
        distance = (forecast - y_held).abs().flatten(0, -2)
        errors.append(distance.mean(0).log().mean())
    return torch.stack(errors)


def _errors_by_past(train: _Rows, held: _Rows) -> tuple[Tensor, ...]:
    """Errors that do not depend on covariates, in the order of `ForecastErrors`."""
    rows, rows_held = train.by_component(), held.by_component()
    linear = _ridge_errors(rows.x, rows.y, rows_held.x, rows_held.y)
    several = train.x.shape[1] > 1
    joint = _joint_ridge_errors(train, held) if several else linear
    return linear, _neighbours_error(rows, rows_held), joint


def _errors_by_mirror_images(train: _Rows, held: _Rows) -> tuple[Tensor, ...]:
    """Errors by nearest neighbours, by all of their values, without and with the images."""
    rows, rows_held = train.by_component(), held.by_component()
    step = math.ceil(2 * len(rows.x) / MAX_ROWS)
    x, y = rows.x[::step], rows.y[::step]
    mirrored = torch.cat([x, -x]), torch.cat([y, -y])
    both = (x, y), mirrored
    return tuple(_error_by_nearest(*each, rows_held.x, rows_held.y) for each in both)


def _errors_by_covariates(train: _Rows, held: _Rows, level: float) -> tuple[Tensor, ...]:
    """Errors that are ``with_covariates`` and, of future ones, ``covariate_neighbours``."""
    rows = train.by_component(), held.by_component()
    errors = _covariate_ridge_errors(*rows, level=level)
    if train.ahead.shape[-1] == 0:
        return (errors,)
    return errors, _covariate_neighbours_error(*rows)


def _joint_ridge_errors(train: _Rows, held: _Rows) -> Tensor:
    """Error of a ridge regression of all components from all, under each penalty.

    Parameters
    ----------
    train, held
        Windows that are trained on, and held out, of (N, C, I) and (N, C, n) values.
    """
    num_components = train.x.shape[1]
    # the last steps of all components, or of some where there are very many
    last = max(MAX_INPUTS // num_components, 1)
    step = math.ceil(num_components / MAX_INPUTS)
    x, x_held = (rows.x[:, ::step, -last:].flatten(1) for rows in (train, held))
    return _ridge_errors(x, train.y, x_held, held.y)


def _covariate_ridge_errors(train: _Rows, held: _Rows, level: float) -> Tensor:
    """Error of a ridge regression on covariates too, under the penalty of each level.

    Parameters
    ----------
    train, held
        Windows that are trained on, and held out.
    level
        Level of the noise on the past.
    """
    errors = []
    for own in NOISE_LEVELS:
        # in this unit both have one penalty
        x, x_held = (
            torch.cat([rows.x, rows.covariates * (level / own)], dim=1)
            for rows in (train, held)
        )
        centre_x, centre_y = x.mean(0), train.y.mean(0)
        x, y = x - centre_x, train.y - centre_y
        products = x.T @ x + len(x) * level**2 * torch.eye(x.shape[1], dtype=x.dtype)
        weights = torch.linalg.solve(products, x.T @ y)
        forecast = (x_held - centre_x) @ weights + centre_y
        errors.append((forecast - held.y).abs().mean(0).log().mean())
    return torch.stack(errors)


def _neighbours_error(train: _Rows, held: _Rows) -> Tensor:
    """Error of the mean of what followed those inputs whose last values are nearest."""
    return _error_by_nearest(train.x[:, -NUM_LAST:], train.y, held.x[:, -NUM_LAST:], held.y)


def _covariate_neighbours_error(train: _Rows, held: _Rows) -> Tensor:
    """Error of the mean of those steps whose future covariates are nearest."""
    parts = []
    for rows in (train, held):
        # (N, n, F) -> (N * n, F) and (N, n) -> (N * n, 1)
        parts += [rows.ahead.flatten(0, 1), rows.y.flatten().unsqueeze(-1)]
    return _error_by_nearest(*parts)


def _error_by_nearest(x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor) -> Tensor:
    """Error of the mean of what belongs to the nearest inputs.

    Parameters
    ----------
    x, y, x_held, y_held
        As for :func:`_ridge_errors`. Some rows, evenly spaced, stand for all.
    """
    x, y, x_held, y_held = (
        part[:: math.ceil(len(part) / MAX_ROWS)] for part in (x, y, x_held, y_held)
    )
    distances = torch.cdist(x_held, x)
    nearest = distances.topk(min(NUM_NEIGHBOURS, len(x)), largest=False).indices
    # (N', neighbours, n) -> (N', n)
    forecast = y[nearest].mean(1)
    return (forecast - y_held).abs().mean(0).log().mean()
