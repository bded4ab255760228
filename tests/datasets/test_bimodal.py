"""The bimodal random walk against closed forms."""

import numpy as np
import pytest

from darts_ddssm.datasets import (
    BimodalRandomWalk,
    bimodal_random_walk,
)
from tests.helpers import NUM_ERRORS, assert_mean, stack


def test_bimodal_dynamics():
    series, latents, process = bimodal_random_walk(200, 32, random_state=0)
    z = stack(latents)[..., 0]
    np.testing.assert_allclose(np.abs(z[:, 0]), process.step)
    jumps = z[:, 1:] - process.decay * z[:, :-1]
    np.testing.assert_allclose(np.abs(jumps), process.step, atol=1e-5)
    residuals = (stack(series)[..., 0] - z).ravel()
    assert_mean(residuals, 0.0)
    assert_mean(residuals**2, process.noise**2)


def test_bimodal_probability():
    _, latents, _ = bimodal_random_walk(2000, 1, probability=0.2, random_state=0)
    assert_mean(stack(latents).ravel() > 0, 0.2)


def test_bimodal_density_is_a_density():
    process = BimodalRandomWalk(decay=0.8, step=1.0, noise=0.3, probability=0.3)
    grid = np.linspace(-8, 8, 4001)
    density = process.predictive_density(grid, state=[[0.0], [2.0], [-3.0]])
    assert density.shape == (3, 4001)
    np.testing.assert_allclose(np.trapezoid(density, grid), 1.0, rtol=1e-9)
    mean = np.trapezoid(grid * density, grid)
    np.testing.assert_allclose(mean, 0.8 * np.array([0.0, 2.0, -3.0]) + 0.3 - 0.7)
    one = process.predictive_density(grid, state=[2.0])
    np.testing.assert_array_equal(one, density[1])


def test_bimodal_density_is_that_of_the_samples():
    process = BimodalRandomWalk(step=1.0, noise=0.4, probability=0.3)
    samples = process.sample_future([2.0], n=1, num_samples=50_000, random_state=0)
    edges = np.linspace(-1, 5, 25)
    points = (edges[:-1, None] + (np.arange(50) + 0.5) / 50 * np.diff(edges)[:, None]).T
    expected = np.stack([process.predictive_density(p, [2.0]) for p in points])
    expected = expected.mean(axis=0) * np.diff(edges)
    share = np.histogram(samples, edges)[0] / len(samples)
    error = np.sqrt(expected * (1 - expected) / len(samples))
    assert np.all(np.abs(share - expected) < NUM_ERRORS * error + 1e-4)


def test_bimodal_moments_ahead():
    """n steps ahead: a^n z, and b^2 (1 - a^2n) / (1 - a^2) + c^2."""
    a, b, c, n = 0.7, 1.5, 0.3, 6
    process = BimodalRandomWalk(decay=a, step=b, noise=c)
    samples = process.sample_future([3.0], n, num_samples=20_000, random_state=0)
    mean = a ** np.arange(1, n + 1) * 3.0
    variance = b**2 * (1 - a ** (2 * np.arange(1, n + 1))) / (1 - a**2) + c**2
    assert_mean(samples[..., 0], mean)
    assert_mean((samples[..., 0] - mean) ** 2, variance)


def all_paths(process, x):
    """Every path of states, (2^T, T), and its joint density with x, (2^T,)."""
    signs = 2 * np.array(list(np.ndindex(*(2,) * len(x)))) - 1
    states = np.zeros(signs.shape)
    previous = 0.0
    for t in range(len(x)):
        states[:, t] = previous = process.decay * previous + process.step * signs[:, t]
    p = process.probability
    density = np.where(signs > 0, p, 1 - p).prod(1)
    for t in np.flatnonzero(~np.isnan(x[:, 0])):
        u = (x[t, 0] - states[:, t]) / process.noise
        density *= np.exp(-0.5 * u**2) / (process.noise * np.sqrt(2 * np.pi))
    return states, density


@pytest.fixture(params=[0.2, 3.0])
def incomplete(request):
    """A process, a series with a gap, and the enumeration of all its paths."""
    process = BimodalRandomWalk(decay=0.8, step=2.0, noise=request.param, probability=0.3)
    x = process.simulate(1, length=6, random_state=0).series[0].values().astype(float)
    x[2:4] = np.nan
    return process, x, *all_paths(process, x)


def test_bimodal_likelihood_is_the_sum_over_all_paths(incomplete):
    process, x, _, density = incomplete
    assert process.log_likelihood(x) == pytest.approx(np.log(density.sum()))


def test_bimodal_smoothing_weighs_all_paths(incomplete):
    process, x, states, density = incomplete
    paths = process.smooth(x)
    assert paths.states.shape == (64, 6, 1)
    # each path, and its probability, in one order
    found, expected = np.lexsort(paths.states[..., 0].T), np.lexsort(states.T)
    np.testing.assert_allclose(paths.states[found, :, 0], states[expected])
    np.testing.assert_allclose(
        paths.probabilities[found], (density / density.sum())[expected], atol=1e-12
    )


def test_bimodal_paths_are_drawn_by_their_probability():
    process = BimodalRandomWalk(noise=3.0)
    paths = process.smooth([[np.nan], [3.0], [np.nan], [1.0]])
    drawn = paths.sample(20_000, random_state=0)
    assert drawn.shape == (20_000, 4, 1)
    assert_mean(drawn[..., 0], paths.probabilities @ paths.states[..., 0])


def test_bimodal_smoothing_of_a_long_series_leaves_out_what_is_impossible():
    series, latents, process = bimodal_random_walk(1, 100, random_state=0)
    x = series[0].values().astype(float)
    x[40:48] = np.nan
    paths = process.smooth(x)
    possible = paths.states[paths.probabilities > 1e-6, :, 0]
    true = latents[0].values()[:, 0]
    assert np.abs(possible - true).max(1).min() < 1e-4
    assert np.abs(possible - true)[:, 48:].max() < 5 * process.noise


def test_bimodal_likelihood_is_that_of_the_next_value():
    process = BimodalRandomWalk()
    density = process.predictive_density([3.9], state=np.zeros(1))
    assert process.log_likelihood([[3.9]]) == pytest.approx(np.log(density[0]))


@pytest.mark.parametrize("method", ["log_likelihood", "smooth"])
def test_bimodal_likelihood_errors(method):
    with pytest.raises(ValueError, match="`x` must have shape"):
        getattr(BimodalRandomWalk(), method)([1.0, 2.0])
    with pytest.raises(ValueError, match="`x` must be finite, or NaN where"):
        getattr(BimodalRandomWalk(), method)([[1.0], [np.inf]])
    with pytest.raises(ValueError, match="`num_samples` must be an integer >= 1, got `0`"):
        BimodalRandomWalk().smooth([[1.0]]).sample(0)
