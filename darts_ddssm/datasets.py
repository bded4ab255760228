r"""
Simulated series with known dynamics, to see what a model has learned.

Each series is drawn from a *process*: a Markov state :math:`z_t` and an observation
:math:`x_t` that depends on the state alone. The process comes with the series and is
their oracle: it continues any true state, and says in closed form what it can.

=========================  ===========================================================
function                   what a model must learn
=========================  ===========================================================
`bimodal_random_walk`      a transition with two modes, which no Gaussian can represent
`switching_signs`          16 modes in four latent dimensions, seen through a nonlinear
                           map to eight components
`linear_gaussian`          nothing that a Kalman filter could not: the exact forecast,
                           likelihood and posterior are known
=========================  ===========================================================

Letters: N series, T steps, C observed components, D state components, S samples.

References
----------
.. [1] Ruder and Wojnowicz, "Diffusion-Driven State Space Models", arXiv 2606.21036.
.. [2] Särkkä and Svensson, "Bayesian Filtering and Smoothing", 2nd edition, Cambridge
       University Press, 2023.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from darts import TimeSeries
from darts.logging import raise_log

__all__ = [
    "BimodalRandomWalk",
    "KalmanMoments",
    "LinearGaussian",
    "Process",
    "SimulatedSeries",
    "SwitchingSigns",
    "bimodal_random_walk",
    "linear_gaussian",
    "switching_signs",
]


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise_log(ValueError(message))


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        _check(value > 0, f"`{name}` must be positive, got `{value}`.")


def _check_probability(**values: float) -> None:
    for name, value in values.items():
        _check(0 < value < 1, f"`{name}` must be between 0 and 1, got `{value}`.")


def _random_signs(
    probability: float, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    return np.where(rng.random(shape) < probability, 1.0, -1.0)


class SimulatedSeries(NamedTuple):
    """
    Simulated series and what is known of them.

    Attributes
    ----------
    series
        The observations, one `TimeSeries` of T steps and C components a series.
    latents
        The true states, D components, on the same time index. All that the future
        depends on is in the last one.
    process
        The process that drew them: their oracle.

    Examples
    --------
    >>> import numpy as np
    >>> from darts_ddssm.datasets import bimodal_random_walk
    >>> series, latents, process = bimodal_random_walk(3, length=10, random_state=0)
    >>> len(series), series[0].shape, latents[0].components.tolist()
    (3, (10, 1, 1), ['z'])
    >>> states = np.stack([latent.last_values() for latent in latents])
    >>> process.sample_future(states, n=5, num_samples=100).shape
    (100, 3, 5, 1)
    """

    series: list[TimeSeries]
    latents: list[TimeSeries]
    process: "Process"


class Process(ABC):
    """
    A Markov state and an observation of it: what the processes here have in common.

    A process of one's own names its components and says how the state starts, how it
    moves and how it is observed, the last two for states of any leading shape.

    Examples
    --------
    >>> import numpy as np
    >>> from darts_ddssm.datasets import Process
    >>> class RandomWalk(Process):
    ...     components = ("x",)
    ...     state_components = ("z",)
    ...     def initial_state(self, num_series, rng):
    ...         return np.zeros((num_series, 1))
    ...     def next_state(self, state, rng):
    ...         return state + rng.standard_normal(state.shape)
    ...     def observe(self, state, rng):
    ...         return state
    >>> series, latents, _ = RandomWalk().simulate(2, length=8, random_state=0)
    >>> series[0] == latents[0].with_columns_renamed("z", "x")
    True
    """

    @property
    @abstractmethod
    def components(self) -> tuple[str, ...]:
        """Names of the observed components, C of them."""

    @property
    @abstractmethod
    def state_components(self) -> tuple[str, ...]:
        """Names of the components of the state, D of them."""

    @abstractmethod
    def initial_state(self, num_series: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the states before the first step, (N, D)."""

    @abstractmethod
    def next_state(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw the next state of each, (..., D) to (..., D)."""

    @abstractmethod
    def observe(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw an observation of each state, (..., D) to (..., C)."""

    def simulate(
        self, num_series: int, length: int, random_state: int | None = None
    ) -> SimulatedSeries:
        """
        Draw independent series.

        Parameters
        ----------
        num_series
            Number of series, N.
        length
            Steps of each series, T.
        random_state
            Seed; the same seed draws the same series. None draws others every time.

        Returns
        -------
        SimulatedSeries
            Series and true states in float32, with an integer time index from 0.

        Raises
        ------
        ValueError
            If `num_series` or `length` is not positive.

        Examples
        --------
        >>> from darts_ddssm.datasets import SwitchingSigns
        >>> series, _, _ = SwitchingSigns().simulate(2, length=24, random_state=0)
        >>> series[0].shape
        (24, 8, 1)
        """
        _check_positive(num_series=num_series, length=length)
        rng = np.random.default_rng(random_state)
        z, x = self._roll_out(self.initial_state(num_series, rng), length, rng)
        return SimulatedSeries(
            _to_series(x, self.components), _to_series(z, self.state_components), self
        )

    def sample_future(
        self,
        state: np.ndarray,
        n: int,
        num_samples: int,
        random_state: int | None = None,
    ) -> np.ndarray:
        """
        Draw the next observations given the true state: the best forecast there is.

        Parameters
        ----------
        state
            True state at the last known step, (D,), or of N series, (N, D).
        n
            Steps ahead.
        num_samples
            Number of joint sample paths, S.
        random_state
            Seed, or None.

        Returns
        -------
        numpy.ndarray
            Sample paths, (S, n, C) or (S, N, n, C).

        Raises
        ------
        ValueError
            If `n` or `num_samples` is not positive, or if the last axis of `state` has
            not one entry for each of `state_components`.

        Examples
        --------
        >>> from darts_ddssm.datasets import BimodalRandomWalk
        >>> BimodalRandomWalk().sample_future([1.5], n=6, num_samples=100).shape
        (100, 6, 1)
        """
        _check_positive(n=n, num_samples=num_samples)
        state = self._check_state(state)
        rng = np.random.default_rng(random_state)
        state = np.broadcast_to(state, (num_samples, *state.shape))
        return self._roll_out(state, n, rng)[1]

    def _roll_out(
        self, state: np.ndarray, n: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """States (..., n, D) after `state` (..., D), and observations (..., n, C)."""
        states = []
        for _ in range(n):
            state = self.next_state(state, rng)
            states.append(state)
        z = np.stack(states, axis=-2)
        return z, self.observe(z, rng)

    def _check_state(self, state: np.ndarray) -> np.ndarray:
        state = np.asarray(state, dtype=np.float64)
        size = len(self.state_components)
        _check(
            state.shape[-1:] == (size,),
            f"`state` must have {size} entries on its last axis, "
            f"got shape `{state.shape}`.",
        )
        return state


def _to_series(values: np.ndarray, components: tuple[str, ...]) -> list[TimeSeries]:
    """Series of values (N, T, C)."""
    return [
        TimeSeries.from_values(v, columns=list(components))
        for v in values.astype(np.float32)
    ]


@dataclass(frozen=True)
class BimodalRandomWalk(Process):
    r"""
    A walk that jumps up or down at every step, and never stays.

    .. math::
        z_t = a z_{t-1} + b s_t, \qquad x_t = z_t + c \, e_t,
        \qquad z_0 = 0, \; e_t \sim N(0, 1)

    with independent signs :math:`s_t`, 1 with probability :math:`p` and -1 otherwise.
    The one-step density has two narrow modes at a distance of :math:`2b`, which a
    Gaussian transition can only cover with one wide one.

    Parameters
    ----------
    decay
        a, from 0 to 1.
    step
        b, the height of a jump.
    noise
        c, standard deviation of the observation noise.
    probability
        p, probability of an upward jump.

    Raises
    ------
    ValueError
        If `decay` is outside [0, 1], `step` or `noise` not positive, or `probability`
        outside (0, 1).

    References
    ----------
    .. [1] Ruder and Wojnowicz, "Diffusion-Driven State Space Models", arXiv 2606.21036.

    Examples
    --------
    >>> from darts_ddssm.datasets import BimodalRandomWalk
    >>> density = BimodalRandomWalk().predictive_density([-4.0, 0.0, 4.0], state=[0.0])
    >>> density.round(3).tolist()
    [0.997, 0.0, 0.997]
    """

    decay: float = 0.9
    step: float = 4.0
    noise: float = 0.2
    probability: float = 0.5

    components = ("x",)
    state_components = ("z",)

    def __post_init__(self) -> None:
        _check(
            0 <= self.decay <= 1,
            f"`decay` must be between 0 and 1, got `{self.decay}`.",
        )
        _check_positive(step=self.step, noise=self.noise)
        _check_probability(probability=self.probability)

    def initial_state(self, num_series: int, rng: np.random.Generator) -> np.ndarray:
        """The state before the first step is zero, (N, 1)."""
        return np.zeros((num_series, 1))

    def next_state(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw a jump of each state, (..., 1) to (..., 1)."""
        sign = _random_signs(self.probability, state.shape, rng)
        return self.decay * state + self.step * sign

    def observe(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw an observation of each state, (..., 1) to (..., 1)."""
        return state + self.noise * rng.standard_normal(state.shape)

    def predictive_density(self, x: np.ndarray, state: np.ndarray) -> np.ndarray:
        """
        Exact density of the next observation given the true state.

        Parameters
        ----------
        x
            Points, (G,).
        state
            True state at the last known step, (1,), or of N series, (N, 1).

        Returns
        -------
        numpy.ndarray
            Density at each point, in 1 over the unit of x, (G,) or (N, G).

        Raises
        ------
        ValueError
            If the last axis of `state` has not one entry.

        Examples
        --------
        >>> import numpy as np
        >>> from darts_ddssm.datasets import BimodalRandomWalk
        >>> grid = np.linspace(-10, 10, 2001)
        >>> density = BimodalRandomWalk().predictive_density(grid, state=[2.0])
        >>> round(float(density.sum() * 0.01), 6)
        1.0
        """
        mean = self.decay * self._check_state(state)
        x = np.asarray(x, dtype=np.float64)

        def normal(mean: np.ndarray) -> np.ndarray:
            u = (x - mean) / self.noise
            return np.exp(-0.5 * u**2) / (self.noise * np.sqrt(2 * np.pi))

        p = self.probability
        return p * normal(mean + self.step) + (1 - p) * normal(mean - self.step)


@dataclass(frozen=True)
class SwitchingSigns(Process):
    r"""
    Four latent dimensions that jump with persistent signs, seen through a network.

    .. math::
        z_t = a z_{t-1} + b s_t, \qquad
        x_t = W_2 \tanh(W_1 \tanh(A z_t)) + c \, e_t, \qquad e_t \sim N(0, I)

    Each of the four signs :math:`s_t` keeps its value from one step to the next with
    probability :math:`p`. The signs are a part of the state: the future depends on them
    too, and the next state has 16 possible values. The rows of A are scaled so that the
    inputs of the inner hyperbolic tangent have standard deviation 1. Series start in
    the stationary regime.

    Parameters
    ----------
    decay
        a, between 0 and 1.
    step
        b, the height of a jump.
    persistence
        p, probability that a sign stays.
    noise
        c, standard deviation of the observation noise.
    system_state
        Seed of A, W_1 and W_2, apart from the seed of the series, so that training and
        test series share one system.

    Raises
    ------
    ValueError
        If `decay` or `persistence` is outside (0, 1), or `step` or `noise` is not
        positive.

    References
    ----------
    .. [1] Ruder and Wojnowicz, "Diffusion-Driven State Space Models", arXiv 2606.21036.

    Examples
    --------
    >>> from darts_ddssm.datasets import SwitchingSigns
    >>> process = SwitchingSigns(persistence=0.7)
    >>> _, latents, _ = process.simulate(1, length=8, random_state=0)
    >>> latents[0].components.tolist()
    ['z1', 'z2', 'z3', 'z4', 's1', 's2', 's3', 's4']
    """

    decay: float = 0.5
    step: float = 2.0
    persistence: float = 0.85
    noise: float = 0.1
    system_state: int = 0

    components = tuple(f"x{i}" for i in range(1, 9))
    state_components = tuple(f"{v}{i}" for v in "zs" for i in range(1, 5))

    def __post_init__(self) -> None:
        _check_probability(decay=self.decay, persistence=self.persistence)
        _check_positive(step=self.step, noise=self.noise)

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The matrices of the emission: A (4, 4), W_1 (16, 4) and W_2 (8, 16)."""
        rng = np.random.default_rng(self.system_state)
        # Standard deviation of z: a first-order autoregression driven by signs whose
        # own autocorrelation is r.
        a, r = self.decay, 2 * self.persistence - 1
        scale = self.step * np.sqrt((1 + a * r) / (1 - a * r) / (1 - a**2))
        mixing = rng.standard_normal((4, 4))
        mixing /= scale * np.linalg.norm(mixing, axis=1, keepdims=True)
        return (
            mixing,
            rng.standard_normal((16, 4)) / np.sqrt(4),
            rng.standard_normal((8, 16)) / np.sqrt(16),
        )

    def initial_state(self, num_series: int, rng: np.random.Generator) -> np.ndarray:
        """Draw states of the stationary regime, (N, 8)."""
        state = np.zeros((num_series, 8))
        state[:, 4:] = _random_signs(0.5, (num_series, 4), rng)
        # Zero is forgotten to one part in a thousand.
        for _ in range(int(np.ceil(np.log(1e-3) / np.log(self.decay)))):
            state = self.next_state(state, rng)
        return state

    def next_state(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw signs and jumps, (..., 8) to (..., 8)."""
        z, sign = state[..., :4], state[..., 4:]
        sign = sign * _random_signs(self.persistence, sign.shape, rng)
        return np.concatenate([self.decay * z + self.step * sign, sign], axis=-1)

    def observe(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw an observation of each state, (..., 8) to (..., 8)."""
        mean = self.emission_mean(state)
        return mean + self.noise * rng.standard_normal(mean.shape)

    def emission_mean(self, state: np.ndarray) -> np.ndarray:
        """
        Mean of the observation given the state.

        Parameters
        ----------
        state
            States, (..., 8); the signs have no part in it.

        Returns
        -------
        numpy.ndarray
            Means, (..., 8).

        Examples
        --------
        >>> import numpy as np
        >>> from darts_ddssm.datasets import SwitchingSigns
        >>> SwitchingSigns().emission_mean(np.zeros((5, 8))).shape
        (5, 8)
        """
        mixing, hidden, output = self.weights
        mixed = np.tanh(self._check_state(state)[..., :4] @ mixing.T)
        return np.tanh(mixed @ hidden.T) @ output.T


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

    Examples
    --------
    >>> from darts_ddssm.datasets import linear_gaussian
    >>> series, _, process = linear_gaussian(1, length=20, random_state=0)
    >>> process.smooth(series[0].values()).smoothed_mean.shape
    (20, 2)
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
        If the shapes do not fit, F is not stable, or Q or R not positive definite.

    References
    ----------
    .. [1] Särkkä and Svensson, "Bayesian Filtering and Smoothing", 2nd edition,
           Cambridge University Press, 2023.

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
        transition: np.ndarray,
        emission: np.ndarray,
        transition_covariance: np.ndarray,
        emission_covariance: np.ndarray,
    ) -> None:
        self.transition = np.asarray(transition, dtype=np.float64)
        self.emission = np.asarray(emission, dtype=np.float64)
        self.transition_covariance = np.asarray(transition_covariance, np.float64)
        self.emission_covariance = np.asarray(emission_covariance, np.float64)

        _check(
            self.emission.ndim == 2,
            f"`emission` must have two axes, got shape `{self.emission.shape}`.",
        )
        c, d = self.emission.shape
        for name, size in [
            ("transition", d),
            ("transition_covariance", d),
            ("emission_covariance", c),
        ]:
            matrix = getattr(self, name)
            _check(
                matrix.shape == (size, size),
                f"`{name}` must have shape `{(size, size)}`, got `{matrix.shape}`.",
            )
            _check(
                name == "transition"
                or (np.allclose(matrix, matrix.T) and np.linalg.eigvalsh(matrix).min() > 0),
                f"`{name}` must be symmetric and positive definite, "
                f"got `{matrix.tolist()}`.",
            )
        radius = np.abs(np.linalg.eigvals(self.transition)).max()
        _check(
            radius < 1,
            f"`transition` must have a spectral radius below 1, got `{radius}`.",
        )

    @property
    def components(self) -> tuple[str, ...]:
        """x1, x2, and so on."""
        return tuple(f"x{i + 1}" for i in range(len(self.emission)))

    @property
    def state_components(self) -> tuple[str, ...]:
        """z1, z2, and so on."""
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
        """Draw stationary states, (N, D)."""
        return _gaussian_noise(self.stationary_covariance, (num_series,), rng)

    def next_state(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw the next state of each, (..., D) to (..., D)."""
        noise = _gaussian_noise(self.transition_covariance, state.shape[:-1], rng)
        return state @ self.transition.T + noise

    def observe(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw an observation of each state, (..., D) to (..., C)."""
        noise = _gaussian_noise(self.emission_covariance, state.shape[:-1], rng)
        return state @ self.emission.T + noise

    def kalman_forecast(self, x: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
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
            If `x` has not the shape (T, C), or `n` is not positive.

        Examples
        --------
        >>> from darts_ddssm.datasets import linear_gaussian
        >>> series, _, process = linear_gaussian(1, length=20, random_state=0)
        >>> mean, covariance = process.kalman_forecast(series[0].values(), n=12)
        >>> bool(covariance[0] < covariance[-1])
        True
        """
        _check_positive(n=n)
        means, covariances, _ = self._filter(x)
        mean, cov = means[-1], covariances[-1]
        forecast = []
        for _ in range(n):
            mean, cov = self._predict(mean, cov)
            forecast.append((self.emission @ mean, self._emission_moment(cov)))
        return np.stack([m for m, _ in forecast]), np.stack([c for _, c in forecast])

    def log_likelihood(self, x: np.ndarray) -> float:
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

        Raises
        ------
        ValueError
            If `x` has not the shape (T, C).

        Examples
        --------
        >>> from darts_ddssm.datasets import LinearGaussian
        >>> process = LinearGaussian([[0.0]], [[1.0]], [[0.5]], [[0.5]])
        >>> round(process.log_likelihood([[0.0], [0.0]]), 6)  # two standard normals
        -1.837877
        """
        return self._filter(x)[2]

    def smooth(self, x: np.ndarray) -> KalmanMoments:
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

        Raises
        ------
        ValueError
            If `x` has not the shape (T, C).

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

    def _filter(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Filtered means (T, D) and covariances (T, D, D), and the log-likelihood."""
        x = np.asarray(x, dtype=np.float64)
        c, d = self.emission.shape
        _check(
            x.ndim == 2 and len(x) > 0 and x.shape[1] == c,
            f"`x` must have shape `(T, {c})`, got `{x.shape}`.",
        )
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


def bimodal_random_walk(
    num_series: int = 1024,
    length: int = 32,
    *,
    decay: float = 0.9,
    step: float = 4.0,
    noise: float = 0.2,
    probability: float = 0.5,
    random_state: int | None = None,
) -> SimulatedSeries:
    """
    Series that jump up or down at every step: a transition with two modes.

    Parameters
    ----------
    num_series
        Number of series.
    length
        Steps of each series.
    decay
        What is left of the state after a step, from 0 to 1.
    step
        Height of a jump, in the unit of the series.
    noise
        Standard deviation of the observation noise, in the unit of the series.
    probability
        Probability of an upward jump.
    random_state
        Seed of the series, or None.

    Returns
    -------
    SimulatedSeries
        Series ("x"), true states ("z") and the process, a `BimodalRandomWalk`.

    Raises
    ------
    ValueError
        If an argument is outside its range.

    References
    ----------
    .. [1] Ruder and Wojnowicz, "Diffusion-Driven State Space Models", arXiv 2606.21036.

    Examples
    --------
    >>> from darts_ddssm.datasets import bimodal_random_walk
    >>> series, latents, process = bimodal_random_walk(16, length=32, random_state=0)
    >>> len(series), len(series[0]), process.step
    (16, 32, 4.0)
    """
    process = BimodalRandomWalk(decay, step, noise, probability)
    return process.simulate(num_series, length, random_state)


def switching_signs(
    num_series: int = 1024,
    length: int = 32,
    *,
    decay: float = 0.5,
    step: float = 2.0,
    persistence: float = 0.85,
    noise: float = 0.1,
    system_state: int = 0,
    random_state: int | None = None,
) -> SimulatedSeries:
    """
    Eight components driven by four latent dimensions that jump with persistent signs.

    Parameters
    ----------
    num_series
        Number of series.
    length
        Steps of each series.
    decay
        What is left of the state after a step, between 0 and 1.
    step
        Height of a jump, in the unit of the latent.
    persistence
        Probability that a sign stays from one step to the next.
    noise
        Standard deviation of the observation noise, in the unit of the series.
    system_state
        Seed of the emission: series of one `system_state` share one system.
    random_state
        Seed of the series, or None.

    Returns
    -------
    SimulatedSeries
        Series ("x1" to "x8"), true states ("z1" to "z4" and the signs "s1" to "s4") and
        the process, a `SwitchingSigns`.

    Raises
    ------
    ValueError
        If an argument is outside its range.

    References
    ----------
    .. [1] Ruder and Wojnowicz, "Diffusion-Driven State Space Models", arXiv 2606.21036.

    Examples
    --------
    >>> from darts_ddssm.datasets import switching_signs
    >>> train, _, _ = switching_signs(16, length=32, random_state=0)
    >>> test, latents, process = switching_signs(4, length=32, random_state=1)
    >>> process.sample_future(latents[0].last_values(), n=4, num_samples=100).shape
    (100, 4, 8)
    """
    process = SwitchingSigns(decay, step, persistence, noise, system_state)
    return process.simulate(num_series, length, random_state)


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

    References
    ----------
    .. [1] Särkkä and Svensson, "Bayesian Filtering and Smoothing", 2nd edition,
           Cambridge University Press, 2023.

    Examples
    --------
    >>> from darts_ddssm.datasets import linear_gaussian
    >>> series, _, process = linear_gaussian(4, length=48, random_state=0)
    >>> mean, variance = process.kalman_forecast(series[0].values(), n=12)
    >>> mean.shape, variance.shape
    ((12, 1), (12, 1, 1))
    """
    _check_probability(radius=radius)
    _check_positive(period=period, step=step, noise=noise)
    _check_positive(num_components=num_components)
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
