"""The simulated series against closed forms and the dense joint Gaussian."""

import inspect

import numpy as np
import pytest

from darts_ddssm.datasets import (
    BimodalRandomWalk,
    LinearGaussian,
    SwitchingSigns,
    bimodal_random_walk,
    linear_gaussian,
    switching_signs,
)

DATASETS = [bimodal_random_walk, switching_signs, linear_gaussian]

# Standard errors that a Monte-Carlo mean may be off. With fixed seeds a test passes or
# fails for good; at 4.5 a right implementation fails for one seed in 100,000.
NUM_ERRORS = 4.5


def assert_mean(samples: np.ndarray, expected: np.ndarray) -> None:
    """The mean of samples (S, ...) is `expected`, within its standard error."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(axis=0) - expected) < NUM_ERRORS * error)


def stack(series: list) -> np.ndarray:
    """Values of series, (N, T, C)."""
    return np.stack([s.values() for s in series]).astype(np.float64)


# What holds for all of them


@pytest.mark.parametrize("dataset", DATASETS)
def test_layout(dataset):
    series, latents, process = dataset(3, length=12, random_state=0)
    assert len(series) == len(latents) == 3
    for x, z in zip(series, latents, strict=True):
        assert x.components.tolist() == list(process.components)
        assert z.components.tolist() == list(process.state_components)
        assert x.has_range_index and x.time_index.equals(z.time_index)
        assert x.dtype == z.dtype == np.float32
        assert len(x) == 12 and x.start_time() == 0


@pytest.mark.parametrize("dataset", DATASETS)
def test_random_state_decides(dataset):
    first, again, other = (dataset(2, 8, random_state=i) for i in (0, 0, 1))
    assert first.series == again.series and first.latents == again.latents
    assert first.series != other.series
    assert first.series[0] != first.series[1]
    assert dataset(1, 8).series != dataset(1, 8).series


@pytest.mark.parametrize("dataset", DATASETS)
def test_function_is_its_process(dataset):
    series, _, process = dataset(2, 8, random_state=0)
    assert process.simulate(2, 8, random_state=0).series == series


@pytest.mark.parametrize(
    ("dataset", "process_class"),
    [(bimodal_random_walk, BimodalRandomWalk), (switching_signs, SwitchingSigns)],
)
def test_function_and_process_have_the_same_defaults(dataset, process_class):
    defaults = inspect.signature(dataset).parameters
    for name, parameter in inspect.signature(process_class).parameters.items():
        assert defaults[name].default == parameter.default


@pytest.mark.parametrize("dataset", DATASETS)
def test_sample_future_shapes_and_seed(dataset):
    _, latents, process = dataset(3, 5, random_state=0)
    states = np.stack([z.last_values() for z in latents])
    c = len(process.components)
    paths = process.sample_future(states, n=4, num_samples=7, random_state=0)
    assert paths.shape == (7, 3, 4, c)
    one = process.sample_future(states[0], n=4, num_samples=7, random_state=0)
    assert one.shape == (7, 4, c)
    again = process.sample_future(states, n=4, num_samples=7, random_state=0)
    np.testing.assert_array_equal(paths, again)
    assert not np.array_equal(paths[0], paths[1])


@pytest.mark.parametrize("dataset", DATASETS)
def test_future_continues_the_series(dataset):
    """Samples given a true state have the moments of what the series did next."""
    series, latents, process = dataset(2000, 12, random_state=1)
    states = stack(latents)[:, -3]
    actual = stack(series)[:, -2:]
    samples = process.sample_future(states, n=2, num_samples=100, random_state=2)
    # Moments of actual values less those of samples of the same series
    for moment in (lambda x: x, lambda x: x**2, lambda x: x[..., :1, :] * x):
        assert_mean(moment(actual) - moment(samples).mean(axis=0), 0.0)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("name", ["num_series", "length"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(dataset, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be positive, got `{value}`"):
        dataset(**{"num_series": 1, "length": 4, name: value})


@pytest.mark.parametrize(
    ("dataset", "name", "value"),
    [
        (bimodal_random_walk, "probability", 0.0),
        (bimodal_random_walk, "probability", 1.0),
        (bimodal_random_walk, "probability", float("nan")),
        (bimodal_random_walk, "decay", 1.1),
        (bimodal_random_walk, "decay", -0.1),
        (bimodal_random_walk, "step", 0.0),
        (bimodal_random_walk, "noise", -0.2),
        (switching_signs, "persistence", 1.0),
        (switching_signs, "decay", 1.0),
        (switching_signs, "step", -2.0),
        (switching_signs, "noise", 0.0),
        (linear_gaussian, "radius", 1.0),
        (linear_gaussian, "period", 0.0),
        (linear_gaussian, "step", 0.0),
        (linear_gaussian, "noise", 0.0),
        (linear_gaussian, "num_components", 0),
    ],
)
def test_arguments_outside_their_range(dataset, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got `{value}`"):
        dataset(1, 4, **{name: value})


def test_sample_future_errors():
    process = SwitchingSigns()
    with pytest.raises(ValueError, match=r"`state` must have 8 entries .* `\(4,\)`"):
        process.sample_future(np.zeros(4), n=1, num_samples=1)
    with pytest.raises(ValueError, match="`state` must have 8 entries"):
        process.sample_future(0.0, n=1, num_samples=1)
    with pytest.raises(ValueError, match="`n` must be positive"):
        process.sample_future(np.zeros(8), n=0, num_samples=1)
    with pytest.raises(ValueError, match="`num_samples` must be positive"):
        process.sample_future(np.zeros(8), n=1, num_samples=0)


# The bimodal random walk


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


# The switching signs


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


def test_switching_dynamics():
    series, latents, process = switching_signs(400, 16, random_state=0)
    z, sign = np.split(stack(latents), 2, axis=-1)
    assert set(np.unique(sign)) == {-1.0, 1.0}
    np.testing.assert_allclose(
        z[:, 1:], process.decay * z[:, :-1] + process.step * sign[:, 1:], atol=1e-5
    )
    stays = sign[:, 1:] == sign[:, :-1]
    assert_mean(stays.reshape(-1, 4), process.persistence)
    residuals = stack(series) - process.emission_mean(stack(latents))
    assert_mean(residuals.reshape(-1, 8), 0.0)
    assert_mean(residuals.reshape(-1, 8) ** 2, process.noise**2)


def test_switching_is_stationary_and_does_not_saturate():
    _, latents, process = switching_signs(4000, 8, random_state=0)
    inputs = stack(latents)[..., :4] @ process.weights[0].T
    assert_mean(inputs[:, 0] ** 2, 1.0)
    assert_mean(inputs[:, -1] ** 2, 1.0)


def test_switching_mean_ahead():
    """The expected sign shrinks by 2p - 1 at every step, and the mean of z follows."""
    process = SwitchingSigns(decay=0.8, step=1.0, persistence=0.9)
    state = np.array([1.0, -2.0, 0.0, 3.0, 1.0, -1.0, 1.0, -1.0])
    rng = np.random.default_rng(0)
    z, sign, future = state[:4], state[4:], np.tile(state, (20_000, 1))
    for _ in range(5):
        sign = (2 * 0.9 - 1) * sign
        z = 0.8 * z + sign
        future = process.next_state(future, rng)
        assert_mean(future, np.concatenate([z, sign]))


def test_system_state_is_apart_from_the_series():
    one = switching_signs(1, 4, random_state=0)
    other = switching_signs(1, 4, random_state=1)
    for a, b in zip(one.process.weights, other.process.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    system = switching_signs(1, 4, random_state=0, system_state=1)
    assert system.latents == one.latents and system.series != one.series
    assert not np.array_equal(one.process.weights[0], system.process.weights[0])


# The linear Gaussian process


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


def test_kalman_errors(process):
    for x in (np.zeros(4), np.zeros((4, 3)), np.zeros((0, 2))):
        with pytest.raises(ValueError, match=r"`x` must have shape `\(T, 2\)`"):
            process.log_likelihood(x)
    with pytest.raises(ValueError, match="`n` must be positive"):
        process.kalman_forecast(np.zeros((4, 2)), n=0)
