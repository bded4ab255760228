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


def paths_of(process, num_steps):
    """States after all paths of so many jumps from 0, and their probabilities."""
    states, probabilities = np.zeros(1), np.ones(1)
    p = process.probability
    for _ in range(num_steps):
        up, down = (process.decay * states + sign * process.step for sign in (1, -1))
        states = np.r_[up, down]
        probabilities = np.r_[p * probabilities, (1 - p) * probabilities]
    return states, probabilities


@pytest.mark.parametrize("probability", [0.5, 0.3])
@pytest.mark.parametrize("num_steps", [13, 16])
def test_bimodal_likelihood_after_a_long_gap(num_steps, probability):
    """All ways through it count, of which there are many thousands."""
    process = BimodalRandomWalk(probability=probability)
    x = np.full((num_steps + 1, 1), np.nan)
    assert process.log_likelihood(x) == pytest.approx(0.0, abs=1e-9)
    x[-1] = 5.0
    states, probabilities = paths_of(process, num_steps + 1)
    u = (5.0 - states) / process.noise
    density = np.exp(-0.5 * u**2) / (process.noise * np.sqrt(2 * np.pi))
    expected = np.log(probabilities @ density)
    assert process.log_likelihood(x) == pytest.approx(expected, abs=1e-6)


def test_bimodal_states_in_a_gap_without_an_end(caplog):
    """Of paths that are too many, some stand for all."""
    process, num_steps = BimodalRandomWalk(probability=0.3), 24
    paths = process.smooth(np.full((num_steps, 1), np.nan))
    assert paths.states.shape == (2**16, num_steps, 1)
    weights, last = paths.probabilities, paths.states[:, -1, 0]
    factors = process.step * process.decay ** np.arange(num_steps)
    mean, variance = (2 * 0.3 - 1) * factors.sum(), 4 * 0.3 * 0.7 * (factors**2).sum()
    assert weights @ last == pytest.approx(mean, abs=0.01)
    assert weights @ (last - mean) ** 2 == pytest.approx(variance, rel=0.01)
    rises = last > process.decay * paths.states[:, -2, 0]
    assert weights @ rises == pytest.approx(0.3, abs=1e-3)
    assert process.log_likelihood(np.full((40, 1), np.nan)) == pytest.approx(0.0, abs=1e-6)
    assert caplog.text == ""


def test_bimodal_paths_that_are_left_out_are_told(caplog):
    x = np.full((20, 1), np.nan)
    x[-1] = 5.0
    BimodalRandomWalk(noise=4.0).log_likelihood(x)
    assert "paths that were left out have" in caplog.text


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
