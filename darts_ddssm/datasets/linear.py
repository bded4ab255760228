"""A linear state-space model with Gaussian noise, and its Kalman filter and smoother."""

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from darts_ddssm.datasets.process import (
    Process,
    SimulatedSeries,
    check_positive,
    check_probability,
    checked_observations,
)
from darts_ddssm.validation import check, check_positive_integer


class KalmanMoments(NamedTuple):
    """
    Mean and covariance of the state of a linear Gaussian process at every step.

    Attributes
    ----------
    filtered_mean
        Given the observations up to the step, (T, D).
    filtered_covariance
        Its covariance, (T, D, D).
    smoothed_mean
        Given all observations, (T, D).
    smoothed_covariance
        Its covariance, (T, D, D).
    """

    filtered_mean: np.ndarray
    filtered_covariance: np.ndarray
    smoothed_mean: np.ndarray
    smoothed_covariance: np.ndarray


class LinearGaussian(Process):
    r"""
    A linear state-space model: all that can be asked of it has an exact answer.

    .. math::
        z_t = F z_{t-1} + w_t, \quad w_t \sim N(0, Q), \qquad
        x_t = H z_t + v_t, \quad v_t \sim N(0, R)

    started from the stationary distribution of the state.

    Parameters
    ----------
    transition
        F, (D, D), of spectral radius below 1.
    emission
        H, (C, D).
    transition_covariance
        Q, (D, D), positive definite.
    emission_covariance
        R, (C, C), positive definite.

    Raises
    ------
    ValueError
        If the shapes do not fit, those of the observations given to a method included, a
        value is not finite (of the observations, NaN may be), F is not stable, or Q or R
        not positive definite.

    Examples
    --------
    An autoregression of order one, seen with noise:

    >>> from darts_ddssm.datasets import LinearGaussian
    >>> process = LinearGaussian([[0.8]], [[1.0]], [[0.36]], [[0.1]])
    >>> process.stationary_covariance.round(6).tolist()
    [[1.0]]
    >>> mean, covariance = process.kalman_forecast([[1.0], [float("nan")]], n=3)
    >>> mean.shape, covariance.shape
    ((3, 1), (3, 1, 1))
    """

    def __init__(
        self,
        transition: ArrayLike,
        emission: ArrayLike,
        transition_covariance: ArrayLike,
        emission_covariance: ArrayLike,
    ) -> None:
        self.transition = np.array(transition, dtype=np.float64)
        self.emission = np.array(emission, dtype=np.float64)
        self.transition_covariance = np.array(transition_covariance, np.float64)
        self.emission_covariance = np.array(emission_covariance, np.float64)

        shape = self.emission.shape
        check(len(shape) == 2, f"`emission` must have two axes, got shape `{shape}`.")
        check(bool(np.isfinite(self.emission).all()), "`emission` must be finite.")
        c, d = shape
        sizes = {"transition": d, "transition_covariance": d, "emission_covariance": c}
        for name, size in sizes.items():
            matrix = getattr(self, name)
            check(
                matrix.shape == (size, size),
                f"`{name}` must have shape `{(size, size)}`, got `{matrix.shape}`.",
            )
            check(bool(np.isfinite(matrix).all()), f"`{name}` must be finite.")
            check(
                name == "transition"
                or (np.allclose(matrix, matrix.T) and np.linalg.eigvalsh(matrix).min() > 0),
                f"`{name}` must be symmetric and positive definite, "
                f"got `{matrix.tolist()}`.",
            )
        rho = np.abs(np.linalg.eigvals(self.transition)).max()
        check(rho < 1, f"`transition` must have a spectral radius below 1, got `{rho}`.")

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(f"x{i + 1}" for i in range(len(self.emission)))

    @property
    def state_components(self) -> tuple[str, ...]:
        return tuple(f"z{i + 1}" for i in range(len(self.transition)))

    @cached_property
    def stationary_covariance(self) -> np.ndarray:
        """The covariance P = F P F' + Q of the state at any step, (D, D)."""
        d = len(self.transition)
        return np.linalg.solve(
            np.eye(d**2) - np.kron(self.transition, self.transition),
            self.transition_covariance.ravel(),
        ).reshape(d, d)

    def initial_state(self, num_series: int, rng: np.random.Generator) -> np.ndarray:
        return _gaussian_noise(self.stationary_covariance, (num_series,), rng)

    def next_state(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = _gaussian_noise(self.transition_covariance, state.shape[:-1], rng)
        return state @ self.transition.T + noise

    def observe(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = _gaussian_noise(self.emission_covariance, state.shape[:-1], rng)
        return state @ self.emission.T + noise

    def kalman_forecast(self, x: ArrayLike, n: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Exact forecast given observations: the marginal of each future step.

        Parameters
        ----------
        x
            Observations, (T, C), with NaN where one is missing.
        n
            Steps ahead.

        Returns
        -------
        mean : numpy.ndarray
            Means of the next n observations, (n, C).
        covariance : numpy.ndarray
            Covariance over components of each, (n, C, C).

        Raises
        ------
        ValueError
            If `n` is no positive integer.
        """
        check_positive_integer("n", n)
        means, covariances, _ = self._filter(x)
        state, forecast = (means[-1], covariances[-1]), []
        for _ in range(n):
            state = self._predict(*state)
            forecast.append((self.emission @ state[0], self._emission_moment(state[1])))
        mean, covariance = zip(*forecast, strict=True)
        return np.stack(mean), np.stack(covariance)

    def log_likelihood(self, x: ArrayLike) -> float:
        """
        Exact log-density of a series of observations.

        Parameters
        ----------
        x
            Observations, (T, C), with NaN where one is missing.

        Returns
        -------
        float
            Joint log-density of what is observed, in nats, in total.

        Examples
        --------
        >>> from darts_ddssm.datasets import LinearGaussian
        >>> process = LinearGaussian([[0.0]], [[1.0]], [[0.5]], [[0.5]])
        >>> round(process.log_likelihood([[0.0], [0.0]]), 6)  # two standard normals
        -1.837877
        """
        return self._filter(x)[2]

    def smooth(self, x: ArrayLike) -> KalmanMoments:
        """
        Exact posterior of the state at every step (Kalman, Rauch-Tung-Striebel).

        Parameters
        ----------
        x
            Observations, (T, C), with NaN where one is missing.

        Returns
        -------
        KalmanMoments
            Filtered and smoothed means and covariances.

        Examples
        --------
        >>> from darts_ddssm.datasets import linear_gaussian
        >>> series, _, process = linear_gaussian(1, length=20, random_state=0)
        >>> moments = process.smooth(series[0].values())
        >>> moments.smoothed_covariance.shape
        (20, 2, 2)
        """
        means, covariances, _ = self._filter(x)
        smoothed_means, smoothed_covariances = means.copy(), covariances.copy()
        for t in reversed(range(len(means) - 1)):
            mean, cov = self._predict(means[t], covariances[t])
            gain = np.linalg.solve(cov, self.transition @ covariances[t]).T
            smoothed_means[t] += gain @ (smoothed_means[t + 1] - mean)
            smoothed_covariances[t] += gain @ (smoothed_covariances[t + 1] - cov) @ gain.T
        return KalmanMoments(means, covariances, smoothed_means, smoothed_covariances)

    def _predict(self, mean: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        f = self.transition
        return f @ mean, f @ cov @ f.T + self.transition_covariance

    def _emission_moment(self, cov: np.ndarray) -> np.ndarray:
        return self.emission @ cov @ self.emission.T + self.emission_covariance

    def _filter(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray, float]:
        """Filtered means (T, D) and covariances (T, D, D), and the log-likelihood."""
        c, d = self.emission.shape
        x = checked_observations(x, c)
        means, covariances = np.empty((len(x), d)), np.empty((len(x), d, d))
        mean, cov, log_likelihood = np.zeros(d), self.stationary_covariance, 0.0
        for t, x_t in enumerate(x):
            mean, cov = self._predict(mean, cov)
            seen = ~np.isnan(x_t)
            residual = x_t[seen] - self.emission[seen] @ mean
            innovation = self._emission_moment(cov)[np.ix_(seen, seen)]
            cross = self.emission[seen] @ cov
            gain = np.linalg.solve(innovation, cross).T
            log_likelihood -= 0.5 * (
                residual @ np.linalg.solve(innovation, residual)
                + np.linalg.slogdet(2 * np.pi * innovation)[1]
            )
            mean, cov = mean + gain @ residual, cov - gain @ cross
            means[t], covariances[t] = mean, cov
        return means, covariances, float(log_likelihood)


def _gaussian_noise(
    covariance: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Draws of N(0, covariance), (*shape, D)."""
    root = np.linalg.cholesky(covariance)
    return rng.standard_normal((*shape, len(covariance))) @ root.T


def linear_gaussian(
    num_series: int = 1024,
    length: int = 32,
    *,
    radius: float = 0.95,
    period: float = 12.0,
    step: float = 1.0,
    noise: float = 0.5,
    num_components: int = 1,
    system_state: int = 0,
    random_state: int | None = None,
) -> SimulatedSeries:
    """
    Noisy observations of a damped rotation: what a Kalman filter forecasts exactly.

    Parameters
    ----------
    num_series
        Number of series.
    length
        Steps of each series.
    radius
        What is left of the state after a step, between 0 and 1.
    period
        Steps of one turn of the state in its plane.
    step
        Standard deviation of the state's noise, in the unit of the series.
    noise
        Standard deviation of the observation noise, in the unit of the series.
    num_components
        Number of observed components, each seen from a direction of its own.
    system_state
        Seed of these directions: they set the phases of the components to one another.
    random_state
        Seed of the series, or None.

    Returns
    -------
    SimulatedSeries
        Series ("x1", ...), true states ("z1" and "z2") and the process, a
        `LinearGaussian`.

    Raises
    ------
    ValueError
        If an argument is outside its range.

    Examples
    --------
    >>> from darts_ddssm.datasets import linear_gaussian
    >>> series, _, process = linear_gaussian(4, length=48, random_state=0)
    >>> mean, variance = process.kalman_forecast(series[0].values(), n=12)
    >>> mean.shape, variance.shape
    ((12, 1), (12, 1, 1))
    """
    check_probability(radius=radius)
    check_positive(period=period, step=step, noise=noise)
    check_positive_integer("num_components", num_components)
    cos, sin = np.cos(2 * np.pi / period), np.sin(2 * np.pi / period)
    rng = np.random.default_rng(system_state)
    emission = rng.standard_normal((num_components, 2))
    emission /= np.linalg.norm(emission, axis=1, keepdims=True)
    process = LinearGaussian(
        transition=radius * np.array([[cos, -sin], [sin, cos]]),
        emission=emission,
        transition_covariance=step**2 * np.eye(2),
        emission_covariance=noise**2 * np.eye(num_components),
    )
    return process.simulate(num_series, length, random_state)
