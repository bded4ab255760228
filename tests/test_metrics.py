"""The scores against scoringrules and closed forms."""

import numpy as np
import pytest
import scoringrules
from darts import TimeSeries
from darts.metrics import crps, mae
from darts.models import NaiveMean

import darts_ddssm.metrics
from darts_ddssm.datasets import BimodalRandomWalk
from darts_ddssm.metrics import energy_score, jensen_shannon_divergence


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def actual(rng) -> TimeSeries:
    return TimeSeries.from_values(rng.standard_normal((6, 3)))


@pytest.fixture
def forecast(rng) -> TimeSeries:
    return TimeSeries.from_values(rng.normal(0.3, 1.2, (6, 3, 40)))


def samples(series: TimeSeries) -> np.ndarray:
    """(T, C, S) -> (T, S, C)"""
    return series.all_values().swapaxes(1, 2)


# The energy score


def test_energy_score_of_components(actual, forecast):
    expected = scoringrules.es_ensemble(
        actual.values(), samples(forecast), estimator="fair", backend="numpy"
    )
    per_step = energy_score(actual, forecast, time_reduction=None)
    np.testing.assert_allclose(per_step, expected, rtol=1e-10)
    np.testing.assert_allclose(energy_score(actual, forecast), expected.mean())


def test_energy_score_of_a_path(actual, forecast):
    expected = scoringrules.es_ensemble(
        actual.values().ravel(),
        forecast.all_values().reshape(18, 40).T,
        estimator="fair",
        backend="numpy",
    )
    score = energy_score(actual, forecast, joint="path")
    assert np.ndim(score) == 0
    np.testing.assert_allclose(score, expected, rtol=1e-10)


def test_energy_score_in_one_dimension_is_the_crps(actual, forecast):
    actual, forecast = actual["0"], forecast["0"]
    score = energy_score(actual, forecast, time_reduction=None)
    expected = scoringrules.crps_ensemble(
        actual.values()[:, 0],
        forecast.all_values()[:, 0],
        estimator="fair",
        backend="numpy",
    )
    np.testing.assert_allclose(score, expected, rtol=1e-7)
    # darts' CRPS counts the distance of a sample to itself, which is zero
    spread = forecast.all_values()[:, 0]
    spread = np.abs(spread[:, :, None] - spread[:, None, :]).mean(axis=(1, 2))
    biased = crps(actual, forecast, time_reduction=None)
    np.testing.assert_allclose(biased, expected + 0.5 * spread / 39, rtol=1e-7)


def test_energy_score_is_unbiased(rng):
    """Few samples score as many do, on average over forecasts."""
    y = TimeSeries.from_values(np.zeros((4000, 2)))
    few, many = (
        energy_score(
            y,
            TimeSeries.from_values(rng.standard_normal((4000, 2, s))),
            time_reduction=None,
        )
        for s in (2, 50)
    )
    error = np.sqrt(few.var() / len(few) + many.var() / len(many))
    assert abs(few.mean() - many.mean()) < 4 * error


def test_energy_score_sees_dependence(rng):
    """In the components and, as a path, in time: the margins are the same."""
    y = rng.standard_normal((500, 1, 1)) * np.ones((500, 1, 4))
    dependent = rng.standard_normal((500, 200, 1)) * np.ones((500, 200, 4))
    independent = rng.standard_normal((500, 200, 4))

    def mean_score(x: np.ndarray, axis: int, **kwargs) -> float:
        """Score of vectors (4,), along time (axis 0) or components (axis 1)."""
        shape = (4, 1) if axis == 0 else (1, 4)
        actual = [TimeSeries.from_values(v.reshape(shape)) for v in y]
        forecast = [TimeSeries.from_values(v.T.reshape(*shape, -1)) for v in x]
        return np.mean(energy_score(actual, forecast, **kwargs))

    components, path = {"axis": 1}, {"axis": 0, "joint": "path"}
    for kwargs in (components, path):
        assert mean_score(dependent, **kwargs) < mean_score(independent, **kwargs) - 0.05
    steps = mean_score(dependent, axis=0), mean_score(independent, axis=0)
    assert abs(steps[0] - steps[1]) < 0.02


@pytest.mark.parametrize("joint", ["components", "path"])
def test_energy_score_does_not_depend_on_the_blocks(actual, forecast, joint, monkeypatch):
    whole = energy_score(actual, forecast, joint=joint)
    monkeypatch.setattr(darts_ddssm.metrics, "_BLOCK_SIZE", 6 * 40 * 7)
    np.testing.assert_allclose(energy_score(actual, forecast, joint=joint), whole)
    monkeypatch.setattr(darts_ddssm.metrics, "_BLOCK_SIZE", 1)
    np.testing.assert_allclose(energy_score(actual, forecast, joint=joint), whole)


