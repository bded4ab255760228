"""Pictures: what is drawn, where, and errors."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries
from matplotlib.colors import PowerNorm
from scipy.stats import norm

from darts_ddssm.plotting import plot_density, plot_latents, plot_transition_density

INDICES = {
    "range": pd.RangeIndex(5, 45, 2),
    "months": pd.date_range("2020-01", periods=20, freq="MS"),
    "weeks": pd.date_range("2020-01-04", periods=20, freq="W-SAT"),
    "hours": pd.date_range("2020-01-01", periods=20, freq="h"),
}
each_index = pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)


@pytest.fixture(autouse=True)
def figure():
    fig = plt.figure()
    yield fig
    plt.close("all")


def two_modes(num_samples: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (num_samples, 2), p=[0.5, 0.5])
    return 4 * signs + 0.2 * rng.standard_normal(signs.shape)


def series_of(index: pd.Index, num_samples: int = 400) -> TimeSeries:
    """Near one step number or its negative, at each step; a second component."""
    rng = np.random.default_rng(0)
    steps = np.arange(len(index))[:, None, None] + 1.0
    signs = rng.choice([-1.0, 1.0], (len(index), 1, num_samples))
    first = steps * signs + 0.1 * rng.standard_normal(signs.shape)
    values = np.concatenate([first, first + 100], axis=1)
    return TimeSeries.from_times_and_values(index, values, columns=["a", "b"])


# --- transitions ----------------------------------------------------------------------


def test_transition_density_is_a_density():
    samples = two_modes()

    def true_density(x):
        return 0.5 * norm.pdf(x, -4, 0.2) + 0.5 * norm.pdf(x, 4, 0.2)

    ax = plot_transition_density(samples, 1, true_density, num_bins=100)
    assert ax is plt.gca() and ax.get_xlabel() == "z_1"
    mass = [bar.get_height() * bar.get_width() for bar in ax.patches]
    assert sum(mass) == pytest.approx(1)
    middles = np.array([bar.get_x() + bar.get_width() / 2 for bar in ax.patches])
    assert np.dot(mass, np.abs(np.abs(middles) - 4) < 1) == pytest.approx(1)
    (line,) = ax.lines
    # numpy 1.26 has no `trapezoid`
    step = np.diff(line.get_xdata())[0]
    assert line.get_ydata().sum() * step == pytest.approx(1, abs=1e-3)


def test_transition_density_of_two_components(figure):
    ax = figure.add_subplot()
    assert plot_transition_density(two_modes(), (0, 1), num_bins=20, ax=ax) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z_0", "z_1")
    counts = ax.collections[0].get_array().reshape(20, 20)
    # four corners, and nothing between them
    assert (counts[[0, 0, -1, -1], [0, -1, 0, -1]] >= 0).all()
    assert np.ma.getmaskarray(np.ma.masked_invalid(counts))[6:14].all()


@pytest.mark.parametrize("component", [[1, 0], np.array([1, 0])])
def test_transition_density_of_any_sequence_of_two(component):
    ax = plot_transition_density(two_modes(), component)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z_1", "z_0")


def test_transition_density_of_large_states():
    ax = plot_transition_density(1e7 * two_modes(), (0, 1))
    shown = np.ma.masked_invalid(ax.collections[0].get_array())
    assert shown.count() > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"samples": np.zeros(5)}, "`samples` must have shape"),
        ({"samples": np.zeros((0, 2))}, "`samples` must have shape"),
        ({"samples": np.full((5, 2), np.nan)}, "`samples` must be finite"),
        ({"component": 2}, "`component` must be from 0 to 1"),
        ({"component": -1}, "`component` must be from 0 to 1"),
        ({"component": 1.0}, "`component` must be from 0 to 1"),
        ({"component": "z_0"}, "`component` must be from 0 to 1"),
        ({"component": (0, 1, 1)}, "`component` must be one or a pair"),
        ({"component": (0, 1), "true_density": np.exp}, "`true_density` must be `None`"),
        ({"component": np.array([0, 2])}, "`component` must be from 0 to 1"),
        ({"component": np.array(0.5)}, "`component` must be"),
        ({"num_bins": 0}, "`num_bins` must be an integer"),
        ({"bins": 10}, "`bins` must not be given, but `num_bins`"),
    ],
)
def test_transition_density_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_transition_density(**({"samples": two_modes(10)} | arguments))


# --- latents --------------------------------------------------------------------------


@each_index
def test_latents(index):
    series = series_of(index)
    ax = plot_latents(series, num_paths=3)
    # a median and three paths of each component
    assert len(ax.lines) == 8 and len(ax.collections) == 2
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["a", "b"]
    medians = ax.lines[0].get_ydata()
    np.testing.assert_allclose(medians, np.median(series.all_values()[:, 0], axis=1))
    band = ax.collections[0].get_paths()[0].get_extents()
    assert band.ymin == pytest.approx(-20, abs=0.5)
    assert band.ymax == pytest.approx(20, abs=0.5)


def test_one_latent():
    ax = plot_latents(series_of(INDICES["range"]), component=1, color="red")
    assert len(ax.lines) == 1 and ax.lines[0].get_color() == "red"
    assert ax.get_legend_handles_labels()[1] == ["b"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"component": 2}, "`component` must be from 0 to 1"),
        ({"num_paths": 401}, "`num_paths` must be from 0 to 400"),
        ({"num_paths": -1}, "`num_paths` must be an integer >= 0, got `-1`"),
        ({"num_paths": 1.5}, "`num_paths` must be an integer >= 0, got `1.5`"),
        ({"low_quantile": "a"}, "`low_quantile` must be a number, got `'a'`"),
        ({"high_quantile": None}, "`high_quantile` must be a number, got `None`"),
        ({"latents": np.ones((5, 1, 3))}, "`latents` must be a `TimeSeries`, got a `nda"),
        ({"low_quantile": 0.9, "high_quantile": 0.1}, "`low_quantile` must be below"),
        ({"high_quantile": 1.1}, "`low_quantile` must be below"),
        ({"latents": series_of(INDICES["range"], 1)}, "`latents` must have several"),
    ],
)
def test_latents_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_latents(**({"latents": series_of(INDICES["range"])} | arguments))


# --- density over time ----------------------------------------------------------------


def mesh_of(ax) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shades (bins, T) and the corners of the cells along each axis."""
    mesh = ax.collections[0]
    corners = mesh.get_coordinates()
    return mesh.get_array(), corners[0, :, 0], corners[:, 0, 1]


