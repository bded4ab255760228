r"""
Scores that darts lacks: of a joint forecast, and against a known density.

`energy_score` is a darts metric and goes where these go, `backtest(metric=...)`
included, but for `residuals`. `jensen_shannon_divergence` compares samples with a density
that is known, as it is for the series of `darts_ddssm.datasets`.

Letters: T steps, C components, S samples, K bins.
"""

from collections.abc import Callable
from math import isfinite
from numbers import Real
from typing import Literal

import numpy as np
from darts.logging import raise_log
from darts.metrics.utils import (
    METRIC_OUTPUT_TYPE,
    _get_values_or_raise,
    multi_ts_support,
    multivariate_support,
)
from darts.typing import TimeSeriesLike
from numpy.typing import ArrayLike

from darts_ddssm.validation import check, check_positive_integer

__all__ = ["energy_score", "jensen_shannon_divergence"]

# Entries of a block of pairwise distances: 32 MiB in double precision.
_BLOCK_SIZE = 2**22

# Points of the midpoint rule in each bin of a density.
_POINTS_PER_BIN = 16


@multi_ts_support
@multivariate_support
def energy_score(
    actual_series: TimeSeriesLike,
    pred_series: TimeSeriesLike,
    intersect: bool = True,
    *,
    joint: Literal["components", "path"] = "components",
    time_reduction: Callable[..., np.ndarray] | None = np.nanmean,
    series_reduction: Callable[[np.ndarray], float | np.ndarray] | None = None,
    n_jobs: int = 1,
    verbose: bool = False,
    name: str | None = None,
) -> METRIC_OUTPUT_TYPE:
    r"""
    Energy score: the CRPS of a joint forecast; it sees dependence, and lower is better.

    .. math::
        \frac{1}{S} \sum_i \| x_i - y \|
        - \frac{1}{2 S (S - 1)} \sum_{i \neq j} \| x_i - x_j \|

    for an actual vector y and samples x_i of it. This is the unbiased ("fair") form:
    its expectation does not depend on the number of samples S, so that forecasts of
    different S compare; a forecast near perfect may score slightly below zero. With one
    value in the vector it is the CRPS, likewise in its fair form.

    Missing values are left out: of a vector, the entries that the actual series (or the
    forecast) has not; a vector with none left scores NaN, and so do series without a time
    step in common.

    It is no metric for ``residuals``, which asks for a score of each component.

    Parameters
    ----------
    actual_series
        The (sequence of) actual series.
    pred_series
        The (sequence of) predicted series, each of at least two samples.
    intersect
        Whether to score the time steps that both series have, where they differ. Else
        steps are paired by their position.
    joint
        What makes up the vector: "components" scores the C components of each time
        step, and reduces over time by `time_reduction`; "path" scores all T * C values
        of the forecast at once, and with them the dependence from step to step.
    time_reduction
        Function that reduces the scores over time, with an argument `axis`. None
        returns one score a time step. Without effect if `joint` is "path".
    series_reduction
        Function that reduces the scores over series, with an argument `axis`. None
        returns one score a series.
    n_jobs
        Number of series to score in parallel; -1 uses all processors.
    verbose
        Whether to show a progress bar over the series.
    name
        Name to show on it.

    Returns
    -------
    float
        Score of a single series, in the unit of the series, or of a sequence reduced by
        `series_reduction`.
    numpy.ndarray
        The same for each time step, (T,), if `time_reduction` is None.
    list
        One of these for each series of a sequence.

    Raises
    ------
    ValueError
        If a forecast has one sample only, `joint` is unknown, or the series do not
        match in number or components, or, without `intersect`, in length.

    References
    ----------
    .. [1] Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and
           Estimation", Journal of the American Statistical Association, 2007.

    Examples
    --------
    >>> import numpy as np
    >>> from darts import TimeSeries
    >>> from darts_ddssm.metrics import energy_score
    >>> rng = np.random.default_rng(0)
    >>> actual = TimeSeries.from_values(rng.standard_normal((50, 2)))
    >>> forecast = TimeSeries.from_values(rng.standard_normal((50, 2, 200)))
    >>> biased = forecast + 1.0
    >>> bool(energy_score(actual, forecast) < energy_score(actual, biased))
    True
    >>> len(energy_score([actual, actual], [forecast, biased], joint="path"))
    2
    """
    if joint not in ("components", "path"):
        raise_log(ValueError(f'`joint` must be "components" or "path", got `{joint}`.'))
    if not pred_series.is_stochastic:
        raise_log(ValueError("`pred_series` must have several samples, got one."))
    y, x = _get_values_or_raise(
        actual_series, pred_series, intersect, remove_nan_union=True
    )
    check(
        len(y) == len(x),
        "`actual_series` and `pred_series` must have the same length, got "
        f"{len(y)} and {len(x)}.",
    )
    if len(y) == 0:
        return np.full((1, 1, 1), np.nan)
    # (T, C, 1) and (T, C, S) -> (T, 1, C) and (T, S, C), in double precision
    y = y.swapaxes(1, 2).astype(np.float64)
    x = x.swapaxes(1, 2).astype(np.float64)
    if joint == "path":
        # (T, S, C) -> (1, S, T * C)
        y, x = (v.swapaxes(0, 1).reshape(1, v.shape[1], -1) for v in (y, x))

    missing = np.isnan(y)
    # Entries that are zero on both sides leave a distance alone.
    error = np.where(missing, 0.0, x - y)
    score = np.linalg.norm(error, axis=-1).mean(axis=1) - 0.5 * _mean_distance(error)
    score[missing.all(axis=(1, 2))] = np.nan
    return score[:, np.newaxis, np.newaxis]


