"""
Pictures that darts lacks: of densities with several modes, and of latent paths.

Each function draws on the given axes, or on the current ones, and returns them.

Letters: S samples, T time steps, C components, D latent dimension.
"""

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from darts import TimeSeries
from matplotlib.axes import Axes
from matplotlib.cbook import normalize_kwargs
from matplotlib.lines import Line2D

from darts_ddssm.validation import check, check_integer, check_positive_integer

__all__ = ["plot_density", "plot_latents", "plot_transition_density"]


def _check_component(name: str, component: int, size: int) -> None:
    is_integer = isinstance(component, Integral) and not isinstance(component, bool)
    check(
        is_integer and 0 <= component < size,
        f"`{name}` must be from 0 to {size - 1}, got `{component!r}`.",
    )


def _check_stochastic(name: str, series: TimeSeries) -> None:
    check(
        isinstance(series, TimeSeries),
        f"`{name}` must be a `TimeSeries`, got a `{type(series).__name__}`.",
    )
    check(
        series.n_samples > 1,
        f"`{name}` must have several samples, got {series.n_samples}.",
    )


def _positions(index: pd.Index, level: float, ax: Axes) -> np.ndarray:
    """Return the time steps as numbers, in the units of the axis, (T,).

    darts plots through pandas, which counts months or weeks where matplotlib counts days.
    Axes with nothing on them are set up as darts would, so that its plots fit later.

    Parameters
    ----------
    index
        The time steps.
    level
        A value inside of what is drawn next.
    ax
        The axes.
    """
    if not isinstance(index, pd.DatetimeIndex):
        return np.asarray(index, dtype=float)
    # a line that is gone before: the view of the axes reaches to where it was
    line = pd.Series(level, index)
    if ax.has_data() and not hasattr(ax, "freq"):
        (drawn,) = ax.plot(line.index, line, color="black")
    else:
        drawn = line.plot(ax=ax, color="black").lines[-1]
    positions = np.asarray(drawn.get_xdata(orig=False), dtype=float)
    drawn.remove()
    return positions