@each_index
def test_density_shows_both_modes(index):
    ax = plot_density(series_of(index), num_bins=84)
    shade, _, edges = mesh_of(ax)
    middles = (edges[1:] + edges[:-1]) / 2
    for i, column in enumerate(np.ma.filled(shade, 0).T):
        seen = middles[column > 0]
        np.testing.assert_allclose(np.abs(seen), i + 1, atol=0.9)
        assert (seen > 0).any() and (seen < 0).any()
        assert column.max() == 1


@each_index
@pytest.mark.parametrize("first", ["darts", "density"])
def test_density_lies_under_what_darts_plots(index, first):
    series = series_of(index)
    ax = plt.gca()
    if first == "darts":
        series["a"].mean().plot(ax=ax)
    plot_density(series, ax=ax)
    if first == "density":
        series["a"].mean().plot(ax=ax)
    (line,) = ax.lines
    _, edges, _ = mesh_of(ax)
    times = np.asarray(line.get_xdata(orig=False), dtype=float)
    # months differ in length unless they are counted
    np.testing.assert_allclose((edges[1:] + edges[:-1]) / 2, times, rtol=1e-6)


@each_index
def test_density_is_seen_whole(index):
    series = series_of(index)
    ax = series["a"][:10].mean().plot()
    plot_density(series[10:], ax=ax)
    _, edges, _ = mesh_of(ax)
    left, right = ax.get_xlim()
    assert left <= edges[0] and edges[-1] <= right


def test_density_on_axes_with_dates_of_matplotlib():
    series = series_of(INDICES["weeks"])
    ax = plt.gca()
    (line,) = ax.plot(series.time_index, series.all_values()[:, 0, 0])
    plot_density(series, ax=ax)
    _, edges, _ = mesh_of(ax)
    middles = (edges[1:] + edges[:-1]) / 2
    np.testing.assert_allclose(middles, line.get_xdata(orig=False), rtol=1e-9)
    assert ax.lines[0] is line and len(ax.lines) == 1


def test_density_of_one_step_and_of_gaps():
    index = INDICES["range"]
    assert mesh_of(plot_density(series_of(index[:1]), num_bins=7))[0].shape == (7, 1)
    plt.clf()
    series = series_of(index)
    values = series.all_values(copy=True)
    values[3] = np.nan
    shade, _, _ = mesh_of(plot_density(series.with_values(values), component=1))
    assert np.ma.getmaskarray(shade)[:, 3].all()
    assert not np.ma.getmaskarray(shade)[:, 4].all()


@each_index
@pytest.mark.parametrize("axes", ["new", "with dates of matplotlib"])
def test_other_components_are_out_of_view(index, axes):
    """Those that are not drawn."""
    series = series_of(index)
    for plot in (plot_density, plot_latents):
        ax = plt.figure().gca()
        if axes != "new":
            ax.plot(index, np.full(len(index), 100.0))
        plot(series, component=1, ax=ax)
        assert 70 < ax.get_ylim()[0] < ax.get_ylim()[1] < 130


def test_arguments_of_matplotlib():
    series = series_of(INDICES["range"])
    ax = plot_latents(series, component=0, linewidth=3, c="red")
    assert ax.lines[0].get_linewidth() == 3 and ax.lines[0].get_color() == "red"
    shades = PowerNorm(0.5, vmin=0, vmax=2)
    assert plot_density(series, norm=shades).collections[-1].norm is shades


def test_narrow_densities_far_from_zero_in_single_precision():
    values = 1e6 + 0.3 * np.random.default_rng(0).standard_normal((5, 1, 200))
    values = values.astype(np.float32)
    ax = plot_density(TimeSeries.from_values(values), num_bins=100)
    assert ax.collections[0].get_array().shape == (100, 5)
    ax = plot_transition_density(values[:, 0].T, num_bins=100, ax=plt.figure().gca())
    assert len(ax.patches) == 100


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"component": 2}, "`component` must be from 0 to 1"),
        ({"num_bins": 0}, "`num_bins` must be an integer"),
        ({"forecast": np.ones((5, 1, 3))}, "`forecast` must be a `TimeSeries`, got a `nda"),
        ({"forecast": series_of(INDICES["range"], 1)}, "`forecast` must have several"),
        (
            {"forecast": series_of(INDICES["range"]) * np.nan},
            "`forecast` must have finite values",
        ),
    ],
)
def test_density_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_density(**({"forecast": series_of(INDICES["range"])} | arguments))
