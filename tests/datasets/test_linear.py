"""The linear Gaussian process against the dense joint Gaussian."""

import numpy as np
import pytest

from darts_ddssm.datasets import (
    LinearGaussian,
    linear_gaussian,
)
from tests.helpers import assert_mean, stack


@pytest.fixture
def process() -> LinearGaussian:
    """Three latent and two observed dimensions, with nothing special about them."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((3, 3)), rng.standard_normal((2, 2))
    transition = rng.standard_normal((3, 3))
    transition *= 0.9 / np.abs(np.linalg.eigvals(transition)).max()
    emission = rng.standard_normal((2, 3))
    return LinearGaussian(transition, emission, a @ a.T + np.eye(3), b @ b.T + np.eye(2))


def dense_joint(process: LinearGaussian, length: int):
    """Covariances of all states and all observations: (TD, TD), (TC, TD), (TC, TC)."""
    f, p = process.transition, process.transition_covariance
    for _ in range(2000):  # the stationary covariance, by iteration
        p = f @ p @ f.T + process.transition_covariance
    powers = [np.linalg.matrix_power(f, k) for k in range(length)]
    state = np.block(
        [
            [powers[i - j] @ p if i >= j else p @ powers[j - i].T for j in range(length)]
            for i in range(length)
        ]
    )
    lift = np.kron(np.eye(length), process.emission)
    noise = np.kron(np.eye(length), process.emission_covariance)
    return state, lift @ state, lift @ state @ lift.T + noise


@pytest.fixture
def observations() -> np.ndarray:
    """Seven steps with gaps: a part of a step, a whole one, and the last."""
    x = np.random.default_rng(4).normal(0.0, 2.0, (7, 2))
    x[1, 0] = x[3] = x[6, 1] = np.nan
    return x


def test_likelihood_is_the_dense_one(process, observations):
    _, _, covariance = dense_joint(process, 7)
    seen = ~np.isnan(observations.ravel())
    x, s = observations.ravel()[seen], covariance[np.ix_(seen, seen)]
    expected = -0.5 * (x @ np.linalg.inv(s) @ x + np.linalg.slogdet(2 * np.pi * s)[1])
    assert process.log_likelihood(observations) == pytest.approx(expected, rel=1e-10)


def test_forecast_is_the_dense_one(process, observations):
    _, _, covariance = dense_joint(process, 11)
    seen = np.zeros(22, dtype=bool)
    seen[:14] = ~np.isnan(observations.ravel())
    gain = covariance[14:, seen] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
    expected = gain @ observations.ravel()[seen[:14]]
    rest = covariance[14:, 14:] - gain @ covariance[seen][:, 14:]
    mean, cov = process.kalman_forecast(observations, n=4)
    np.testing.assert_allclose(mean, expected.reshape(4, 2), rtol=1e-9)
    for k in range(4):
        block = rest[2 * k : 2 * k + 2, 2 * k : 2 * k + 2]
        np.testing.assert_allclose(cov[k], block, rtol=1e-9)


@pytest.mark.parametrize("last", [1, 4, 7])
def test_posterior_is_the_dense_one(process, observations, last):
    """Filtered at step `last`, and smoothed at all."""
    moments = process.smooth(observations)
    state, cross, covariance = dense_joint(process, 7)

    def posterior(seen):
        gain = cross[seen].T @ np.linalg.inv(covariance[np.ix_(seen, seen)])
        mean = (gain @ observations.ravel()[seen]).reshape(7, 3)
        cov = (state - gain @ cross[seen]).reshape(7, 3, 7, 3)
        return mean, np.einsum("tdte->tde", cov)

    seen = ~np.isnan(observations.ravel())
    mean, cov = posterior(seen)
    np.testing.assert_allclose(moments.smoothed_mean, mean, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(moments.smoothed_covariance, cov, rtol=1e-8, atol=1e-10)
    mean, cov = posterior(seen & (np.arange(14) < 2 * last))
    t = last - 1
    np.testing.assert_allclose(moments.filtered_mean[t], mean[t], rtol=1e-8)
    np.testing.assert_allclose(
        moments.filtered_covariance[t], cov[t], rtol=1e-8, atol=1e-10
    )


def test_all_missing_leaves_the_stationary_law(process):
    x = np.full((3, 2), np.nan)
    assert process.log_likelihood(x) == 0.0
    mean, cov = process.kalman_forecast(x, n=2)
    marginal = process.emission @ process.stationary_covariance @ process.emission.T
    np.testing.assert_allclose(mean, 0.0)
    np.testing.assert_allclose(cov[1], marginal + process.emission_covariance)


def test_linear_gaussian_is_stationary(process):
    _, latents, _ = process.simulate(5000, 4, random_state=0)
    z = stack(latents)
    outer = z[..., :, None] * z[..., None, :]
    assert_mean(outer[:, 0], process.stationary_covariance)
    assert_mean(outer[:, -1], process.stationary_covariance)


def test_linear_gaussian_future_given_the_state(process):
    state = np.array([1.0, -2.0, 0.5])
    samples = process.sample_future(state, n=3, num_samples=20_000, random_state=0)
    mean, cov = state, np.zeros((3, 3))
    for k in range(3):
        mean, cov = process._predict(mean, cov)
        x = samples[:, k] - process.emission @ mean
        assert_mean(x, 0.0)
        assert_mean(x[:, :, None] * x[:, None, :], process._emission_moment(cov))


def test_kalman_forecast_is_calibrated():
    series, _, process = linear_gaussian(1500, 24, random_state=0)
    x = stack(series)
    z = np.empty((len(x), 4))
    for i, path in enumerate(x):
        mean, cov = process.kalman_forecast(path[:20], n=4)
        z[i] = (path[20:, 0] - mean[:, 0]) / np.sqrt(cov[:, 0, 0])
    assert_mean(z, 0.0)
    assert_mean(z**2, 1.0)


def test_damped_rotation():
    _, _, process = linear_gaussian(1, 4, radius=0.9, period=8.0, num_components=3)
    turn = np.linalg.matrix_power(process.transition, 8)
    np.testing.assert_allclose(turn, 0.9**8 * np.eye(2), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(process.emission, axis=1), 1.0)
    _, _, other = linear_gaussian(1, 4, num_components=3, system_state=1)
    assert not np.array_equal(process.emission, other.emission)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transition": [[1.0]]}, "`transition` must have a spectral radius below 1"),
        ({"transition": np.eye(2)}, r"`transition` must have shape `\(1, 1\)`"),
        ({"emission": [1.0]}, "`emission` must have two axes"),
        ({"transition_covariance": [[0.0]]}, "`transition_covariance` must be symm"),
        ({"emission_covariance": [[-1.0]]}, "`emission_covariance` must be symm"),
        ({"emission_covariance": np.eye(2)}, "`emission_covariance` must have shape"),
        ({"transition": [[np.nan]]}, "`transition` must be finite"),
        ({"emission": [[np.inf]]}, "`emission` must be finite"),
        ({"transition_covariance": [[np.inf]]}, "`transition_covariance` must be finite"),
        ({"emission_covariance": [[np.nan]]}, "`emission_covariance` must be finite"),
    ],
)
def test_linear_gaussian_errors(changes, message):
    arguments = {
        "transition": [[0.5]],
        "emission": [[1.0]],
        "transition_covariance": [[1.0]],
        "emission_covariance": [[1.0]],
    }
    with pytest.raises(ValueError, match=message):
        LinearGaussian(**{**arguments, **changes})


def test_a_process_keeps_its_own_matrices():
    matrices = [0.9 * np.eye(1), np.eye(1), np.eye(1), 0.1 * np.eye(1)]
    process = LinearGaussian(*matrices)
    before = process.log_likelihood([[1.0], [2.0]])
    for matrix in matrices:
        matrix[:] = 3.0
    assert process.log_likelihood([[1.0], [2.0]]) == before


def test_kalman_errors(process):
    for x in (np.zeros(4), np.zeros((4, 3)), np.zeros((0, 2))):
        with pytest.raises(ValueError, match=r"`x` must have shape `\(T, 2\)`"):
            process.log_likelihood(x)
    for method in (process.log_likelihood, process.smooth):
        with pytest.raises(ValueError, match="`x` must be finite, or NaN where"):
            method([[1.0, 2.0], [np.inf, np.nan]])
    with pytest.raises(ValueError, match="`n` must be an integer >= 1, got `0`"):
        process.kalman_forecast(np.zeros((4, 2)), n=0)