def _mean_distance(x: np.ndarray) -> np.ndarray:
    """Mean distance of two different samples, of x (T, S, C) to (T,)."""
    num_samples = x.shape[1]
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a b is one matrix product and needs no array
    # (S, S, C); taken about the mean it loses no figures that matter.
    x = x - x.mean(axis=1, keepdims=True)
    square = (x**2).sum(axis=-1)
    total = np.zeros(len(x))
    rows = max(1, _BLOCK_SIZE // (len(x) * num_samples))
    for i in range(0, num_samples, rows):
        block = slice(i, i + rows)
        distance = square[:, block, None] + square[:, None, :]
        distance -= 2 * x[:, block] @ x.swapaxes(1, 2)
        total += np.sqrt(np.maximum(distance, 0.0)).sum(axis=(1, 2))
    return total / (num_samples * (num_samples - 1))


def jensen_shannon_divergence(
    samples: ArrayLike,
    density: Callable[[np.ndarray], ArrayLike] | ArrayLike,
    *,
    bins: int = 300,
    interval: tuple[float, float] = (-10.0, 10.0),
) -> np.ndarray | float:
    r"""
    Jensen-Shannon divergence of samples to a known density, by a histogram.

    .. math::
        \tfrac{1}{2} \mathrm{KL}(p \| m) + \tfrac{1}{2} \mathrm{KL}(q \| m),
        \qquad m = \tfrac{1}{2} (p + q)

    for the shares p of the samples and the probabilities q of the density in bins of
    equal width: from 0, where they agree, to log 2 = 0.693, where they have no bin in
    common. Finite samples of the true density score above zero, the more so the fewer
    they are; know this floor before reading a figure.

    Parameters
    ----------
    samples
        Samples of one variable, (..., S). The leading axes, such as those of several
        series, are kept. Samples outside the interval count in the outermost bins.
    density
        Either a density, which is called with an array of points, is integrated over
        each bin and normalised over the interval; or the probabilities of the bins,
        (K,) or (..., K), normalised likewise.
    bins
        Number of bins, K.
    interval
        Lower and upper end of the bins, in the unit of the samples.

    Returns
    -------
    float or numpy.ndarray
        Divergence in nats: a number for samples (S,), otherwise an array (...).

    Raises
    ------
    ValueError
        If `samples` are empty or hold NaN, `bins` is no positive integer, `interval` not
        two finite numbers that increase, or `density` has another shape, a value that is
        negative or not finite, or no mass on the interval.

    References
    ----------
    .. [1] Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on
           Information Theory, 1991.

    Examples
    --------
    The true process, on the density of x - 0.9 z: the floor for 512 samples.

    >>> import numpy as np
    >>> from darts_ddssm.datasets import BimodalRandomWalk
    >>> from darts_ddssm.metrics import jensen_shannon_divergence
    >>> process = BimodalRandomWalk()
    >>> samples = process.sample_future([0.0], n=1, num_samples=512, random_state=0)
    >>> divergence = jensen_shannon_divergence(
    ...     samples[:, 0, 0], lambda x: process.predictive_density(x, state=[0.0])
    ... )
    >>> 0.005 < divergence < 0.02
    True
    """
    check_positive_integer("bins", bins)
    ends = np.asarray(interval, dtype=object)
    check(
        ends.shape == (2,)
        and all(isinstance(end, Real) and isfinite(end) for end in ends)
        and ends[0] < ends[1],
        f"`interval` must be two finite numbers that increase, got `{interval}`.",
    )
    low, high = map(float, ends)
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim == 0 or samples.size == 0 or np.isnan(samples).any():
        raise_log(ValueError("`samples` must be an array (..., S) without NaN."))

    def shares(values: np.ndarray) -> np.ndarray:
        return np.histogram(values, bins, (low, high))[0] / len(values)

    p = np.apply_along_axis(shares, -1, np.clip(samples, low, high))
    q = _bin_probabilities(density, bins, low, high)
    sizes = zip(p.shape[::-1], q.shape[::-1], strict=False)
    check(
        all(one == other or 1 in (one, other) for one, other in sizes),
        f"`density` must have the leading axes of `samples`, `{p.shape[:-1]}`, or none, "
        f"got `{q.shape[:-1]}`.",
    )
    m = 0.5 * (p + q)
    divergence = 0.5 * (_relative_entropy(p, m) + _relative_entropy(q, m))
    return float(divergence) if divergence.ndim == 0 else divergence


def _bin_probabilities(
    density: Callable[[np.ndarray], ArrayLike] | ArrayLike,
    bins: int,
    low: float,
    high: float,
) -> np.ndarray:
    """Probabilities of the bins, (..., K), that sum to one."""
    if callable(density):
        num_points = bins * _POINTS_PER_BIN
        points = low + (high - low) * (np.arange(num_points) + 0.5) / num_points
        values = np.asarray(density(points), dtype=np.float64)
        check(
            values.shape[-1:] == (num_points,),
            f"`density` must return a value for each of {num_points} points, got shape "
            f"`{values.shape}`.",
        )
        values = values.reshape(*values.shape[:-1], bins, _POINTS_PER_BIN).sum(axis=-1)
    else:
        values = np.asarray(density, dtype=np.float64)
        if values.shape[-1:] != (bins,):
            raise_log(
                ValueError(
                    f"`density` must have {bins} entries on its last axis, "
                    f"got shape `{values.shape}`."
                )
            )
    total = values.sum(axis=-1, keepdims=True)
    check(
        bool((values >= 0).all() and (total > 0).all() and np.isfinite(total).all()),
        "`density` must be nonnegative, with mass on the interval, and finite.",
    )
    return values / total


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) over the last axis, in nats; q is positive where p is."""
    # 0 log 0 = 0, and half of the least positive number is rounded to 0 as well
    counts = (p > 0) & (q > 0)
    ratio = np.divide(p, q, out=np.ones(counts.shape), where=counts)
    return (p * np.log(ratio)).sum(axis=-1)