def test_energy_score_far_from_zero(actual, forecast):
    """A level of a million takes no figures from the score."""
    shifted = energy_score(actual + 1e6, forecast + 1e6)
    np.testing.assert_allclose(shifted, energy_score(actual, forecast), rtol=1e-8)


def test_energy_score_of_sequences(actual, forecast):
    expected = [energy_score(actual, forecast), energy_score(actual, forecast + 1)]
    scores = energy_score([actual, actual], [forecast, forecast + 1])
    assert isinstance(scores, list)
    np.testing.assert_allclose(scores, expected)
    reduced = energy_score(
        [actual, actual], [forecast, forecast + 1], series_reduction=np.mean
    )
    np.testing.assert_allclose(reduced, np.mean(expected))


def test_energy_score_intersects_in_time(actual, forecast):
    expected = energy_score(actual[2:], forecast[2:])
    np.testing.assert_allclose(energy_score(actual, forecast[2:]), expected)
    np.testing.assert_allclose(energy_score(actual[2:], forecast), expected)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("joint", ["components", "path"])
def test_energy_score_without_a_common_step_is_nan(actual, forecast, joint):
    assert np.isnan(mae(actual[:3], forecast[3:]))
    assert np.isnan(energy_score(actual[:3], forecast[3:], joint=joint))


def test_energy_score_leaves_missing_values_out(actual, forecast):
    values = actual.values()
    values[0, 1] = values[2] = np.nan
    gappy = TimeSeries.from_values(values)
    score = energy_score(gappy, forecast, time_reduction=None)
    rest = energy_score(actual[["0", "2"]], forecast[["0", "2"]], time_reduction=None)
    full = energy_score(actual, forecast, time_reduction=None)
    assert np.isnan(score[2])
    np.testing.assert_allclose(score[0], rest[0])
    np.testing.assert_allclose(score[[1, 3, 4, 5]], full[[1, 3, 4, 5]])
    np.testing.assert_allclose(energy_score(gappy, forecast), np.nanmean(score))
    seen = ~np.isnan(values.ravel())
    expected = scoringrules.es_ensemble(
        values.ravel()[seen],
        forecast.all_values().reshape(18, 40)[seen].T,
        estimator="fair",
        backend="numpy",
    )
    np.testing.assert_allclose(energy_score(gappy, forecast, joint="path"), expected)


def test_energy_score_in_backtest(actual, forecast):
    scores = NaiveMean().backtest(
        actual,
        historical_forecasts=[forecast[:3], forecast[3:]],
        last_points_only=False,
        metric=energy_score,
        metric_kwargs={"joint": "path"},
        reduction=None,
    )
    expected = [energy_score(actual, f, joint="path") for f in (forecast[:3], forecast[3:])]
    np.testing.assert_allclose(scores, expected)


def test_energy_score_errors(actual, forecast):
    with pytest.raises(ValueError, match="`joint` must be .* got `time`"):
        energy_score(actual, forecast, joint="time")
    with pytest.raises(ValueError, match="`pred_series` must have several samples"):
        energy_score(actual, actual)
    with pytest.raises(ValueError, match="number of components"):
        energy_score(actual["0"], forecast)
    for other in (forecast[:1], forecast[2:]):
        with pytest.raises(ValueError, match="must have the same length, got"):
            energy_score(actual, other, intersect=False)
    with pytest.raises(ValueError, match="number of series"):
        energy_score([actual, actual], [forecast])


# The Jensen-Shannon divergence


def test_divergence_of_the_same_shares_is_zero(rng):
    x = rng.uniform(-10, 10, 1000)
    shares = np.histogram(x, 300, (-10, 10))[0]
    assert jensen_shannon_divergence(x, shares) == pytest.approx(0.0, abs=1e-15)


def test_divergence_where_a_probability_is_nearly_zero():
    """Half of the least positive number is rounded to zero."""
    tiny = np.nextafter(0, 1)
    divergence = jensen_shannon_divergence(
        [0.5, 0.5], np.array([tiny, 1.0]), bins=2, interval=(-1, 1)
    )
    assert divergence == 0.0


def test_divergence_of_disjoint_shares_is_log_2():
    def density(x: np.ndarray) -> np.ndarray:
        return (x > 5).astype(float)

    divergence = jensen_shannon_divergence(np.linspace(-9, 0, 50), density)
    assert isinstance(divergence, float)
    assert divergence == pytest.approx(np.log(2), rel=1e-12)