def plot_transition_density(
    samples: np.ndarray,
    component: int | Sequence[int] = 0,
    true_density: Callable[[np.ndarray], np.ndarray] | None = None,
    num_bins: int = 80,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw the density of the next state from one state: the learned dynamics.

    Parameters
    ----------
    samples
        Draws of the next state, (S, D), as
        :meth:`~darts_ddssm.DDSSMModel.sample_transition` gives them.
    component
        Component of the state, or two of them for a map of their joint density.
    true_density
        Optionally, a density to compare with, from points (G,) to (G,); drawn as a line.
        For one component only.
    num_bins
        Number of bins along each axis.
    ax
        Where to draw; the current axes by default.
    **kwargs
        Arguments of matplotlib's ``hist`` or, for two components, ``hist2d``, but for
        ``bins``.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    ValueError
        If ``samples`` are not finite or not of shape (S, D), ``component`` is not one
        or two of the D, or ``bins`` is given.

    Examples
    --------
    >>> import numpy as np
    >>> from darts_ddssm.plotting import plot_transition_density
    >>> rng = np.random.default_rng(0)
    >>> samples = 4 * rng.choice([-1, 1], (500, 1)) + 0.2 * rng.standard_normal((500, 1))
    >>> ax = plot_transition_density(samples)
    >>> ax.get_xlabel(), len(ax.patches)
    ('z_0', 80)
    """
    samples = np.asarray(samples)
    if samples.dtype.kind == "f":
        # single precision has too few values for bins far from zero
        samples = samples.astype(np.float64)
    check_positive_integer("num_bins", num_bins)
    check("bins" not in kwargs, "`bins` must not be given, but `num_bins`.")
    check(
        samples.ndim == 2 and samples.size > 0,
        f"`samples` must have shape `(S, D)`, got `{samples.shape}`.",
    )
    check(bool(np.isfinite(samples).all()), "`samples` must be finite.")
    # as objects, so that a wrong type is seen as it was given
    chosen = np.atleast_1d(np.asarray(component, dtype=object)).tolist()
    check(
        1 <= len(chosen) <= 2,
        f"`component` must be one or a pair, got `{component}`.",
    )
    for one in chosen:
        _check_component("component", one, samples.shape[1])
    check(
        true_density is None or len(chosen) == 1,
        "`true_density` must be `None` for two components.",
    )
    ax = ax or plt.gca()
    ax.set_xlabel(f"z_{chosen[0]}")
    if len(chosen) == 2:
        x, y = (samples[:, one] for one in chosen)
        # what was never drawn stays white; densities are small where states are large
        options: dict[str, Any] = {
            "density": True,
            "cmin": np.finfo(float).tiny,
            "cmap": "viridis",
        } | kwargs
        ax.hist2d(x, y, bins=num_bins, **options)
        ax.set_ylabel(f"z_{chosen[1]}")
        return ax
    options = {"density": True, "color": "C0", "alpha": 0.6}
    ax.hist(samples[:, chosen[0]], bins=num_bins, **options | kwargs)
    ax.set_ylabel("density")
    if true_density is not None:
        grid = np.linspace(*ax.get_xlim(), 1001)
        ax.plot(grid, true_density(grid), color="black", lw=1, label="true density")
    return ax


def plot_latents(
    latents: TimeSeries,
    component: int | None = None,
    num_paths: int = 0,
    low_quantile: float = 0.05,
    high_quantile: float = 0.95,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw latent states over time: their median, an interval, and joint paths.

    Parameters
    ----------
    latents
        States with several samples, as :meth:`~darts_ddssm.DDSSMModel.infer_latents`
        gives them.
    component
        Component of the state; all of them by default, each in a colour of its own.
    num_paths
        Number of samples that are drawn as thin lines.
    low_quantile, high_quantile
        Ends of the interval.
    ax
        Where to draw; the current axes by default.
    **kwargs
        Arguments of matplotlib's ``plot`` for the median.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    ValueError
        If ``latents`` is no series or has one sample only, or an argument is outside its
        range.

    Examples
    --------
    >>> import numpy as np
    >>> from darts import TimeSeries
    >>> from darts_ddssm.plotting import plot_latents
    >>> values = np.random.default_rng(0).standard_normal((30, 2, 50)).cumsum(0)
    >>> latents = TimeSeries.from_values(values, columns=["z_0", "z_1"])
    >>> ax = plot_latents(latents, num_paths=3)
    >>> len(ax.lines)  # of each component, the median and three paths
    8
    """
    _check_stochastic("latents", latents)
    if component is not None:
        _check_component("component", component, latents.n_components)
    check_integer("num_paths", num_paths, least=0)
    check(
        num_paths <= latents.n_samples,
        f"`num_paths` must be from 0 to {latents.n_samples}, got `{num_paths}`.",
    )
    for name, value in (("low_quantile", low_quantile), ("high_quantile", high_quantile)):
        check(isinstance(value, Real), f"`{name}` must be a number, got `{value!r}`.")
    check(
        0 <= low_quantile < high_quantile <= 1,
        "`low_quantile` must be below `high_quantile`, both from 0 to 1, got "
        f"`{low_quantile}` and `{high_quantile}`.",
    )
    ax = ax or plt.gca()
    chosen = range(latents.n_components) if component is None else [component]
    values = latents.all_values(copy=False)
    times = _positions(latents.time_index, np.median(values[0, chosen[0]]), ax)
    kwargs = normalize_kwargs(kwargs, Line2D)
    for i in chosen:
        low, median, high = np.quantile(
            values[:, i], [low_quantile, 0.5, high_quantile], axis=1
        )
        options = {"linewidth": 1.5, "label": latents.components[i]} | kwargs
        (line,) = ax.plot(times, median, **options)
        colour = line.get_color()
        ax.fill_between(times, low, high, color=colour, alpha=0.25, lw=0)
        ax.plot(times, values[:, i, :num_paths], color=colour, lw=0.5, alpha=0.6)
    ax.set_xlabel(str(latents.time_index.name or "time"))
    return ax


def plot_density(
    forecast: TimeSeries,
    component: int = 0,
    num_bins: int = 100,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Draw a forecast as density over time.

    A fan of quantiles is one hill at every step. Here the colour shows the density of the
    samples, so that several modes are seen. It is the square root of the density over the
    greatest one of the same step: do not compare colours between steps.

    Parameters
    ----------
    forecast
        A series with several samples, as ``predict(n, num_samples=...)`` gives it. A few
        thousand samples make a smooth picture.
    component
        Component of the series.
    num_bins
        Number of bins of the values, from the least to the greatest.
    ax
        Where to draw; the current axes by default. Series plotted on the same axes, by
        darts or matplotlib, lie over it. Plot the past first: where there are dates,
        pandas sets the view to its own lines each time it draws.
    **kwargs
        Arguments of matplotlib's ``pcolormesh``, such as ``cmap``.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    ValueError
        If ``forecast`` is no series, has one sample only, or none that is finite, or an
        argument is outside its range.

    Examples
    --------
    >>> import numpy as np
    >>> from darts import TimeSeries
    >>> from darts_ddssm.plotting import plot_density
    >>> values = np.random.default_rng(0).standard_normal((12, 1, 1000)).cumsum(0)
    >>> ax = plot_density(TimeSeries.from_values(values), num_bins=50)
    >>> ax.collections[0].get_array().shape
    (50, 12)
    """
    _check_stochastic("forecast", forecast)
    _check_component("component", component, forecast.n_components)
    check_positive_integer("num_bins", num_bins)
    # single precision has too few values for bins far from zero
    values = forecast.all_values(copy=False)[:, component].astype(np.float64)
    finite = np.isfinite(values)
    check(bool(finite.any()), "`forecast` must have finite values.")
    edges = np.histogram_bin_edges(values[finite], num_bins)
    counts = np.stack(
        [np.histogram(x[kept], edges)[0] for x, kept in zip(values, finite, strict=True)],
        axis=1,
    )
    # Each step in units of its own greatest density: a forecast that widens would fade.
    # The root makes a small mode visible beside a large one.
    shade = np.sqrt(counts / np.maximum(counts.max(axis=0), 1))
    ax = ax or plt.gca()
    times = _positions(forecast.time_index, values[finite][0], ax)
    # cells reach halfway to the next step
    width = np.diff(times, append=2 * times[-1] - times[-2]) if len(times) > 1 else [1.0]
    ends = times + np.asarray(width) / 2
    ends = np.concatenate([[2 * times[0] - ends[0]], ends])
    options: dict[str, Any] = {"cmap": "Blues", "zorder": 0.5}
    if "norm" not in kwargs:
        options |= {"vmin": 0, "vmax": 1.2}
    ax.pcolormesh(ends, edges, np.ma.masked_equal(shade, 0), **options | kwargs)
    if hasattr(ax, "freq"):
        # pandas ends the view at the last step, in the middle of its cell
        left, right = ax.get_xlim()
        ax.set_xlim(min(left, ends[0]), max(right, ends[-1]))
    ax.set_xlabel(str(forecast.time_index.name or "time"))
    ax.set_ylabel(str(forecast.components[component]))
    return ax
