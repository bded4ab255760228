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


@pytest.mark.parametrize("noise", [0.2, 3.0])
def test_bimodal_likelihood_is_the_sum_over_all_paths(noise):
    process = BimodalRandomWalk(decay=0.8, step=2.0, noise=noise, probability=0.3)
    x = process.simulate(1, length=6, random_state=0).series[0].values().astype(float)
    x[2] = np.nan
    total = 0.0
    for path in np.ndindex(*(2,) * 6):
        signs = 2 * np.array(path) - 1
        state, density = 0.0, np.prod(np.where(signs > 0, 0.3, 0.7))
        for sign, value in zip(signs, x[:, 0], strict=True):
            state = 0.8 * state + 2.0 * sign
            if not np.isnan(value):
                u = (value - state) / noise
                density *= np.exp(-0.5 * u**2) / (noise * np.sqrt(2 * np.pi))
        total += density
    assert process.log_likelihood(x) == pytest.approx(np.log(total))


def test_bimodal_likelihood_is_that_of_the_next_value():
    process = BimodalRandomWalk()
    density = process.predictive_density([3.9], state=np.zeros(1))
    assert process.log_likelihood([[3.9]]) == pytest.approx(np.log(density[0]))


def test_bimodal_likelihood_errors():
    with pytest.raises(ValueError, match="`x` must have shape"):
        BimodalRandomWalk().log_likelihood([1.0, 2.0])