def test_divergence_by_hand():
    """Shares (1/4, 3/4) against (1/2, 1/2)."""
    divergence = jensen_shannon_divergence(
        [0.1, 0.6, 0.7, 0.8], lambda x: np.ones_like(x), bins=2, interval=(0.0, 1.0)
    )
    p, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    m = (p + q) / 2
    expected = 0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum()
    assert divergence == pytest.approx(expected, rel=1e-12)


def test_divergence_agrees_with_scipy(rng):
    distance = pytest.importorskip("scipy.spatial.distance")
    x, q = rng.normal(0, 3, 500), rng.uniform(size=40)
    p = np.histogram(x, 40, (-20, 20))[0]
    divergence = jensen_shannon_divergence(x, q, bins=40, interval=(-20, 20))
    assert divergence == pytest.approx(distance.jensenshannon(p, q) ** 2, rel=1e-10)


def test_density_is_integrated_over_bins(rng):
    """Wide bins of a curved density: the exact probabilities are known."""
    norm = pytest.importorskip("scipy.stats").norm
    x = rng.standard_normal(200)
    exact = np.diff(norm.cdf(np.linspace(-4, 4, 9)))
    expected = jensen_shannon_divergence(x, exact, bins=8, interval=(-4, 4))
    unnormalised = jensen_shannon_divergence(
        x, lambda x: 7 * np.exp(-0.5 * x**2), bins=8, interval=(-4, 4)
    )
    assert unnormalised == pytest.approx(expected, rel=1e-3)


def test_divergence_keeps_leading_axes(rng):
    x, q = rng.standard_normal((2, 3, 100)), rng.uniform(size=(3, 300))
    divergence = jensen_shannon_divergence(x, q)
    assert divergence.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        one = jensen_shannon_divergence(x[i, j], q[j])
        assert divergence[i, j] == pytest.approx(one, rel=1e-12)


def test_samples_outside_count_against():
    """They are no part of a density that has nothing at the ends."""

    def density(x: np.ndarray) -> np.ndarray:
        return (np.abs(x) < 1).astype(float)

    inside = np.linspace(-0.99, 0.99, 300)
    outside = np.concatenate([inside, np.full(300, 50.0), [np.inf]])
    assert jensen_shannon_divergence(outside, density) > 0.1
    far = jensen_shannon_divergence(np.full(10, -np.inf), density)
    assert far == pytest.approx(np.log(2))


def test_floor_of_the_bimodal_process():
    """The figure to know: 0.011 with 512 samples of the true density."""
    process = BimodalRandomWalk()
    states = np.linspace(-20, 20, 200)[:, None]
    x = process.sample_future(states, n=1, num_samples=512, random_state=0)
    centred = (x[..., 0, 0] - process.decay * states[:, 0]).T
    divergence = jensen_shannon_divergence(
        centred, lambda x: process.predictive_density(x, state=[0.0])
    )
    assert divergence.shape == (200,)
    assert divergence.mean() == pytest.approx(0.011, abs=0.001)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bins": 0}, "`bins` must be an integer >= 1, got `0`"),
        ({"bins": 2.5}, "`bins` must be an integer >= 1, got `2.5`"),
        ({"interval": (1.0, 1.0)}, "`interval` must be two finite numbers that increase"),
        ({"interval": (0.0, np.inf)}, "`interval` must be two finite numbers"),
        ({"interval": (0.0, 1.0, 2.0)}, "`interval` must be two finite numbers"),
        ({"interval": 3.0}, "`interval` must be two finite numbers"),
        ({"interval": ("a", "b")}, "`interval` must be two finite numbers"),
        ({"samples": []}, "`samples` must be an array"),
        ({"samples": 1.0}, "`samples` must be an array"),
        ({"samples": [0.0, np.nan]}, "`samples` must be an array"),
        ({"density": np.ones(7)}, r"`density` must have 300 entries .* `\(7,\)`"),
        ({"density": np.zeros(300)}, "`density` must be nonnegative, with mass"),
        ({"density": lambda x: -np.ones_like(x)}, "`density` must be nonnegative"),
        ({"density": np.full(300, np.inf)}, "`density` must be nonnegative, .* and finite"),
        ({"density": lambda x: 1.0}, r"`density` must return a value .* `\(\)`"),
        (
            {"samples": np.ones((3, 5)), "density": np.ones((2, 300))},
            r"`density` must have the leading axes of `samples`, `\(3,\)`, .* `\(2,\)`",
        ),
    ],
)
def test_divergence_errors(changes, message):
    arguments = {"samples": [0.0, 1.0], "density": np.ones(300), **changes}
    with pytest.raises(ValueError, match=message):
        jensen_shannon_divergence(**arguments)
